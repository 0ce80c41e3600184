"""From the file of a grid to the runs of a benchmark, with everything checked before the first."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convnorm.experiment.benchmark import targets
from convnorm.experiment.benchmark.attempt_records import ATTEMPTS, ELSEWHERE
from convnorm.experiment.benchmark.grid import (
    FOLDER,
    Benchmark,
    Cell,
    Grid,
    Run,
    cells,
    given,
    label_of,
    listed,
)
from convnorm.experiment.benchmark.pipeline import Pipeline
from convnorm.experiment.benchmark.reported import REPORTED
from convnorm.experiment.benchmark.targets import Target, target_of
from convnorm.experiment.config import (
    RunOptions,
    build,
    differences,
    find_config,
    read,
    require,
    set_value,
    values_of,
)
from convnorm.experiment.errors import InputError

# The other names in a benchmark's folder.
RESERVED = {"figures", "jobs", "logs", "grid.yaml", "results.json", "results.csv", "report.md"}
RESERVED |= {"report.html", ATTEMPTS, ELSEWHERE, REPORTED, targets.MATCHED, targets.PILOTS}
LONGEST_SLUG = 100  # bytes: the folder's name is part of others
Settings = dict[str, Any]  # field -> value
Resolve = Callable[[Settings], tuple[Any, tuple[str, ...]]]  # see `resolver`


def load(cfg: str, folder: Path | None, pipelines: dict[str, Pipeline]) -> Benchmark:
    """Read a grid, by its path or its name in configs/benchmark/, and resolve all its runs.

    folder: of the benchmark; None for runs/benchmark/NAME.

    Raises:
        InputError: The file names a field that the pipeline does not have or a value that the field
            does not take, two cells have the same runs or folder, or anything else is wrong.
    """
    path = find_config(cfg, FOLDER)
    grid = read(Grid, path)
    pipeline = pipelines[grid.pipeline]
    folder = folder or Path("runs") / FOLDER / path.stem
    try:
        return _resolved(Benchmark(path.stem, cfg, grid, pipeline, folder, ()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


@dataclass(frozen=True)
class _Planned:
    """A cell, the config of its runs and the arguments of their commands, all but the seed.

    target: the gain that is given in place of a factor; config and arguments are without one.
    """

    cell: Cell
    config: Any
    arguments: tuple[str, ...]
    target: Target | None


def _resolved(benchmark: Benchmark) -> Benchmark:
    """Return it with its runs or, where factors are still to be found, with what is wanted."""
    grid, matching, folder = benchmark.grid, benchmark.pipeline.matching, benchmark.folder
    for where, key, value in given(grid):
        targets.check_value(where, key, value, matching)
    resolve = resolver(grid, benchmark.pipeline)
    planned = _planned(grid, benchmark.pipeline, resolve)
    goals = [
        targets.goal_of(it.cell.name, it.target, it.config, matching) for it in planned if it.target
    ]
    if goals:
        targets.check_seeds(grid.seeds, matching)
    matches = targets.kept(goals, folder)
    if wanted := tuple(goal for goal in goals if goal.cell not in matches):
        return replace(benchmark, wanted=wanted)
    found = []
    for it in planned:
        config, arguments = it.config, it.arguments
        if it.target:
            factor = {matching.key: matches[it.cell.name].scale}
            config, arguments = resolve(it.cell.settings | factor)
        found += [run_of(it.cell, seed, folder, config, arguments) for seed in grid.seeds]
    order = {seed: position for position, seed in enumerate(grid.seeds)}
    runs = tuple(sorted(found, key=lambda run: order[run.seed]))
    return replace(benchmark, runs=runs, matched=tuple(matches.values()))


def resolver(grid: Grid, pipeline: Pipeline) -> Resolve:
    """Return what makes of settings a config, and the arguments of a command that lead to it."""
    base = values_of(pipeline.config, find_config(grid.base, pipeline.name))

    def resolve(settings: Settings) -> tuple[Any, tuple[str, ...]]:
        values, arguments = copy.deepcopy(base), ["--cfg", grid.base]
        for key, value in settings.items():
            set_value(pipeline.config, values, key, label_of(value))
            arguments.append(f"--{key}={label_of(value)}")
        return build(pipeline.config, values), tuple(arguments)

    return resolve


def run_of(cell: Cell, seed: int, folder: Path, config: Any, arguments: tuple[str, ...]) -> Run:
    """Return the run of a cell at a seed, in its place in a folder."""
    place = folder / cell.slug / f"seed{seed}"
    end = (f"--seed={seed}", f"--run_dir={place}")
    return Run(cell, seed, place, replace(config, seed=seed), (*arguments, *end))


def _planned(grid: Grid, pipeline: Pipeline, resolve: Resolve) -> list[_Planned]:
    """Resolve and check every cell: whatever is found for a gain changes nothing of it."""
    found: list[_Planned] = []
    seen: dict[str, str] = {}
    there: dict[str, Any] = {}
    for cell in cells(grid):
        _check_keys(cell.settings)
        asked = {key: it for key, it in cell.settings.items() if target_of(it)}
        plain = {key: it for key, it in cell.settings.items() if key not in asked}
        config, arguments = resolve(plain)
        here = pipeline.conditions(config, grid.attacks)
        there = there or here
        if differing := differences(there, here):
            raise InputError(
                f"axes: {cell.name!r} would not be measured as the first cell is "
                f"({'; '.join(differing)}); expected axes that do not change how runs are measured"
            )
        scores = pipeline.scores(config, grid.attacks).get(grid.score.at, {})
        known = f"a {grid.score.at} score of {cell.name!r}: {listed(scores) or 'there is none'}"
        require(grid.score.name in scores, "score", grid.score.name, known)
        good = 0 < len(cell.slug.encode()) <= LONGEST_SLUG and cell.slug not in RESERVED
        good = good and cell.name.isprintable()
        require(good, "axes", cell.name, "labels that can be the name of a folder")
        for same in (cell.slug, json.dumps([asdict(config), asked])):
            if same in seen:
                raise InputError(f"axes: {seen[same]!r} and {cell.name!r} are the same runs")
            seen[same] = cell.name
        target = next(map(target_of, asked.values()), None)
        found.append(_Planned(cell, config, arguments, target))
    return found


def _check_keys(settings: dict[str, Any]) -> None:
    """Refuse keys that are no fields of a run's config, and one that is inside of another."""
    for key in ("cfg", "seed", *RunOptions.__dataclass_fields__):
        free = key not in settings
        require(free, "axes or set", key, "a field of the run's config, other than its seed")
    for key in settings:
        require(isinstance(key, str), "axes or set", key, "the name of a field")
        parts = key.split(".")
        for end in range(1, len(parts)):
            outer = ".".join(parts[:end])
            require(outer not in settings, "axes or set", key, f"{outer} alone, or its fields")
