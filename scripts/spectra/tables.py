"""Spectra as tables: for a terminal, as CSV and as JSON."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from convnorm.experiment.report.formats import number
from convnorm.experiment.report.tables import aligned
from convnorm.singular_values import Summary
from spectra.records import TOLD, Layer, Measured

MISSING = "n/a"
COLUMNS = ("largest", "smallest", "p1", "p50", "p99", "condition", "spread", "stable_rank")
HEAD = ["layer", "stage", "largest", "smallest", "1 %", "50 %", "99 %", "condition", "99 / 1 %"]
HEAD += ["stable rank", "Lanczos", "bound"]


def text(methods: dict[str, list[Measured]]) -> str:
    """All tables and remarks, for a terminal."""
    return "\n\n".join(_blocks(methods))


def _blocks(methods: dict[str, list[Measured]]) -> Iterator[str]:
    for method, runs in methods.items():
        steps = sorted({str(run.step) for run in runs if run.step is not None})
        when = f", after step {' or '.join(steps)}" if steps else ""
        yield f"{method}: {_counted(len(runs), 'network')}{when}"
        yield aligned(HEAD, list(_rows(runs)), 2)
    pairs = [row for method, runs in methods.items() for row in _network(method, runs)]
    if pairs:
        head = ["network", "largest Jacobian norm", "images", "bound", "bound / Jacobian"]
        yield aligned(head, pairs, 1)
    notes = [note for runs in methods.values() for run in runs for note in remarks(run)]
    if notes:
        yield "\n".join(f"- {note}" for note in dict.fromkeys(notes))


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n > 1)}"


def _rows(runs: list[Measured]) -> Iterator[list[str]]:
    """A row for each layer and stage: means over the runs, with the range of the largest value."""
    for layers in zip(*(run.layers for run in runs), strict=True):
        if not layers[0].stages:
            yield [layers[0].name, MISSING] + [MISSING] * (len(HEAD) - 2)
        for stages in zip(*(layer.stages for layer in layers), strict=True):
            summaries = [stage.values for stage in stages]
            is_whole = stages[0] is layers[0].whole
            yield [
                layers[0].name,
                TOLD[stages[0].name],
                ranged([summary.largest for summary in summaries]),
                *(_smallest(summaries, name) for name in ("smallest", "p1")),
                *(mean([getattr(s, name) for s in summaries]) for name in ("p50", "p99")),
                *(_ratio(summaries, name) for name in ("condition", "spread")),
                mean([summary.stable_rank for summary in summaries]),
                mean([layer.below for layer in layers]) if is_whole else "",
                mean([layer.above for layer in layers]) if is_whole else "",
            ]


def mean(values: Sequence[float | None]) -> str:
    if any(value is None for value in values):
        return MISSING
    found = sum(values) / len(values)
    return number(found) if math.isfinite(found) else str(found)


def ranged(values: Sequence[float]) -> str:
    """The mean, and from where to where where there is more than one value."""
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return mean(values)
    return f"{mean(values)} ({number(min(values))} to {number(max(values))})"


def _smallest(summaries: Sequence[Summary], name: str) -> str:
    """A mean of small values; where rounding may have made one of them, what all are below."""
    values = [getattr(summary, name) for summary in summaries]
    lost = max(summary.resolution for summary in summaries)
    if any(value <= summary.resolution for value, summary in zip(values, summaries, strict=True)):
        return f"< {number(max(lost, *values), 2)}" if lost else "0"
    return mean(values)


def _ratio(summaries: Sequence[Summary], name: str) -> str:
    """A mean of ratios; where the smaller number of one is lost in rounding, what all exceed."""
    values = [getattr(summary, name) for summary in summaries]
    if not any(map(math.isinf, values)):
        return mean(values)
    top = "largest" if name == "condition" else "p99"
    least = [getattr(s, top) / s.resolution for s in summaries if s.resolution > 0]
    known = [value for value in values if math.isfinite(value)]
    return f"> {number(min(known + least), 2)}" if least else "inf"


def _network(method: str, runs: list[Measured]) -> Iterator[list[str]]:
    if any(run.jacobian is None for run in runs):
        return
    bounds = [run.bound for run in runs]
    ratios = [None if run.bound is None else run.bound / run.jacobian for run in runs]
    images = " to ".join(sorted({str(run.images) for run in runs}))
    yield [method, ranged([run.jacobian for run in runs]), images, mean(bounds), mean(ratios)]


def remarks(run: Measured) -> Iterator[str]:
    for layer in run.layers:
        for note in layer.notes:
            yield f"{layer.name} ({layer.what}): {note}"
    yield from run.notes


def as_csv(methods: dict[str, list[Measured]]) -> str:
    """A line for each network, layer and stage; empty where there is no finite number."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    head = ["source", "method", "seed", "step", "layer", "geometry", "map", "ring", "stage"]
    table.writerow([*head, "count", *COLUMNS, "resolution", "lanczos", "bound", "notes"])
    for run in (run for runs in methods.values() for run in runs):
        for layer in run.layers:
            whose = [run.source, run.method, run.seed, run.step, layer.name, layer.what]
            sizes = ["" if s is None else "x".join(map(str, s)) for s in (layer.size, layer.ring)]
            for line in _lines(layer):
                table.writerow([*whose, *sizes, *line, "; ".join(layer.notes)])
    return file.getvalue()


def _lines(layer: Layer) -> Iterator[list[Any]]:
    if not layer.stages:
        yield [""] * (5 + len(COLUMNS))
    for stage in layer.stages:
        values = [_finite(getattr(stage.values, name)) for name in (*COLUMNS, "resolution")]
        norms = [layer.below, layer.above] if stage is layer.whole else [None, None]
        yield [stage.name, stage.values.count, *values, *map(_finite, norms)]


def as_json(methods: dict[str, list[Measured]]) -> list[dict[str, Any]]:
    """All that was measured; null for what is not finite."""
    return [_plain(asdict(run)) for runs in methods.values() for run in runs]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return _finite(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
