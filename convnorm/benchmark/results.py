"""From the folders of runs to one record that holds every number of a benchmark.

The record is what results.json contains: plain values, from which tables, figures and words are
made. Numbers that were measured in different ways are refused, not put into one column.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from convnorm.benchmark.attempt import Command
from convnorm.benchmark.grid import Benchmark, Cell, Grid, cells, named
from convnorm.benchmark.pipeline import Measure, Pipeline, Result
from convnorm.benchmark.plan import Progress, survey
from convnorm.experiment.config import differences
from convnorm.experiment.errors import InputError
from convnorm.experiment.statistics import (
    LEVEL,
    area_under,
    collapsed,
    holm,
    mcnemar,
    paired,
    summary,
)

FORMAT = "convnorm-suite/benchmark/1"

Record = dict[str, Any]


def gather(benchmark: Benchmark) -> Record:
    """Read all runs that are done and return the benchmark's record.

    Raises:
        InputError: No run is done; two were measured in different ways; the score that was asked
            for was not measured.
    """
    grid, pipeline = benchmark.grid, benchmark.pipeline
    progress, results = _read(survey(benchmark), pipeline, grid)
    if not results:
        raise InputError(
            f"{benchmark.folder}: nothing to report: none of {len(progress)} runs is done"
        )
    agree(results)
    first = next(iter(results.values()))
    names = list(dict.fromkeys(key for r in results.values() for key in r.scores[grid.score.at]))
    curve = pipeline.measure(first.curve_name)
    about = (curve, pipeline, benchmark.folder)
    found = [_run(item, results.get(item.run.name), *about) for item in progress]
    by_cell = {
        cell.name: [run for run in found if run["cell"] == cell.name] for cell in cells(grid)
    }
    record = {
        "format": FORMAT,
        "name": benchmark.name,
        "question": grid.question,
        "command": f"python scripts/benchmark.py --cfg {benchmark.cfg}",
        "grid": asdict(grid),
        "pipeline": grid.pipeline,
        "score": asdict(grid.score),
        "compare": {
            "axis": grid.compare.axis,
            "against": named(grid.compare.axis, grid.compare.against),
        },
        "measures": {key: asdict(pipeline.measure(key)) for key in names},
        "curve": first.curve_name,
        "curve_measure": asdict(curve),
        "axes": grid.labels,
        "seeds": list(grid.seeds),
        "cells": [_cell(cell, by_cell[cell.name], first.curve_name) for cell in cells(grid)],
        "runs": found,
        "comparisons": _comparisons(grid, by_cell, pipeline.measure(grid.score.name)),
        "mcnemar": _mcnemar(grid, progress, results),
        "floor": first.floor,
        "protocol": first.protocol,
        "versions": _all_versions(results.values()),
        "hardware": sorted({result.hardware for result in results.values()}),
    }
    return json.loads(json.dumps(record, allow_nan=False))  # as a reader of results.json has it


def _read(
    progress: list[Progress], pipeline: Pipeline, grid: Grid
) -> tuple[list[Progress], dict[str, Result]]:
    """Run's name -> Result of those that are done; one that cannot be read has failed."""
    looked, results = [], {}
    for item in progress:
        if item.state == "done":
            try:
                results[item.run.name] = _finite(pipeline.read(item.run.folder, grid.attacks))
            except InputError as error:
                item = replace(item, state="failed", reason=str(error))
        looked.append(item)
    for name, result in results.items():
        scores = result.scores.get(grid.score.at, {})
        if grid.score.name not in scores:
            known = ", ".join(scores) or "nothing"
            raise InputError(
                f"score: {grid.score.name!r} ({grid.score.at}) was not measured of ({name}); "
                f"expected one of what was: {known}"
            )
    return looked, results


def _finite(result: Result) -> Result:
    for when, scores in result.scores.items():
        for key, value in scores.items():
            if not math.isfinite(value):
                raise InputError(f"the {when} {key} is {value}; expected a number")
    return result


def agree(results: dict[str, Result]) -> None:
    """Raise an InputError that names two runs whose numbers do not belong into one column."""
    first, *others = results
    for other in others:
        differing = differences(results[first].protocol, results[other].protocol)
        if differing:
            raise InputError(
                f"({first}) and ({other}) were not measured in the same way, there and here: "
                f"{'; '.join(differing)}; expected one protocol"
            )
        if results[first].curve_name != results[other].curve_name:
            names = f"{results[first].curve_name} and {results[other].curve_name}"
            raise InputError(f"({first}) and ({other}) followed {names}; expected the same score")


