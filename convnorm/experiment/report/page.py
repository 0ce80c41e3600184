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
from convnorm.experiment.errors import InputError
from convnorm.experiment.report import tables
from convnorm.experiment.report.answer import Results, answer, limits
from convnorm.experiment.report.figures import PAPER, Drawing, draw
from convnorm.experiment.report.tables import escaped, folded

PAGE = Path(__file__).with_name("page.html")
EXTENSIONS = ("tables", "fenced_code", "toc", "md_in_html", "sane_lists")


def write(results: Results, folder: Path) -> Path:
    """Write the report into the benchmark's folder and return report.html.

    That page needs no other file. Beside it: report.md, with its pictures in figures/; every number
    in results.json; those of the runs in results.csv, one a line.

    results: the content of results.json.

    Raises:
        InputError: No run is finished; a file cannot be written.
    """
    runs = results["runs"]
    if not any(run["state"] == "done" for run in runs):
        raise InputError(f"{folder}: nothing to report: none of {len(runs)} planned runs is done")
    light, dark = (draw(results, folder, dark) for dark in (False, True))
    text = _text(results, light)
    (folder / "figures").mkdir(exist_ok=True)
    contents = {f"figures/{name}.png": drawing.png for name, drawing in light.items()}
    contents["results.csv"] = _csv(results).encode()
    contents["report.md"] = text.encode()
    contents["report.html"] = _html(results["name"], text, light, dark).encode()
    files.write_json(folder / "results.json", results)
    for name, content in contents.items():
        files.write(folder / name, lambda file, content=content: file.write(content))
    return folder / "report.html"


def _text(results: Results, drawings: dict[str, Drawing]) -> str:
    """The whole report in Markdown."""
    pictures = {
        name: f"![{escaped(drawing.title)}](figures/{name}.png)\n\n{escaped(drawing.caption)}"
        for name, drawing in drawings.items()
    }
    spectra = [pictures.pop(name) for name in drawings if name.endswith("singular_values")]
    sections: dict[str, Iterable[str]] = {
        "Answer": [_list(answer(results))],
        "Scores": tables.scores(results),
        "Comparisons": tables.comparisons(results),
        "Figures": pictures.values(),
        "Layer spectra": spectra,
        "Cost": tables.cost(results),
        "What these numbers cannot say": [_list(limits(results))],
        "Every run": [tables.runs(results)],
        "Protocol": [_fenced("yaml", _yaml(results["protocol"]))],
        "Versions and hardware": [tables.versions(results)],
        "How to reproduce": _commands(results),
    }
    parts = [f"# {escaped(results['name'])}", escaped(results["question"])]
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


def _commands(results: Results) -> Iterator[str]:
    yield _fenced("sh", results["command"])
    commands = []
    for run in results["runs"]:
        commands += [f"# {run['cell']}, seed {run['seed']}", *run["commands"]]
    details = {
        f"Each of the {len(results['runs'])} runs": _fenced("sh", "\n".join(commands)),
        "The grid": _fenced("yaml", _yaml(results["grid"])),
    }
    yield from (folded(summary, block) for summary, block in details.items())


def _csv(results: Results) -> str:
    """All numbers of the finished runs, in long form."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["cell", *results["axes"], "seed", "when", "measure", "value"])
    labels = {cell["name"]: list(cell["labels"].values()) for cell in results["cells"]}
    for run in results["runs"]:
        if run["state"] == "done":
            place = [run["cell"], *labels[run["cell"]], run["seed"]]
            table.writerows([*place, *line] for line in _numbers(run, results["curve"]))
    return file.getvalue()


def _numbers(run: dict[str, Any], curve: str) -> Iterator[tuple[str, str, Any]]:
    """When, measure and value of all that is known of a run; None of what is not."""
    for when, scores in run["scores"].items():
        yield from ((when, measure, value) for measure, value in scores.items())
    yield "selected", "step", run["selected_step"]
    yield "area", curve, run["area"]
    yield "final", "collapsed", None if run["collapsed"] is None else int(run["collapsed"])
    cost = {measure: value for measure, value in run["cost"].items() if measure != "network"}
    yield from (("cost", measure, value) for measure, value in cost.items())
    for step, seconds, value in run["curve"]:
        yield f"step {step}", "seconds", seconds
        yield f"step {step}", curve, value
    for norm, layers in run["norms"].items():
        for layer, series in layers.items():
            for step, value in series:
                yield f"step {step}", f"{norm} singular value, layer {layer}", value


def _html(title: str, text: str, light: dict[str, Drawing], dark: dict[str, Drawing]) -> str:
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
