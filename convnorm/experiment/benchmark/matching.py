"""Finds the factors of cells that a grid gives by the gain they lead to, before its first run.

A gain at the first step is measured on networks that nobody trains. A gain early in the training
takes pilot runs: the first part of a run like those of the cell, at a seed that the grid does not
have. They are a benchmark of their own, in the folder pilots/.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convnorm.experiment.benchmark import search, targets
from convnorm.experiment.benchmark.attempt import is_trained
from convnorm.experiment.benchmark.execute import Executor, execute
from convnorm.experiment.benchmark.grid import Benchmark, Cell, Compare, Grid, Run, cells, fields_of
from convnorm.experiment.benchmark.loading import Resolve, Settings, resolver, run_of
from convnorm.experiment.benchmark.pipeline import Pipeline
from convnorm.experiment.benchmark.plan import check, check_folder, survey
from convnorm.experiment.benchmark.plan import describe as describe_runs
from convnorm.experiment.benchmark.search import METHODS, Problem
from convnorm.experiment.benchmark.targets import PILOTS, Goal, Target
from convnorm.experiment.errors import Stopped
from convnorm.experiment.records import How, Match, Score, Trial

# Of a gain early in the training over the factor: less than at the start, where it is the depth, as
# training gives back most of what a factor brings.
PLATEAU_EXPONENT = 1.5


@dataclass(frozen=True)
class _Family:
    """Cells whose gain is the same at the same factor.

    labels, settings: of its first cell, without the factor. config: that of its runs.
    """

    labels: dict[str, str]
    settings: Settings
    config: Any


def match(
    benchmark: Benchmark, executor: Callable[[Path], Executor], processes: int, device: str
) -> Iterator[Match]:
    """Find all factors that a benchmark wants: first those that need no run, then the others.

    Pilot runs that are done are not repeated; all that are due at a time go on side by side.

    executor: makes the one that carries out the runs of a folder.

    Raises:
        InputError: A gain is out of reach, or see `execute`.
        Stopped: See `execute`; or a pilot run failed or was stopped.
    """
    yield from _match_at_start(benchmark).values()
    if any(goal.target.how == "plateau_matched" for goal in benchmark.wanted):
        where = executor(benchmark.folder / PILOTS)
        while (pilots := _pilots(benchmark)) is not None:
            check(pilots)
            execute(pilots, where, processes, device)
            for item in survey(pilots):
                if item.state != "done":  # a job of a cluster may have been cancelled
                    how = f"failed: {item.reason}" if item.state == "failed" else "was stopped"
                    raise Stopped(
                        f"the pilot run {item.run.name} {how}; without it no gain can be matched; "
                        "the same command again goes on",
                        code=1,
                    )
        yield from _matches(benchmark, "plateau_matched", _read_pilot(benchmark))[0].values()


def freeze(benchmark: Benchmark, found: Match) -> None:
    """Keep what was found in matched.json, from where `load` takes it ever after."""
    targets.add(benchmark.folder, found)


def describe(benchmark: Benchmark, workers: int) -> str:
    """Return as text what is due before the runs of a benchmark can be told.

    workers: how many runs go on at a time.
    """
    matching, wanted = benchmark.pipeline.matching, benchmark.wanted
    at_start = sum(goal.target.how == "init_matched" for goal in wanted)
    lines = [
        f"{benchmark.name}: {benchmark.grid.num_runs} runs, none of which begins before "
        f"{matching.key} of {len(wanted)} cells is matched: {at_start} at the first step, without "
        f"a run, and {len(wanted) - at_start} by pilot runs"
    ]
    if (pilots := _pilots(benchmark)) is not None:
        lines.append(describe_runs(pilots, workers))
    return "\n".join(lines)


def told(match: Match) -> str:
    """Return what was found in a line."""
    trials = ", ".join(f"{trial.gain:.3g} at {trial.scale:g}" for trial in match.trials)
    doubts = "".join(f"; {doubt}" for doubt in match.doubts)
    return f"{match.cell}: {match.scale:g} for the gain {match.gain:.3g} ({trials}){doubts}"


def matching_alone(
    name: str, base: str, axes: dict[str, Any], target: Target, pipeline: Pipeline, folder: Path
) -> Benchmark:
    """Return a benchmark that wants a factor for each cell of the axes, and has no runs.

    base: the config that they start from, see `Grid`. target: the same for all of them.

    Raises:
        InputError: No factor can lead to it, or a value of an axis is wrong.
    """
    matching, axis = pipeline.matching, next(iter(axes))
    grid = Grid(
        question=f"At which {matching.key} is it {target}?",
        pipeline=pipeline.name,
        base=base,
        axes=axes,
        seeds=(0,),
        score=Score("none"),
        compare=Compare(axis, axes[axis][0]),
    )
    resolve = resolver(grid, pipeline)
    wanted = [
        targets.goal_of(cell.name, target, resolve(cell.settings)[0], matching)
        for cell in cells(grid)
    ]
    return Benchmark(name, base, grid, pipeline, folder, runs=(), wanted=tuple(wanted))


def _matches(
    benchmark: Benchmark, how: How, measured: Callable[[_Family, float], float | None]
) -> tuple[dict[str, Match], list[tuple[_Family, float]]]:
    """Return cell -> what was found of the goals of one kind, and what has to be measured first."""
    matching = benchmark.pipeline.matching
    goals = [goal for goal in benchmark.wanted if goal.target.how == how]
    families = _families(benchmark, goals)
    problems = [_problem(benchmark, goal) for goal in goals]
    if not problems:
        return {}, []
    found, missing = search.search(problems, lambda key, factor: measured(families[key], factor))
    seeds = matching.seeds if how == "init_matched" else matching.seeds[:1]
    matches = {
        goal.cell: _record(goal, *found[goal.cell], seeds) for goal in goals if goal.cell in found
    }
    return matches, [(families[key], factor) for key, factor in missing]


def _problem(benchmark: Benchmark, goal: Goal) -> Problem:
    matching, how = benchmark.pipeline.matching, goal.target.how
    return Problem(
        name=goal.cell,
        family=_key(goal),
        gain=goal.target.gain,
        method=METHODS[how],
        exponent=matching.depth(goal.config) if how == "init_matched" else PLATEAU_EXPONENT,
        least=matching.least,
        most=matching.most,
    )


def _record(
    goal: Goal, found: search.Found, trials: tuple[Trial, ...], seeds: tuple[int, ...]
) -> Match:
    return Match(
        cell=goal.cell,
        how=goal.target.how,
        target=goal.target.gain,
        scale=found.scale,
        gain=found.gain,
        trials=trials,
        seeds=seeds,
        config=goal.relevant,
        doubts=(*goal.doubts, *found.doubts),
    )


def _key(goal: Goal) -> str:
    return json.dumps(goal.relevant, sort_keys=True)


def _families(benchmark: Benchmark, goals: Sequence[Goal]) -> dict[str, _Family]:
    """Return key -> family, named by the axes that say more than the factor.

    So a pilot run has the same folder whatever gain it is for.
    """
    key, found = benchmark.pipeline.matching.key, {}
    telling = [axis for axis, fields in fields_of(benchmark.grid).items() if fields != {key}]
    by_name = {cell.name: cell for cell in cells(benchmark.grid)}
    for goal in goals:
        cell = by_name[goal.cell]
        family = _Family(
            labels={axis: cell.labels[axis] for axis in telling},
            settings={name: value for name, value in cell.settings.items() if name != key},
            config=goal.config,
        )
        found.setdefault(_key(goal), family)
    return found


# ------------------------------------------------------------------ at the first step


def _match_at_start(benchmark: Benchmark) -> dict[str, Match]:
    matching = benchmark.pipeline.matching
    resolve = resolver(benchmark.grid, benchmark.pipeline)

    def measured(family: _Family, factor: float) -> float:
        config, _ = resolve({**family.settings, matching.key: factor})
        gain = matching.at_start(config)
        name = _name(family, matching.key, factor)
        print(f"{name}: the gain at the first step is {gain:.3g}", file=sys.stderr)
        return gain

    return _matches(benchmark, "init_matched", measured)[0]


def _name(family: _Family, key: str, factor: float) -> str:
    return _cell(family, key, factor).name


def _cell(family: _Family, key: str, factor: float) -> Cell:
    return Cell({**family.labels, key: f"{factor:g}"}, family.settings)


# ------------------------------------------------------------------ by pilot runs


def _pilots(benchmark: Benchmark) -> Benchmark | None:
    """Return the pilot runs of the round that is due; None where nothing is left to be run."""
    missing = _matches(benchmark, "plateau_matched", _read_pilot(benchmark))[1]
    if not missing:
        return None
    resolve = resolver(benchmark.grid, benchmark.pipeline)
    return replace(
        benchmark,
        name=f"{benchmark.name}, pilot runs",
        folder=benchmark.folder / PILOTS,
        runs=tuple(_pilot(benchmark, resolve, *place) for place in missing),
        wanted=(),
    )


def _pilot(benchmark: Benchmark, resolve: Resolve, family: _Family, factor: float) -> Run:
    matching = benchmark.pipeline.matching
    changes = {**matching.pilot(family.config), matching.key: factor}
    cell = _cell(family, matching.key, factor)
    place = benchmark.folder / PILOTS
    return run_of(cell, matching.seeds[0], place, *resolve({**family.settings, **changes}))


def _read_pilot(benchmark: Benchmark) -> Callable[[_Family, float], float | None]:
    """Return what reads the gain of a pilot run, None as long as it is not done."""
    resolve = resolver(benchmark.grid, benchmark.pipeline)
    matching = benchmark.pipeline.matching

    def read(family: _Family, factor: float) -> float | None:
        run = _pilot(benchmark, resolve, family, factor)
        check_folder(run)
        return matching.plateau(family.config, run.folder) if is_trained(run) else None

    return read
