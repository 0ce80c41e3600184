"""The report of a benchmark: its results as text, as one HTML page, and as tables of numbers."""

import base64
import csv
import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml
from markdown import Markdown

from convnorm.benchmark.answer import (
    Results,
    answer,
    factor,
    interval,
    limits,
    number,
    score_name,
    spread,
)
from convnorm.benchmark.figures import PAPER, Drawing, draw
from convnorm.experiment import checkpoint
from convnorm.experiment.errors import InputError

PAGE = Path(__file__).with_name("report.html")
EXTENSIONS = ("tables", "fenced_code", "toc", "md_in_html", "sane_lists")
ARROWS = {"lower": "↓", "higher": "↑"}
FLOOR = "real against real (floor)"


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
    files = {f"figures/{name}.png": drawing.png for name, drawing in light.items()}
    files["results.csv"] = _csv(results).encode()
    files["report.md"] = text.encode()
    files["report.html"] = _html(results["name"], text, light, dark).encode()
    checkpoint.write_json(folder / "results.json", results)
    for name, content in files.items():
        checkpoint.write(folder / name, lambda file, content=content: file.write(content))
    return folder / "report.html"


def _text(results: Results, drawings: dict[str, Drawing]) -> str:
    """The whole report in Markdown."""
    pictures = {
        name: f"![{name.replace('_', ' ')}](figures/{name}.png)\n\n{_escaped(drawing.caption)}"
        for name, drawing in drawings.items()
    }
    spectra = [pictures.pop(name) for name in drawings if name.endswith("singular_values")]
    sections: dict[str, Iterable[str]] = {
        "Answer": [_list(answer(results))],
        "Scores": _scores_tables(results),
        "Comparisons": _comparison_tables(results),
        "Figures": pictures.values(),
        "Layer spectra": spectra,
        "Cost": [_cost_table(results)],
        "What these numbers cannot say": [_list(limits(results))],
        "Every run": [_runs_table(results)],
        "Protocol": [_fenced("yaml", _yaml(results["protocol"]))],
        "Versions and hardware": [_versions_table(results)],
        "How to reproduce": _commands(results),
    }
    parts = [f"# {_escaped(results['name'])}", _escaped(results["question"])]
    for title, blocks in sections.items():
        if found := list(blocks):
            parts += [f"## {title}", *found]
    return "\n\n".join(parts) + "\n"


