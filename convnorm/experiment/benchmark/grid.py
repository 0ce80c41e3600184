"""Which runs a benchmark consists of: every combination of its axes' values, at every seed."""

import copy
import itertools
import json
import math
import re
import shlex
from dataclasses import MISSING, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from convnorm.experiment.benchmark.pipeline import Pipeline
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
from convnorm.experiment.config.fields import LARGEST_SEED, bounded, check_ranges, shown
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Score

FOLDER = "benchmark"  # under configs/ and under runs/
# The other names in a benchmark's folder.
RESERVED = {"figures", "jobs", "logs", "grid.yaml", "attempts.jsonl", "results.json", "results.csv"}
RESERVED |= {"report.md", "report.html"}
MOST_RUNS = 10_000  # of a grid; more would take years, and minutes to plan
LONGEST_SLUG = 100  # bytes: the folder's name is part of others


@dataclass(frozen=True)
class Compare:
    """Which tests are made: each value of `axis` against the value `against`, all else equal."""

    axis: str
    against: Any


@dataclass(frozen=True)
class Grid:
    """A file of configs/benchmark/.

    Args:
        question: what the benchmark asks, in a sentence.
        pipeline: gan or classification.
        base: the runs start from this config of the pipeline; `set` and `axes` change it.
        axes: the name of a field -> the list of its values. An axis that changes several fields
            has a name of its own and, in place of the list, label -> {field: value, ...}.
        seeds: of the runs of each cell.
        score: what the cells are compared by.
        compare: which cells are compared.
        set: field -> value, for all runs. Fields have their dotted names, such as normalizer.kind.
        attacks: what the accuracy of classifiers is measured under, besides clean images.
    """

    question: str
    pipeline: Literal["gan", "classification"]
    base: str
    axes: dict[str, Any]
    seeds: tuple[int, ...] = bounded(MISSING, least=0, most=LARGEST_SEED)
    score: Score
    compare: Compare
    set: dict[str, Any] = field(default_factory=dict)
    attacks: tuple[str, ...] = ()

    def __post_init__(self):
        check_ranges(self)
        different = len(set(self.seeds)) == len(self.seeds) and self.seeds
        require(bool(different), "seeds", list(self.seeds), "one or more different ones")
        require(bool(self.axes), "axes", self.axes, "one or more")
        labels = self.labels
        runs = math.prod(map(len, [*labels.values(), self.seeds]))
        if runs > MOST_RUNS:
            raise InputError(f"axes and seeds: {shown(runs)} runs; expected at most {MOST_RUNS}")
        compare = self.compare
        require(compare.axis in labels, "compare.axis", compare.axis, f"one of {_list(labels)}")
        known = labels[compare.axis]
        fits = self.reference in known
        require(fits, "compare.against", compare.against, f"one of {_list(known)}")
        repeated = len(set(self.attacks)) < len(self.attacks)
        require(not repeated, "attacks", list(self.attacks), "different ones")

    @property
    def reference(self) -> str:
        """The label on the compared axis that all others are tested against."""
        return _label(self.compare.against)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Axis -> the labels of its values, in order."""
        return {axis: list(_settings(axis, values)) for axis, values in self.axes.items()}


@dataclass(frozen=True)
class Cell:
    """One combination of the axes' values: axis -> label, and field -> value."""

    labels: dict[str, str]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The labels, so that they can be understood without their axes."""
        return " / ".join(named(axis, label) for axis, label in self.labels.items())

    @property
    def slug(self) -> str:
        """The name of the cell's folder."""
        return re.sub(r"[^\w.=+-]+", "-", self.name).strip("-.")


@dataclass(frozen=True)
class Run:
    """A cell at a seed: its folder, its resolved config and the arguments of its command."""

    cell: Cell
    seed: int
    folder: Path
    config: Any
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"


def _list(names: Any) -> str:
    return ", ".join(map(str, names))


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def named(axis: str, label: str) -> str:
    """Return a label; before a number, a list, true, false or null stands its field's name."""
    try:
        json.loads(label)
    except json.JSONDecodeError:
        return label
    return f"{axis.split('.')[-1]} {label}"


