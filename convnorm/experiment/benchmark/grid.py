"""A grid: every combination of its axes' values, at every seed, is a run of a benchmark."""

import itertools
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from convnorm.experiment.benchmark.pipeline import Pipeline
from convnorm.experiment.benchmark.targets import Goal, target_of
from convnorm.experiment.config import require
from convnorm.experiment.config.fields import LARGEST_SEED, bounded, check_ranges, shown
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Match, Score

FOLDER = "benchmark"  # under configs/ and under runs/
MOST_RUNS = 10_000  # of a grid; more would take years, and minutes to plan


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
            has a name of its own and, in place of the list, label -> {field: value, ...}. A value
            of normalizer.scale may be the gain that it is to lead to, see `targets`.
        seeds: of the runs of each cell.
        score: what the cells are compared by.
        compare: which cells are compared.
        set: field -> value, for all runs. Fields have their dotted names, such as normalizer.kind.
        attacks: what the accuracy of classifiers is measured under, besides clean images.
        num: how many random test images of them are evaluated, the clean ones included; null for
            all.
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
    num: int | None = bounded(None, least=1, most=10**9)

    def __post_init__(self):
        check_ranges(self)
        different = len(set(self.seeds)) == len(self.seeds) and self.seeds
        require(bool(different), "seeds", list(self.seeds), "one or more different ones")
        require(bool(self.axes), "axes", self.axes, "one or more")
        labels = self.labels
        if self.num_runs > MOST_RUNS:
            told = f"{shown(self.num_runs)} runs; expected at most {MOST_RUNS}"
            raise InputError(f"axes and seeds: {told}")
        compare = self.compare
        require(compare.axis in labels, "compare.axis", compare.axis, f"one of {listed(labels)}")
        known = labels[compare.axis]
        fits = self.reference in known
        require(fits, "compare.against", compare.against, f"one of {listed(known)}")
        repeated = len(set(self.attacks)) < len(self.attacks)
        require(not repeated, "attacks", list(self.attacks), "different ones")
        counts = self.num is None or self.pipeline == "classification"
        require(counts, "num", self.num, "null for GANs, whose protocol has the numbers of images")

    @property
    def reference(self) -> str:
        """The label on the compared axis that all others are tested against."""
        return label_of(self.compare.against)

    @property
    def num_runs(self) -> int:
        """How many runs it has: one for each combination of values and each seed."""
        return math.prod(map(len, [*self.labels.values(), self.seeds]))

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
        return slug_of(self.name)


def slug_of(name: str) -> str:
    """Return the name of a cell as that of its folder."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.")


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


def listed(names: Iterable[Any]) -> str:
    """Return names as an error lists them."""
    return ", ".join(map(str, names))


def label_of(value: Any) -> str:
    """Return a value as the label of a cell, which is also how it is typed."""
    if (target := target_of(value)) is not None:
        return str(target)
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
        found = {label_of(label): fields for label, fields in values.items()}
        require(len(found) == len(values), f"axes.{axis}", values, "labels that do not repeat")
    else:
        require(isinstance(values, list), f"axes.{axis}", values, "a list of values")
        found = {label_of(value): {axis: value} for value in values}
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


def fields_of(grid: Grid) -> dict[str, set[str]]:
    """Return axis -> the fields that its values set."""
    return {
        axis: {key for fields in _settings(axis, values).values() for key in fields}
        for axis, values in grid.axes.items()
    }


def given(grid: Grid) -> Iterator[tuple[str, str, Any]]:
    """Where each value of a grid stands, its field, and the value itself."""
    for key, value in grid.set.items():
        yield f"set.{key}", key, value
    for axis, values in grid.axes.items():
        for label, fields in _settings(axis, values).items():
            inside = isinstance(values, dict)
            for key, value in fields.items():
                yield f"axes.{axis}" + (f".{label}.{key}" if inside else ""), key, value


@dataclass(frozen=True)
class Benchmark:
    """A grid with its runs.

    cfg: the name or path that the user gave.
    folder: holds the report, and each run in CELL/seedK.
    runs: seed by seed, so that a benchmark that is cut short can compare all cells; none while
        there is anything in `wanted`.
    matched: how the factors of its cells were found, of those that have one for a gain.
    wanted: the gains whose factors are still to be found, see `matching`.
    """

    name: str
    cfg: str
    grid: Grid
    pipeline: Pipeline
    folder: Path
    runs: tuple[Run, ...]
    matched: tuple[Match, ...] = ()
    wanted: tuple[Goal, ...] = ()

    @property
    def command(self) -> str:
        """The command that carries it out."""
        words = ["python", "scripts/benchmark.py", "--cfg", self.cfg]
        usual = self.folder == Path("runs") / FOLDER / self.name
        return shlex.join(words if usual else [*words, "--folder", str(self.folder)])
