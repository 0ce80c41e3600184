"""From the folders of runs to one record that holds every number of a benchmark.

Numbers that were measured in different ways are refused, not put into one column.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import yaml

from convnorm.experiment.benchmark.attempt import Command
from convnorm.experiment.benchmark.attempt_records import ATTEMPTS, ELSEWHERE, attempts
from convnorm.experiment.benchmark.comparisons import mcnemar_tests, paired_tests
from convnorm.experiment.benchmark.grid import Benchmark, Cell, Grid, cells, named
from convnorm.experiment.benchmark.pipeline import Pipeline, Result
from convnorm.experiment.benchmark.plan import GRID, Progress, survey
from convnorm.experiment.benchmark.soundness import agree, finite, with_sound_picture
from convnorm.experiment.config import differences, to_yaml, yaml_text
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import (
    CellCost,
    CellRecord,
    Cost,
    Count,
    GeometricSummary,
    Metric,
    Report,
    RunRecord,
    RunResult,
    Summary,
    When,
)
from convnorm.experiment.run import checkpoint
from convnorm.experiment.statistics import (
    area_under,
    collapsed,
    geometric_summary,
    plateau,
    summary,
)


def gather(benchmark: Benchmark) -> Report:
    """Read all runs that are done and return what they say together.

    Raises:
        InputError: No run is done; two were measured in different ways; the score that was asked
            for was not measured.
    """
    grid, pipeline = benchmark.grid, benchmark.pipeline
    if benchmark.wanted:
        raise InputError(
            f"{benchmark.folder}: nothing to report: {pipeline.matching.key} of "
            f"{len(benchmark.wanted)} cells is not matched yet; the same command without --report "
            "does"
        )
    progress, results = _read(survey(benchmark), pipeline, grid)
    if not results:
        reason = next((f"; {item.run.name}: {item.reason}" for item in progress if item.reason), "")
        raise InputError(
            f"{benchmark.folder}: nothing to report: none of {len(progress)} runs is done{reason}"
        )
    agree(results)
    first, score = next(iter(results.values())), grid.score
    # A score may be of some cells alone, as what was learned of wrong labels is.
    names = dict.fromkeys(key for r in results.values() for key in r.scores[score.at])
    metrics = {key: metric for r in results.values() for key, metric in r.metrics.items()}
    curve_metric = first.metrics[first.curve_name]
    runs = _comparable(_runs(benchmark, progress, results, curve_metric))
    of_cell = defaultdict(list)
    for run in runs:
        of_cell[run.cell].append(run)
    done = {
        (item.run.cell.name, item.run.seed): results[item.run.name]
        for item in progress
        if item.run.name in results
    }
    scores = {place: result.scores[score.at][score.name] for place, result in done.items()}
    right = {place: result.right.get(score.at, {}) for place, result in done.items()}
    flags = {place: found[score.name] for place, found in right.items() if score.name in found}
    return Report(
        name=benchmark.name,
        question=grid.question,
        command=benchmark.command,
        pipeline=grid.pipeline,
        grid=_plain(asdict(grid)),
        attacks=grid.attacks,
        score=score,
        compared_axis=grid.compare.axis,
        reference=named(grid.compare.axis, grid.reference),
        axes={axis: tuple(labels) for axis, labels in grid.labels.items()},
        seeds=grid.seeds,
        metrics={name: metrics[name] for name in names},
        curve_name=first.curve_name,
        curve_metric=curve_metric,
        cells=tuple(_cell(cell, of_cell[cell.name], score.name) for cell in cells(grid)),
        runs=runs,
        comparisons=paired_tests(grid, scores, first.metrics[score.name]),
        mcnemar=mcnemar_tests(grid, flags),
        floor=first.floor,
        protocol=_plain(first.protocol),
        changed=_changed(benchmark, runs),
        left_out=_left_out(benchmark),
        versions=_all_versions(results.values()),
        matched=benchmark.matched,
        hardware=tuple(sorted({part.place for it in results.values() for part in it.segments})),
    )


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """Return content of any keys and values as JSON has it: keys are text, tuples are lists."""
    return json.loads(json.dumps(content))


def _read(
    progress: list[Progress], pipeline: Pipeline, grid: Grid
) -> tuple[list[Progress], dict[str, Result]]:
    """Run's name -> result of those that are done; one that cannot be read has failed."""
    found, results = [], {}
    for item in progress:
        if item.state == "done":
            try:
                if item.reported is not None:
                    result = item.reported.result
                else:
                    result = pipeline.read(item.run.folder, grid.attacks, grid.num)
                result = finite(result)
                results[item.run.name] = with_sound_picture(result)
            except InputError as error:
                item = replace(item, state="failed", reason=str(error))
        found.append(item)
    for name, result in results.items():
        scores = result.scores.get(grid.score.at, {})
        if grid.score.name not in scores:
            known = ", ".join(scores) or "nothing"
            raise InputError(
                f"score: {grid.score.name!r} ({grid.score.at}) was not measured of ({name}); "
                f"expected one of what was: {known}"
            )
    return found, results


