"""The tables of a report, in Markdown."""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from convnorm.experiment.report.answer import Results, score_name
from convnorm.experiment.report.formats import factor, interval, number, spread

ARROWS = {"lower": "↓", "higher": "↑"}


def escaped(text: Any) -> str:
    """What Markdown and HTML show as this text, in one line."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    line = re.sub(r"([\\`*_\[\]|])", r"\\\1", line)
    return line.replace("$", "&#36;").replace("~", "&#126;")


def folded(summary: str, block: str) -> str:
    return f'<details markdown="1">\n<summary>{summary}</summary>\n\n{block}\n\n</details>'


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> str:
    """A table whose first columns, `words` of them, hold text and whose others hold numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    lines = [map(escaped, header), rule, *(map(escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(value: float | None, scale: float = 1) -> str:
    return "" if value is None else number(scale * value)


def _head(name: str, measure: dict[str, Any]) -> str:
    return f"{name}{' (%)' if measure['percent'] else ''} {ARROWS[measure['better']]}"


def scores(results: Results) -> Iterator[str]:
    """The primary score with what may be said of it, then all that was measured, by moment."""
    name, at, curve = results["score"]["name"], results["score"]["at"], results["curve"]
    measure, curve_measure = results["measures"][name], results["curve_measure"]
    scale, area_scale = factor(measure), factor(curve_measure)
    verdicts = {test["against"]: "(reference)" for test in results["comparisons"]}
    for test in results["comparisons"]:
        p = "" if test["p_holm"] is None else f", p = {number(test['p_holm'])}"
        verdicts[test["cell"]] = test["verdict"] + p
    header = ["cell", "n", f"against {results['compare']['against']}"]
    header += [f"{at} {_head(name, measure)}", "95 % interval"]
    header += [_head("area", curve_measure), "collapsed"]
    rows = []
    for cell in results["cells"]:
        score = cell["summaries"].get(at, {}).get(name)
        area = cell["summaries"].get("area", {}).get(curve)
        row = [cell["name"], _n(cell), verdicts.get(cell["name"], ""), spread(score, scale)]
        row += [interval(score and score["interval"], scale), spread(area, area_scale)]
        rows.append([*row, "{count} of {n}".format(**cell["collapsed"]) if cell["n"] else ""])
    if name in results["floor"]:
        rows.append([_floor(results), "", "", _value(results["floor"][name], scale), "", "", ""])
    yield _table(header, rows)
    yield (
        "Mean ± sample standard deviation over n seeds, t-interval of the mean, p Holm-adjusted; "
        "↓ lower is better, ↑ higher is better. Area: the mean height of the curve of "
        f"{escaped(curve)} from its first score to its last. Collapsed: it ended worse than twice "
        "its best, of shares with twice the error or half the share; failed runs do not count."
    )
    for when in ("final", "selected"):
        taken = [cell["summaries"].get(when, {}) for cell in results["cells"]]
        shown = {m: it for m, it in results["measures"].items() if any(m in some for some in taken)}
        if not shown:
            continue
        rows = [
            [cell["name"], _n(cell), *(spread(some.get(m), factor(shown[m])) for m in shown)]
            for cell, some in zip(results["cells"], taken, strict=True)
        ]
        if floor := results["floor"]:
            rows.append(
                [_floor(results), "", *(_value(floor.get(m), factor(shown[m])) for m in shown)]
            )
        head = [_head(m, it) for m, it in shown.items()]
        table = _table([f"cell, {when} scores", "n", *head], rows)
        yield table if when == at else folded(f"The {when} scores", table)


def _n(cell: dict[str, Any]) -> str:
    """How many runs a cell has, of how many if that is not all."""
    return f"{cell['n']}" + (f" of {cell['planned']}" if cell["n"] < cell["planned"] else "")


def _floor(results: Results) -> str:
    images = results["protocol"].get("floor_images")
    return f"real against real (floor{f', {images} images each' if images else ''})"


def comparisons(results: Results) -> Iterator[str]:
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
            f"Differences in {escaped(score_name(results))}, cell minus the other, between runs "
            "of the same seed; paired t-tests, two-sided. Such runs share the order of the data, "
            "the random numbers and, where shapes agree, initial weights. Pairing was planned, and "
            "costs power where scores do not go together."
        )
    if tests := results["mcnemar"]:
        keys = ("cell", "against", "measure", "seed", "images", "only_cell", "only_against")
        header = [*keys[:5], "only cell right", "only other right", "p", "p (Holm)"]
        rows = [[*map(test.get, keys), *map(number, (test["p"], test["p_holm"]))] for test in tests]
        yield _table(header, rows, words=3)
        yield (
            "McNemar's exact test of two networks on the same images, two-sided; a family of its "
            "own in Holm's correction."
        )


def cost(results: Results) -> Iterator[str]:
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
    yield _table(header, rows)
    (network,) = {cell["cost"]["network"] for cell in results["cells"] if cell["cost"]}
    yield (
        f"Parameters and multiply-adds (of a forward pass, for one image of a batch) of the "
        f"{network}; without element-wise work. Memory is the GPU's, or the whole process's with "
        "its libraries on a CPU. Other runs may have worked beside."
    )


def runs(results: Results) -> str:
    name, area_scale = results["score"]["name"], factor(results["curve_measure"])
    measure = results["measures"][name]
    head, scale = _head(name, measure), factor(measure)
    header = ["cell", "state", "seed", "attempts"]
    header += [f"final {head}", f"selected {head}", "at step", "area"]
    rows = []
    for run in results["runs"]:
        state = f"failed: {run['reason']}" if run["state"] == "failed" else run["state"]
        state += ", collapsed" if run.get("collapsed") else ""
        row = [run["cell"], state, run["seed"], run["attempts"]]
        if run["state"] == "done":
            scores = [run["scores"].get(when, {}).get(name) for when in ("final", "selected")]
            row += [_value(score, scale) for score in scores]
            row += [_value(run["selected_step"]), _value(run["area"], area_scale)]
            row += [_value(run["cost"]["seconds"])]
        rows.append(row + [""] * (len(header) + 1 - len(row)))
    return _table([*header, "training (s)"], rows, words=2)


def versions(results: Results) -> str:
    found = {"hardware": results["hardware"], **results["versions"]}
    several = {name: " (several)" if len(all_) > 1 else "" for name, all_ in found.items()}
    rows = [(name, "; ".join(all_) + several[name]) for name, all_ in found.items()]
    return _table(["what", "which"], rows, words=2)
