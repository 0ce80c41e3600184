"""From the folders of runs to one record that holds every number of a benchmark.

The record is what results.json contains: plain values, from which tables, figures and words are
made. Numbers that were measured in different ways are refused, not put into one column.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from convnorm.experiment.benchmark.attempt import Command
from convnorm.experiment.benchmark.comparisons import mcnemar_tests, paired_tests
from convnorm.experiment.benchmark.grid import Benchmark, Cell, Grid, cells, named
from convnorm.experiment.benchmark.pipeline import Pipeline, Result
from convnorm.experiment.benchmark.plan import GRID, Progress, attempts, survey
from convnorm.experiment.config import differences, to_yaml
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Measure
from convnorm.experiment.statistics import area_under, collapsed, summary

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
        reason = next((f"; {item.run.name}: {item.reason}" for item in progress if item.reason), "")
        raise InputError(
            f"{benchmark.folder}: nothing to report: none of {len(progress)} runs is done{reason}"
        )
    agree(results)
    first = next(iter(results.values()))
    names = list(dict.fromkeys(key for r in results.values() for key in r.scores[grid.score.at]))
    measures = first.measures
    curve = measures[first.curve_name]
    about = (curve, pipeline, benchmark.folder)
    found = [_run(item, results.get(item.run.name), *about) for item in progress]
    _compare_areas(found)
    by_cell = {
        cell.name: [run for run in found if run["cell"] == cell.name] for cell in cells(grid)
    }
    by_place = {
        (item.run.cell.name, item.run.seed): results[item.run.name]
        for item in progress
        if item.run.name in results
    }
    tried = Counter(line["run"] for line in attempts(benchmark))
    for item, run in zip(progress, found, strict=True):
        run["attempts"] = tried[item.run.name]
    record = {
        **_asked(benchmark),
        "measures": {key: asdict(measures[key]) for key in names},
        "curve": first.curve_name,
        "curve_measure": asdict(curve),
        "cells": [_cell(cell, by_cell[cell.name], first.curve_name) for cell in cells(grid)],
        "runs": found,
        "comparisons": paired_tests(grid, by_cell, measures[grid.score.name]),
        "mcnemar": mcnemar_tests(grid, by_place),
        "floor": first.floor,
        "protocol": first.protocol,
        "changed": _changed(benchmark),
        "left_out": _left_out(benchmark),
        "versions": _all_versions(results.values()),
        "hardware": sorted({result.hardware for result in results.values()}),
    }
    return json.loads(json.dumps(record, allow_nan=False))  # as a reader of results.json has it


def _asked(benchmark: Benchmark) -> Record:
    """What was there before the first run."""
    grid = benchmark.grid
    return {
        "format": FORMAT,
        "name": benchmark.name,
        "question": grid.question,
        "command": benchmark.command,
        "grid": asdict(grid),
        "pipeline": grid.pipeline,
        "score": asdict(grid.score),
        "compare": {
            "axis": grid.compare.axis,
            "against": named(grid.compare.axis, grid.reference),
        },
        "axes": grid.labels,
        "seeds": list(grid.seeds),
    }


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


def _compare_areas(runs: list[Record]) -> None:
    """Areas are of one kind over the same steps only: else there are none."""
    done = [run for run in runs if run["state"] == "done" and run["curve"]]
    if len({(run["curve"][0][0], run["curve"][-1][0]) for run in done}) > 1:
        for run in done:
            run["area"] = None


def _changed(benchmark: Benchmark) -> list[str] | None:
    """In what the grid differs from that of the first start; None where that is not known."""
    file = benchmark.folder / GRID
    if not file.is_file():
        return None
    return differences(yaml.safe_load(file.read_text()), yaml.safe_load(to_yaml(benchmark.grid)))


def _left_out(benchmark: Benchmark) -> list[str]:
    """Finished runs in the benchmark's folder that the grid does not have."""
    finished = {file.parent for file in benchmark.folder.glob("*/seed*/summary.json")}
    others = finished - {run.folder for run in benchmark.runs}
    return sorted(str(folder.relative_to(benchmark.folder)) for folder in others)


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
        "network": costs[0]["network"],
        "parameters": costs[0]["parameters"],
        "macs": costs[0]["macs"],
        "steps_per_second": _summary([cost["steps"] / cost["seconds"] for cost in costs]),
        "seconds": _summary([cost["seconds"] for cost in costs]),
        "peak_memory": _summary(memory) if memory else None,
    }


def _all_versions(results: Iterable[Result]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in found.items()}