def _runs(
    benchmark: Benchmark, progress: list[Progress], results: dict[str, Result], curve: Metric
) -> list[RunRecord]:
    places = (ATTEMPTS, ELSEWHERE)
    started = Counter(it.run for name in places for it in attempts(benchmark.folder, name))
    found = []
    for item in progress:
        run, result = item.run, results.get(item.run.name)
        told = item.reported and item.reported.run
        found.append(
            RunRecord(
                cell=run.cell.name,
                seed=run.seed,
                state=item.state,
                folder=str(run.folder) if told is None else told.folder,
                commands=(str(Command(benchmark.pipeline.script, run.arguments)),),
                attempts=started[run.name] if told is None else told.attempts,
                reason=item.reason,
                result=result and _result(result, curve, benchmark),
                config=checkpoint.without_places(run.config),
                data_sha256=result and result.data_sha256,
                taken_from=told and told.taken_from,
            )
        )
    return found


def _result(result: Result, curve: Metric, benchmark: Benchmark) -> RunResult:
    area, fell = None, None if result.learned else True
    if result.curve:
        values = [point.value for point in result.curve]
        area = area_under([(point.step, point.value) for point in result.curve])
        # Twice a score below the real-against-real floor is still as good as real. An unbiased
        # score, as KID is, has a floor of either sign.
        floor = abs(result.floor.get(result.curve_name, 0))
        resolution = {"resolution": floor} if floor else {}
        fell = fell or collapsed(values, values[-1], curve.better, **resolution)
    return RunResult(
        scores=result.scores,
        selected_step=result.selected_step,
        area=area,
        collapsed=fell,
        curve=result.curve,
        norms=result.norms,
        gain=result.gain,
        plateau_gain=plateau_gain(result),
        cost=result.cost,
        segments=result.segments,
        versions=result.versions,
        picture=result.picture and str(result.picture.relative_to(benchmark.folder)),
        doubts=result.doubts,
    )


def plateau_gain(result: Result) -> float | None:
    """The gain of a run on its plateau, see `statistics.plateau`."""
    return plateau([(point.step, point.mean) for point in result.gain], result.cost.steps)


def _comparable(runs: list[RunRecord]) -> tuple[RunRecord, ...]:
    """Areas compare over the same steps only: without these no run has one."""
    curves = [run.result.curve for run in runs if run.result and run.result.curve]
    if len({(curve[0].step, curve[-1].step) for curve in curves}) <= 1:
        return tuple(runs)
    return tuple(replace(run, result=run.result and replace(run.result, area=None)) for run in runs)


def _changed(benchmark: Benchmark, runs: Sequence[RunRecord]) -> tuple[str, ...] | None:
    """In what the grid differs from that of the first start; None where that is not known.

    Nor is it known of a grid that seems unchanged, but has runs that a report tells of: their
    scores may be older than the grid.
    """
    file = benchmark.folder / GRID
    if not file.is_file():
        return None
    there, here = yaml_text.read(file), yaml.safe_load(to_yaml(benchmark.grid))
    if not isinstance(there, dict):
        raise InputError(
            f"{file}: damaged; expected the grid of the first start, or no file, which leaves "
            "unsaid in what the grid has changed since"
        )
    found = tuple(differences(there, here))
    return None if not found and any(run.taken_from for run in runs) else found


def _left_out(benchmark: Benchmark) -> tuple[str, ...]:
    """Finished runs in the benchmark's folder that the grid does not have."""
    finished = {file.parent for file in benchmark.folder.glob("*/seed*/summary.json")}
    others = finished - {run.folder for run in benchmark.runs}
    return tuple(sorted(str(folder.relative_to(benchmark.folder)) for folder in others))


def _cell(cell: Cell, runs: list[RunRecord], score: str) -> CellRecord:
    results = [run.result for run in runs if run.result is not None]
    flags = [result.collapsed for result in results if result.collapsed is not None]
    scores = {}
    for when in ("final", "selected"):
        found = [result.scores[when] for result in results if when in result.scores]
        common = [key for key in found[0] if all(key in each for each in found)] if found else []
        scores[when] = {key: summary([each[key] for each in found]) for key in common}
    return CellRecord(
        name=cell.name,
        labels=cell.labels,
        planned=len(runs),
        n=len(results),
        collapsed=Count(sum(flags), len(flags)),
        scores=scores,
        area=_summary([result.area for result in results]),
        plateau_gain=_plateau_gain([result.plateau_gain for result in results]),
        cost=_cost([result.cost for result in results]),
        final_minus_selected=_summary(_drift(result.scores, score) for result in results),
    )


def _drift(scores: dict[When, dict[str, float]], name: str) -> float | None:
    """final - selected of one run, if it has both."""
    final, selected = (scores.get(when, {}).get(name) for when in ("final", "selected"))
    return None if final is None or selected is None else final - selected


def _summary(values: Iterable[float | None]) -> Summary | None:
    """Of the values that are known, if there are any."""
    known = [value for value in values if value is not None]
    return summary(known) if known else None


def _plateau_gain(gains: list[float | None]) -> GeometricSummary | None:
    known = [gain for gain in gains if gain is not None]
    return geometric_summary(known) if known else None


def _cost(costs: list[Cost]) -> CellCost | None:
    if not costs:
        return None
    return CellCost(
        network=costs[0].network,
        parameters=costs[0].parameters,
        macs=costs[0].macs,
        steps_per_second=summary([cost.steps / cost.seconds for cost in costs]),
        seconds=summary([cost.seconds for cost in costs]),
        peak_memory=_summary(cost.peak_memory for cost in costs),
    )


def _all_versions(results: Iterable[Result]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for result in results:
        for versions in (result.versions, *(part.software for part in result.segments)):
            for name, version in versions.items():
                found.setdefault(name, set()).add(version)
    return {name: tuple(sorted(versions)) for name, versions in found.items()}