def _run(
    item: Progress, result: Result | None, curve: Measure, pipeline: Pipeline, folder: Path
) -> Record:
    run = item.run
    record: Record = {
        "cell": run.cell.name,
        "seed": run.seed,
        "state": item.state,
        "folder": str(run.folder),
        "commands": [str(Command(pipeline.script, run.arguments))],
    }
    if item.state == "failed":
        record["reason"] = item.reason
    if result is None:
        return record
    area = fell = None
    if result.curve:
        values = [value for _, _, value in result.curve]
        area = area_under([(step, value) for step, _, value in result.curve])
        # Twice a score below the real-against-real floor is still as good as real.
        floor = result.floor.get(result.curve_name)
        resolution = {} if floor is None else {"resolution": floor}
        fell = collapsed(values, values[-1], curve.better, **resolution)
    picture = result.picture and str(result.picture.relative_to(folder))
    return record | {
        "scores": result.scores,
        "selected_step": result.selected_step,
        "area": area,
        "collapsed": fell,
        "curve": [list(point) for point in result.curve],
        "norms": {
            kind: {layer: [list(point) for point in points] for layer, points in layers.items()}
            for kind, layers in result.norms.items()
        },
        "cost": asdict(result.cost),
        "hardware": result.hardware,
        "versions": result.versions,
        "picture": picture,
        "doubts": result.doubts,
    }


def _cell(cell: Cell, runs: list[Record], curve_name: str) -> Record:
    done = [run for run in runs if run["state"] == "done"]
    record = {"name": cell.name, "labels": cell.labels, "planned": len(runs), "n": len(done)}
    flags = [run["collapsed"] for run in done if run["collapsed"] is not None]
    record["collapsed"] = {"count": sum(flags), "n": len(flags)}
    if not done:
        return record | {"summaries": {}, "cost": None}
    summaries: dict[str, Record] = {}
    for when in ("final", "selected"):
        scores = [run["scores"][when] for run in done if when in run["scores"]]
        common = [key for key in scores[0] if all(key in each for each in scores)] if scores else []
        summaries[when] = {key: _summary([each[key] for each in scores]) for key in common}
    areas = [run["area"] for run in done if run["area"] is not None]
    summaries["area"] = {curve_name: _summary(areas)} if areas else {}
    return record | {"summaries": summaries, "cost": _cost([run["cost"] for run in done])}


def _summary(values: list[float]) -> Record:
    return asdict(summary(values))


def _cost(costs: list[Record]) -> Record:
    memory = [cost["peak_memory"] for cost in costs if cost["peak_memory"] is not None]
    return {
        "parameters": costs[0]["parameters"],
        "macs": costs[0]["macs"],
        "steps_per_second": _summary([cost["steps"] / cost["seconds"] for cost in costs]),
        "seconds": _summary([cost["seconds"] for cost in costs]),
        "peak_memory": _summary(memory) if memory else None,
    }


def _rivals(grid: Grid) -> list[tuple[str, str]]:
    """(cell, the cell that it is compared with) by name: they differ in the compared axis alone."""
    axis, against = grid.compare.axis, grid.compare.against
    names = {tuple(cell.labels.items()): cell.name for cell in cells(grid)}
    pairs = []
    for cell in cells(grid):
        if cell.labels[axis] != against:
            pairs.append((cell.name, names[tuple((cell.labels | {axis: against}).items())]))
    return pairs


def _comparisons(grid: Grid, by_cell: dict[str, list[Record]], measure: Measure) -> list[Record]:
    """Paired tests of the score over common seeds, all in one family of Holm's."""
    found = []
    for cell, against in _rivals(grid):
        one, other = (
            {run["seed"]: run["scores"][grid.score.at][grid.score.name] for run in runs}
            for runs in (
                [run for run in by_cell[name] if run["state"] == "done"] for name in (cell, against)
            )
        )
        seeds = [seed for seed in grid.seeds if seed in one and seed in other]
        record: Record = {"cell": cell, "against": against, "seeds": seeds, "n": len(seeds)}
        record |= {"difference": None, "interval": None, "p": None}
        if seeds:
            record |= asdict(paired([one[s] for s in seeds], [other[s] for s in seeds]))
        found.append(record)
    for record, p in zip(found, holm([record["p"] for record in found]), strict=True):
        record["p_holm"] = p
        record["verdict"] = _verdict(record, measure)
    return found


def _verdict(record: Record, measure: Measure) -> str:
    if record["p_holm"] is None:
        return "not tested"
    if record["p_holm"] >= LEVEL:
        return "not distinguishable"
    return "better" if (record["difference"] < 0) == (measure.better == "lower") else "worse"


def _mcnemar(grid: Grid, progress: list[Progress], results: dict[str, Result]) -> list[Record]:
    """Exact tests of pairs of classifiers on the same images, all in one family of Holm's."""
    by_place = {(item.run.cell.name, item.run.seed): item.run.name for item in progress}
    score, found = grid.score, []
    for cell, against in _rivals(grid):
        for seed in grid.seeds:
            pair = [results.get(by_place[name, seed]) for name in (cell, against)]
            right = [r.right.get(score.at, {}).get(score.name) for r in pair if r is not None]
            if len(right) < 2 or any(flags is None for flags in right):
                continue
            test = mcnemar(*right)
            found.append(
                {"cell": cell, "against": against, "seed": seed, "measure": score.name}
                | {"images": len(right[0]), "only_cell": test.only_a, "only_against": test.only_b}
                | {"p": test.p}
            )
    for record, p in zip(found, holm([record["p"] for record in found]), strict=True):
        record["p_holm"] = p
    return found


def _all_versions(results: Iterable[Result]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in found.items()}
