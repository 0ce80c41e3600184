"""Tables: those of a report, in Markdown, and plain ones for a terminal."""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from convnorm.experiment.records import Match, Metric, Report
from convnorm.experiment.report.formats import TIMES_OVER, factor_spread, interval, number, spread
from convnorm.experiment.statistics import PLATEAU

ARROWS = {"lower": "↓", "higher": "↑"}


def escaped(text: Any) -> str:
    """Return what Markdown and HTML show as this text, in one line."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    line = re.sub(r"([\\`*_\[\]|])", r"\\\1", line)
    return line.replace("$", "&#36;").replace("~", "&#126;")


def folded(summary: str, block: str) -> str:
    return f'<details markdown="1">\n<summary>{summary}</summary>\n\n{block}\n\n</details>'


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> str:
    """A table whose first columns, `words` of them, hold text and whose others hold numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    lines = [map(escaped, header), rule, *(map(escaped, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """The same as text for a terminal, its columns aligned."""
    columns = []
    for place, cells in enumerate(zip(header, *rows, strict=True)):
        side, width = "<" if place < words else ">", max(map(len, cells))
        columns.append([f"{cell:{side}{width}}" for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _value(value: float | None, scale: float = 1) -> str:
    return "" if value is None else number(scale * value)


def _head(name: str, metric: Metric) -> str:
    return f"{name}{' (%)' if metric.percent else ''} {ARROWS[metric.better]}"


def scores(report: Report) -> Iterator[str]:
    """The primary score with what may be said of it, then all other scores, by moment."""
    yield _primary(report)
    yield (
        "Mean ± sample standard deviation over n seeds, t-interval of the mean, p Holm-adjusted; "
        "↓ lower is better, ↑ higher is better. Area: the mean height of the curve of "
        f"{escaped(report.curve_name)} from its first score to its last. Collapsed: the run ended "
        "worse than twice its best; where higher is better, with twice the error or half the "
        "score; or it had learned nothing: no image of a GAN was like real ones (precision 0), or "
        "no accuracy could be told from the best blind guess. Failed runs do not count."
        + _plateau(report)
    )
    for when in ("final", "selected"):
        taken = [cell.scores.get(when, {}) for cell in report.cells]
        shown = {n: it for n, it in report.metrics.items() if any(n in some for some in taken)}
        if not shown:
            continue
        rows = [
            [cell.name, cell.done_of_planned]
            + [spread(some.get(name), metric.scale) for name, metric in shown.items()]
            for cell, some in zip(report.cells, taken, strict=True)
        ]
        if report.floor:
            floor = [_value(report.floor.get(name), it.scale) for name, it in shown.items()]
            rows.append([_floor(report), "", *floor])
        heads = [_head(name, metric) for name, metric in shown.items()]
        table = markdown([f"cell, {when} scores", "n", *heads], rows)
        yield table if when == report.score.at else folded(f"The {when} scores", table)
    yield from _drift(report)


def _drift(report: Report) -> Iterator[str]:
    """How far the score ends from that of the selected weights, as robust overfitting does."""
    found = {cell.name: cell.final_minus_selected for cell in report.cells}
    if not any(found.values()):
        return
    name, scale = report.score.name, report.metric.scale
    unit = " (points)" if report.metric.percent else ""
    rows = [
        (cell, it.n, spread(it, scale), interval(it.interval, scale))
        for cell, it in found.items()
        if it
    ]
    table = markdown(["cell", "n", f"{name}, final - selected{unit}", "95 % interval"], rows)
    told = (
        "The last weights less the selected ones, run by run: mean ± sample standard deviation "
        "over n seeds, t-interval of the mean. Nothing is tested."
    )
    yield folded(f"The final {escaped(name)} against the selected one", f"{table}\n\n{told}")


def _has_gain(report: Report) -> bool:
    return any(cell.plateau_gain is not None for cell in report.cells)


def _plateau(report: Report) -> str:
    """What the column of gains holds, if there is one."""
    if not _has_gain(report):
        return ""
    return (
        " Gain (plateau): the median norm of the discriminator's gradient at an image, a geometric "
        "mean over held-out real and generated images, over "
        f"{PLATEAU[0]} to {PLATEAU[1]} % of the training and over the seeds, {TIMES_OVER} exp of "
        "the standard deviation of its logarithm over these."
    )


def _primary(report: Report) -> str:
    """The score that answers the question, with its tests."""
    name, at, metric = report.score.name, report.score.at, report.metric
    verdicts = {test.against: "(reference)" for test in report.comparisons}
    for test in report.comparisons:
        p = "" if test.p_holm is None else f", p = {number(test.p_holm)}"
        verdicts[test.cell] = test.verdict + p
    header = ["cell", "n", f"against {report.reference}"]
    header += [f"{at} {_head(name, metric)}", "95 % interval"]
    header += [_head("area", report.curve_metric), "collapsed"]
    has_gain = _has_gain(report)
    header += ["gain (plateau)"] * has_gain
    rows = []
    for cell in report.cells:
        score, collapsed = cell.scores.get(at, {}).get(name), cell.collapsed
        row = [cell.name, cell.done_of_planned, verdicts.get(cell.name, "")]
        row += [spread(score, metric.scale), interval(score and score.interval, metric.scale)]
        row += [spread(cell.area, report.curve_metric.scale)]
        row.append(f"{collapsed.count} of {collapsed.n}" if cell.n else "")
        rows.append(row + [factor_spread(cell.plateau_gain)] * has_gain)
    if name in report.floor:
        floor = _value(report.floor[name], metric.scale)
        rows.append([_floor(report), "", "", floor, "", "", ""] + [""] * has_gain)
    return markdown(header, rows)


def _floor(report: Report) -> str:
    images = report.protocol.get("floor_images")
    return f"real against real (floor{f', {images} images each' if images else ''})"


def comparisons(report: Report) -> Iterator[str]:
    """The paired tests of the score, and the tests of single networks where there are any."""
    scale = report.metric.scale
    if tests := report.comparisons:
        unit = " (points)" if report.metric.percent else ""
        header = ["cell", "against", "verdict", "n", f"difference{unit}", "95 % interval"]
        rows = []
        for test in tests:
            row = [test.cell, test.against, test.verdict, test.n]
            row += [_value(test.difference, scale), interval(test.interval, scale)]
            rows.append([*row, _value(test.p), _value(test.p_holm)])
        yield markdown([*header, "p", "p (Holm)"], rows, words=3)
        yield (
            f"Differences in {escaped(report.score_name)}, cell minus the other, between runs "
            "of the same seed; paired t-tests, two-sided. Such runs share the order of the data, "
            "the random numbers and, where shapes agree, initial weights. The pairing was planned; "
            "it costs power where the scores of a seed have nothing in common."
        )
    if tests := report.mcnemar:
        header = ["cell", "against", "score", "seed", "images"]
        header += ["only cell right", "only other right", "p", "p (Holm)"]
        rows = []
        for it in tests:
            row = [it.cell, it.against, it.score, it.seed, it.images, it.only_cell, it.only_against]
            rows.append([*row, number(it.p), number(it.p_holm)])
        yield markdown(header, rows, words=3)
        yield (
            "McNemar's exact test of two networks on the same images, two-sided; Holm's correction "
            "takes these tests as a family of their own."
        )


def tried(match: Match) -> str:
    """The gains of all factors that were tried for a match."""
    return ", ".join(f"{number(trial.gain)} at {trial.scale:g}" for trial in match.trials)


def matched(report: Report) -> Iterator[str]:
    """The factors that were found for a gain, with all that was tried for them."""
    if not report.matched:
        return
    rows, words = [], {"init_matched": "at the first step", "plateau_matched": "10 to 20 %"}
    for match in report.matched:
        row = [match.cell, words[match.how], tried(match)]
        rows.append([*row, number(match.target), f"{match.scale:g}", number(match.gain)])
    yield markdown(["cell", "when", "gains tried", "asked for", "scale", "gain"], rows, words=3)
    seeds = sorted({seed for match in report.matched for seed in match.seeds})
    yield (
        "The gain of a discriminator is the median norm of its logit's gradient to an image, the "
        "geometric mean of that over real and generated ones. The scale, a factor on what the "
        "normalizer makes of each layer, was found before the first run of the grid. At the first "
        "step: networks that nobody trained. 10 to 20 %: the mean log gain over these steps in "
        "pilot runs, interpolated between two, or extrapolated from one within 5 %. "
        "Seeds, which no run of the grid has: "
        f"{', '.join(map(str, seeds))}."
    )
    doubts = [(it.cell, doubt) for it in report.matched for doubt in it.doubts]
    if doubts:
        yield "\n".join(f"- {escaped(cell)}: {escaped(doubt)}." for cell, doubt in doubts)


def cost(report: Report) -> Iterator[str]:
    header = ["cell", "parameters", "MACs an image (M)"]
    header += ["steps/s", "training (s)", "peak memory (MiB)"]
    costs = {cell.name: cell.cost for cell in report.cells if cell.cost}
    rows = []
    for name, cost in costs.items():
        row = [name, f"{cost.parameters:,}", number(cost.macs / 1e6)]
        row += [spread(cost.steps_per_second), spread(cost.seconds)]
        rows.append([*row, spread(cost.peak_memory, 2**-20)])
    yield markdown(header, rows)
    (network,) = {cost.network for cost in costs.values()}
    yield (
        f"Parameters and multiply-adds are those of the {network}; multiply-adds are of a forward "
        "pass, for one image of a batch, without element-wise work. Memory is the GPU's or, on a "
        "CPU, that of the whole process with its libraries. Other runs may have shared the machine."
    )


def runs(report: Report) -> str:
    """Every run that was planned, with its scores if it is done."""
    name, metric, area_scale = report.score.name, report.metric, report.curve_metric.scale
    head = _head(name, metric)
    header = ["cell", "state", "seed", "attempts", f"final {head}", f"selected {head}"]
    header += ["at step", "area", "training (s)"]
    rows = []
    for run in report.runs:
        state = f"failed: {run.reason}" if run.state == "failed" else run.state
        state += ", collapsed" * run.has_collapsed + ", from a report" * bool(run.taken_from)
        row = [run.cell, state, run.seed, run.attempts]
        if result := run.result:
            for when in ("final", "selected"):
                row.append(_value(result.scores.get(when, {}).get(name), metric.scale))
            row += [_value(result.selected_step), _value(result.area, area_scale)]
            row += [_value(result.cost.seconds)]
        rows.append(row + [""] * (len(header) - len(row)))
    return markdown(header, rows, words=2)


def versions(report: Report) -> str:
    found = {"hardware": report.hardware, **report.versions}
    several = {name: " (several)" if len(all_) > 1 else "" for name, all_ in found.items()}
    rows = [(name, "; ".join(all_) + several[name]) for name, all_ in found.items()]
    return markdown(["what", "which"], rows, words=2)
