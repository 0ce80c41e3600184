"""The report of a benchmark: its results as text, as one HTML page, and as tables of numbers."""

import base64
import csv
import html
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import yaml
from markdown import Markdown

from convnorm.experiment import files
from convnorm.experiment.codec import to_json
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Report, RunResult
from convnorm.experiment.report import tables
from convnorm.experiment.report.answer import answer
from convnorm.experiment.report.figures import SPECTRA, Drawing, draw
from convnorm.experiment.report.limits import limits
from convnorm.experiment.report.names import spelled_out
from convnorm.experiment.report.palette import PAPER
from convnorm.experiment.report.tables import escaped, folded

PAGE = Path(__file__).with_name("page.html")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
EXTENSIONS = ("tables", "fenced_code", "toc", "md_in_html", "sane_lists")


def write(report: Report, folder: Path) -> Path:
    """Write the report into the benchmark's folder and return report.html.

    That page needs no other file. Beside it are report.md, with its pictures in figures/, the whole
    record in results.json, and the numbers of the runs, one a line, in results.csv.

    Raises:
        InputError: No run is finished; a file cannot be written.
    """
    if not report.done:
        of = f"none of {len(report.runs)} planned runs is done"
        raise InputError(f"{folder}: nothing to report: {of}")
    shown = spelled_out(report)
    light, dark = (draw(shown, folder, dark) for dark in (False, True))
    text = _text(shown, light)
    (folder / "figures").mkdir(exist_ok=True)
    contents = {f"figures/{name}.png": drawing.png for name, drawing in light.items()}
    contents["results.csv"] = _csv(report).encode()
    contents["report.md"] = text.encode()
    contents["report.html"] = as_html(report.name, text, light, dark).encode()
    files.write_json(folder / "results.json", to_json(report))
    for name, content in contents.items():
        files.write(folder / name, lambda file, content=content: file.write(content))
    return folder / "report.html"


def _text(report: Report, drawings: dict[str, Drawing]) -> str:
    """The whole report in Markdown."""
    pictures = {
        name: f"![{escaped(drawing.title)}](figures/{name}.png)\n\n{escaped(drawing.caption)}"
        for name, drawing in drawings.items()
    }
    spectra = [pictures.pop(name) for name in drawings if name in SPECTRA]
    sections: dict[str, Iterable[str]] = {
        "Answer": [_list(answer(report))],
        "Scores": tables.scores(report),
        "Comparisons": tables.comparisons(report),
        "Figures": pictures.values(),
        "Layer spectra": spectra,
        "Matched gain": tables.matched(report),
        "Cost": tables.cost(report),
        "What these numbers cannot say": [_list(limits(report))],
        "Every run": [tables.runs(report)],
        "Protocol": [_fenced("yaml", _yaml(report.protocol))],
        "Versions and hardware": [tables.versions(report)],
        "How to reproduce": _commands(report),
    }
    parts = [f"# {escaped(report.name)}", escaped(report.question)]
    for title, blocks in sections.items():
        if found := list(blocks):
            parts += [f"## {title}", *found]
    return "\n\n".join(parts) + "\n"


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {escaped(sentence)}" for sentence in sentences)


def _fenced(language: str, text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _commands(report: Report) -> Iterator[str]:
    yield _fenced("sh", report.command)
    commands = []
    for run in report.runs:
        commands += [f"# {run.cell}, seed {run.seed}", *run.commands]
    details = {
        f"Each of the {len(report.runs)} runs": _fenced("sh", "\n".join(commands)),
        "The grid": _fenced("yaml", _yaml(report.grid)),
    }
    yield from (folded(summary, block) for summary, block in details.items())


def _csv(report: Report) -> str:
    """Return all numbers of the finished runs in long form: one a line."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(map(_harmless, ["cell", *report.axes, "seed", "when", "quantity", "value"]))
    labels = {cell.name: list(cell.labels.values()) for cell in report.cells}
    for run in report.done:
        place = [run.cell, *labels[run.cell], run.seed]
        for line in _numbers(run.result, report.curve_name):
            table.writerow(map(_harmless, [*place, *line]))
    return file.getvalue()


def _harmless(cell: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula (OWASP, CSV injection).

    Text that could be one gets an apostrophe in front; numbers, also those in text, stay as they
    are. A carriage return would end the line.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")
    try:
        float(text)
    except ValueError:
        return f"'{text}" if cell.startswith(FORMULA_STARTS) else text
    return text


def _numbers(result: RunResult, curve: str) -> Iterator[tuple[str, str, Any]]:
    """When, quantity and value of everything that is known of a run; None of what is not."""
    for when, scores in result.scores.items():
        yield from ((when, score, value) for score, value in scores.items())
    yield "selected", "step", result.selected_step
    yield "area", curve, result.area
    yield "final", "collapsed", None if result.collapsed is None else int(result.collapsed)
    for quantity in ("parameters", "macs", "steps", "seconds", "peak_memory"):
        yield "cost", quantity, getattr(result.cost, quantity)
    for point in result.curve:
        yield f"step {point.step}", "seconds", point.seconds
        yield f"step {point.step}", curve, point.value
    yield "plateau", "gain", result.plateau_gain
    for point in result.gain:
        yield f"step {point.step}", "gain on real images", point.real
        yield f"step {point.step}", "gain on generated images", point.fake
        yield f"step {point.step}", "margin", point.margin
    for norm, layers in result.norms.items():
        name = "stable rank" if norm == "stable_rank" else f"{norm} singular value"
        for layer, points in layers.items():
            for point in points:
                yield f"step {point.step}", f"{name}, layer {layer}", point.value


def as_html(title: str, text: str, light: dict[str, Drawing], dark: dict[str, Drawing]) -> str:
    """The Markdown text as a page that holds its pictures, for light and for dark screens."""
    markdown = Markdown(extensions=EXTENSIONS)
    body = markdown.convert(text)
    body = body.replace("<table>", '<div class="table" tabindex="0"><table>')
    body = body.replace("</table>", "</table></div>")
    for name in light:
        day, night = (
            f"data:image/png;base64,{base64.b64encode(drawings[name].png).decode()}"
            for drawings in (light, dark)
        )
        body = re.sub(
            rf'(<img [^>]*src=")figures/{name}\.png(" />)',
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{night}">'
            rf"\g<1>{day}\g<2></picture>",
            body,
        )
    content = {"title": html.escape(title), "contents": markdown.toc, "body": body}
    content |= {"light": PAPER[False], "dark": PAPER[True]}
    return Template(PAGE.read_text()).substitute(content)