def _settings(axis: str, values: Any) -> dict[str, dict[str, Any]]:
    """Return label -> field -> value of one axis."""
    if isinstance(values, dict):
        for label, fields in values.items():
            good = isinstance(fields, dict) and fields
            require(bool(good), f"axes.{axis}.{label}", fields, "fields and their values")
        found = {_label(label): fields for label, fields in values.items()}
        require(len(found) == len(values), f"axes.{axis}", values, "labels that do not repeat")
    else:
        require(isinstance(values, list), f"axes.{axis}", values, "a list of values")
        found = {_label(value): {axis: value} for value in values}
        require(len(found) == len(values), f"axes.{axis}", values, "values that do not repeat")
    require(bool(found), f"axes.{axis}", values, "one value or more")
    return found


def cells(grid: Grid) -> list[Cell]:
    """Return every combination of the axes' values; the last axis changes fastest."""
    axes = {axis: _settings(axis, values) for axis, values in grid.axes.items()}
    found = []
    for labels in itertools.product(*axes.values()):
        settings = dict(grid.set)
        for axis, label in zip(axes, labels, strict=True):
            for key, value in axes[axis][label].items():
                known = key not in settings
                require(known, f"axes.{axis}.{label}", key, "a field that nothing else sets")
                settings[key] = value
        found.append(Cell(dict(zip(axes, labels, strict=True)), settings))
    return found


@dataclass(frozen=True)
class Benchmark:
    """A grid with its runs.

    cfg: the name or path that the user gave.
    folder: holds the report, and each run in CELL/seedK.
    runs: seed by seed, so that a benchmark that is cut short can compare all cells.
    """

    name: str
    cfg: str
    grid: Grid
    pipeline: Pipeline
    folder: Path
    runs: tuple[Run, ...]

    @property
    def command(self) -> str:
        """The command that carries it out."""
        words = ["python", "scripts/benchmark.py", "--cfg", self.cfg]
        usual = self.folder == Path("runs") / FOLDER / self.name
        return shlex.join(words if usual else [*words, "--folder", str(self.folder)])


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
        return Benchmark(path.stem, cfg, grid, pipeline, folder, _runs(grid, pipeline, folder))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _runs(grid: Grid, pipeline: Pipeline, folder: Path) -> tuple[Run, ...]:
    found = []
    seen: dict[str, str] = {}
    there: dict[str, Any] = {}
    base = values_of(pipeline.config, find_config(grid.base, pipeline.name))
    for cell in cells(grid):
        _check_keys(cell.settings)
        values, arguments = copy.deepcopy(base), ["--cfg", grid.base]
        for key, value in cell.settings.items():
            set_value(pipeline.config, values, key, _label(value))
            arguments.append(f"--{key}={_label(value)}")
        config = build(pipeline.config, values)
        here = pipeline.conditions(config, grid.attacks)
        there = there or here
        if differing := differences(there, here):
            raise InputError(
                f"axes: {cell.name!r} would not be measured as the first cell is "
                f"({'; '.join(differing)}); expected axes that do not change how runs are measured"
            )
        scores = pipeline.scores(config, grid.attacks).get(grid.score.at, {})
        known = f"a {grid.score.at} score of {cell.name!r}: {_list(scores) or 'there is none'}"
        require(grid.score.name in scores, "score", grid.score.name, known)
        good = 0 < len(cell.slug.encode()) <= LONGEST_SLUG and cell.slug not in RESERVED
        good = good and cell.name.isprintable()
        require(good, "axes", cell.name, "labels that can be the name of a folder")
        for same in (cell.slug, json.dumps(asdict(config))):
            if same in seen:
                raise InputError(f"axes: {seen[same]!r} and {cell.name!r} are the same runs")
            seen[same] = cell.name
        for seed in grid.seeds:
            place = folder / cell.slug / f"seed{seed}"
            end = (f"--seed={seed}", f"--run_dir={place}")
            found.append(Run(cell, seed, place, replace(config, seed=seed), (*arguments, *end)))
    order = {seed: position for position, seed in enumerate(grid.seeds)}
    return tuple(sorted(found, key=lambda run: order[run.seed]))


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