def _escaped(text: Any) -> str:
    """What Markdown and HTML show as this text, in one line."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    line = re.sub(r"([\\`*_\[\]|])", r"\\\1", line)
    return line.replace("$", "&#36;").replace("~", "&#126;")


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {_escaped(sentence)}" for sentence in sentences)


def _fenced(language: str, text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> str:
    """A table whose first columns, `words` of them, hold text and whose others hold numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    lines = [map(_escaped, header), rule, *(map(_escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(value: float | None, scale: float = 1) -> str:
    return "" if value is None else number(scale * value)


def _head(name: str, measure: dict[str, Any]) -> str:
    return f"{name}{' (%)' if measure['percent'] else ''} {ARROWS[measure['better']]}"


def _scores_tables(results: Results) -> Iterator[str]:
    """The primary score with what may be said of it, then all that was measured, by moment."""
    name, at, curve = results["score"]["name"], results["score"]["at"], results["curve"]
    measure, curve_measure = results["measures"][name], results["curve_measure"]
    scale, area_scale = factor(measure), factor(curve_measure)
    verdicts = {test["against"]: "(reference)" for test in results["comparisons"]}
    for test in results["comparisons"]:
        p = "" if test["p_holm"] is None else f", p = {number(test['p_holm'])}"
        verdicts[test["cell"]] = test["verdict"] + p
    header = ["cell", "n", f"{at} {_head(name, measure)}", "95 % interval"]
    header.append(f"against {results['compare']['against']}")
    header += [_head("area", curve_measure), "collapsed"]
    rows = []
    for cell in results["cells"]:
        score = cell["summaries"].get(at, {}).get(name)
        area = cell["summaries"].get("area", {}).get(curve)
        row = [cell["name"], cell["n"], spread(score, scale)]
        row += [interval(score and score["interval"], scale), verdicts.get(cell["name"], "")]
        rows.append([*row, spread(area, area_scale), "{count} of {n}".format(**cell["collapsed"])])
    if name in results["floor"]:
        rows.append([FLOOR, "", _value(results["floor"][name], scale), "", "", "", ""])
    yield _table(header, rows)
    yield (
        "Mean ± sample standard deviation over n seeds, t-interval of the mean; ↓ lower is better, "
        f"↑ higher is better. Area: under {_escaped(curve)} over the steps of training, divided by "
        "their number. p-values are Holm-adjusted."
    )
    for when in ("final", "selected"):
        taken = [cell["summaries"].get(when, {}) for cell in results["cells"]]
        shown = {m: it for m, it in results["measures"].items() if any(m in some for some in taken)}
        if not shown:
            continue
        rows = [
            [cell["name"], cell["n"], *(spread(some.get(m), factor(shown[m])) for m in shown)]
            for cell, some in zip(results["cells"], taken, strict=True)
        ]
        if floor := results["floor"]:
            rows.append([FLOOR, "", *(_value(floor.get(m), factor(shown[m])) for m in shown)])
        head = [_head(m, it) for m, it in shown.items()]
        yield _table([f"cell, {when} scores", "n", *head], rows)


def _comparison_tables(results: Results) -> Iterator[str]:
    measure = results["measures"][results["score"]["name"]]
    scale = factor(measure)
    if tests := results["comparisons"]:
        unit = " (points)" if measure["percent"] else ""
        header = ["cell", "against", "verdict", "n", f"difference{unit}", "95 % interval"]
        rows = []
        for test in tests:
            row = [test[key] for key in ("cell", "against", "verdict", "n")]
            row += [_value(test["difference"], scale), interval(test["interval"], scale)]
            rows.append([*row, _value(test["p"]), _value(test["p_holm"])])
        yield _table([*header, "p", "p (Holm)"], rows, words=3)
        yield (
            f"Differences in {_escaped(score_name(results))}, cell minus the other, between runs "
            "of the same seed; paired t-tests, two-sided."
        )
    if tests := results["mcnemar"]:
        keys = ("cell", "against", "measure", "seed", "images", "only_cell", "only_against")
        header = [*keys[:5], "only cell right", "only other right", "p", "p (Holm)"]
        rows = [[*map(test.get, keys), *map(number, (test["p"], test["p_holm"]))] for test in tests]
        yield _table(header, rows, words=3)
        yield "McNemar's exact test of two networks on the same images, two-sided."


def _cost_table(results: Results) -> str:
    header = [
        "cell",
        "parameters",
        "MACs an image (M)",
        "steps/s",
        "training (s)",
        "peak memory (MiB)",
    ]
    rows = []
    for cell in results["cells"]:
        if cost := cell["cost"]:
            row = [cell["name"], f"{cost['parameters']:,}", number(cost["macs"] / 1e6)]
            row += [spread(cost["steps_per_second"]), spread(cost["seconds"])]
            rows.append([*row, spread(cost["peak_memory"], 2**-20)])
    return _table(header, rows)


def _runs_table(results: Results) -> str:
    name, area_scale = results["score"]["name"], factor(results["curve_measure"])
    measure = results["measures"][name]
    head, scale = _head(name, measure), factor(measure)
    header = ["cell", "state", "seed", f"final {head}", f"selected {head}", "at step", "area"]
    rows = []
    for run in results["runs"]:
        state = f"failed: {run['reason']}" if run["state"] == "failed" else run["state"]
        state += ", collapsed" if run.get("collapsed") else ""
        row = [run["cell"], state, run["seed"]]
        if run["state"] == "done":
            scores = [run["scores"].get(when, {}).get(name) for when in ("final", "selected")]
            row += [_value(score, scale) for score in scores]
            row += [_value(run["selected_step"]), _value(run["area"], area_scale)]
            row += [_value(run["cost"]["seconds"])]
        rows.append(row + [""] * (len(header) + 1 - len(row)))
    return _table([*header, "training (s)"], rows, words=2)


def _versions_table(results: Results) -> str:
    found = {"hardware": results["hardware"], **results["versions"]}
    several = {name: " (several)" if len(all_) > 1 else "" for name, all_ in found.items()}
    rows = [(name, "; ".join(all_) + several[name]) for name, all_ in found.items()]
    return _table(["what", "which"], rows, words=2)


def _commands(results: Results) -> Iterator[str]:
    yield _fenced("sh", results["command"])
    commands = []
    for run in results["runs"]:
        commands += [f"# {run['cell']}, seed {run['seed']}", *run["commands"]]
    folded = {
        f"Each of the {len(results['runs'])} runs": _fenced("sh", "\n".join(commands)),
        "The grid": _fenced("yaml", _yaml(results["grid"])),
    }
    for summary, block in folded.items():
        yield f'<details markdown="1">\n<summary>{summary}</summary>\n\n{block}\n\n</details>'


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
    yield from (("cost", measure, value) for measure, value in run["cost"].items())
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
