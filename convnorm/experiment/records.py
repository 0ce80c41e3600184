"""The records that runs, evaluations, benchmarks and reports hand to each other.

`convnorm.experiment.codec` writes and reads them. What a report shows stands in one of these, and
nothing that draws or tells looks anything up by a string that is not a name of the user's.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Interval = tuple[float, float]  # its lower and its upper end
When = Literal["final", "selected"]
State = Literal["done", "cut", "failed", "not begun"]
Verdict = Literal["better", "worse", "not distinguishable", "not tested"]
How = Literal["init_matched", "plateau_matched"]  # at the first step, or early in the training


@dataclass(frozen=True)
class Summary:
    """The scores of `n` runs.

    sd: sample standard deviation, with n - 1 in the denominator; None for a single run.
    interval: t-interval of the mean; None for a single run. It has no width where all scores are
        equal, which does not mean that the next one would be equal too.
    """

    mean: float
    sd: float | None
    n: int
    interval: Interval | None


@dataclass(frozen=True)
class GeometricSummary:
    """Positive values of `n` runs, of which ratios count and not differences.

    mean: the geometric one. factor: exp of the sample standard deviation of their logarithms, by
        which a value typically differs from the mean; None for a single run.
    """

    mean: float
    factor: float | None
    n: int


@dataclass(frozen=True)
class Metric:
    """How values of a score compare; `percent`: they lie in [0, 1] and are shown in percent."""

    better: Literal["lower", "higher"]
    percent: bool = False

    @property
    def scale(self) -> int:
        """The factor by which a value is multiplied where it is shown."""
        return 100 if self.percent else 1


@dataclass(frozen=True)
class Score:
    """The one score that answers the question, chosen before the first run.

    at: of the last weights, or of those that did best on held-out data.
    """

    name: str
    at: When = "final"


# -------------------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Cost:
    """What a run took.

    network: the one with the normalizer. parameters: how many it has. macs: multiply-adds of its
        forward pass, an image of the run's batch. seconds: of training, without scores and
        pictures. peak_memory: bytes, of the GPU's memory or, on a CPU, of the process; None where
        it was not recorded.
    """

    network: str
    parameters: int
    macs: int
    steps: int
    seconds: float
    peak_memory: int | None


@dataclass(frozen=True)
class CurvePoint:
    """The value of a score at a step, after so many seconds of training."""

    step: int
    seconds: float
    value: float


@dataclass(frozen=True)
class NormPoint:
    """A singular value of a layer at a step."""

    step: int
    value: float


# "operator", "matrix", "rms" or "stable_rank" -> layer -> points.
Norms = dict[str, dict[str, tuple[NormPoint, ...]]]


@dataclass(frozen=True)
class GainPoint:
    """How steep a discriminator D is after so many steps.

    real, fake: median over images x in [-1, 1] of |dD/dx|_2, real ones and generated ones. margin:
    mean D(real) - mean D(fake).
    """

    step: int
    real: float
    fake: float
    margin: float

    @property
    def mean(self) -> float:
        """The geometric mean of both sides, which is called the gain."""
        return math.sqrt(self.real * self.fake)


@dataclass(frozen=True)
class Segment:
    """A part of a training that one start, or one resume, carried out.

    step: how many steps were done before it. commit: of the clone that holds the code, None where
    there is none. torch, python, cuda: versions; no cuda where PyTorch was built without.
    device: cpu or cuda. hardware: the name of the device. world_size: how many processes.
    sync_batch_norm: of several, whether BatchNorm took its statistics over all of them, and not
        each over its part.
    """

    step: int
    commit: str | None
    torch: str
    python: str
    cuda: str | None
    device: str
    hardware: str
    world_size: int
    sync_batch_norm: bool = False

    @property
    def place(self) -> str:
        """The hardware, with the number of processes where there were several."""
        several = f", in {self.world_size} processes" if self.world_size > 1 else ""
        return self.hardware + several + (" with one BatchNorm" if self.sync_batch_norm else "")

    @property
    def software(self) -> dict[str, str]:
        """What a report lists as versions: name -> version."""
        found = {"commit": self.commit or "unknown", "torch": self.torch, "python": self.python}
        return found if self.cuda is None else {**found, "cuda": self.cuda}

    @property
    def facts(self) -> dict[str, str]:
        """All by which two parts of a training can differ, beside their first steps."""
        return {"hardware": self.place, **self.software}

    def changes(self, before: "Segment") -> dict[str, tuple[str | None, str | None]]:
        """What differs from an earlier part: the name of a fact -> its value then and now."""
        old, new = before.facts, self.facts
        pairs = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class RunResult:
    """What a finished run says.

    scores: when -> name -> value; without "selected" where no data were held out.
    selected_step: the step of the selected scores.
    area: under the curve; None where there is no curve, or the runs have curves over other steps.
    collapsed: whether the run fell from its best, see `statistics.collapsed`, or had learned
        nothing at its end; None where there is no curve to tell it by.
    segments: the parts of the training, in their order.
    versions: of what scored or evaluated the run, beside those of the segments.
    gain: of a discriminator, from before the first step; empty where it was not measured.
    plateau_gain: see `statistics.plateau`; None where that is.
    picture: a PNG of samples, relative to the benchmark's folder.
    doubts: sentences, each a reason not to take the scores at face value.
    """

    scores: dict[When, dict[str, float]]
    selected_step: int | None
    area: float | None
    collapsed: bool | None
    curve: tuple[CurvePoint, ...]
    norms: Norms
    gain: tuple[GainPoint, ...]
    plateau_gain: float | None
    cost: Cost
    segments: tuple[Segment, ...]
    versions: dict[str, str]
    picture: str | None
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class RunRecord:
    """A run that was planned: a cell at a seed.

    commands: each as it is typed. attempts: how often the run was started and not stopped.
    reason: why it failed. result: of a run that is done, and None of any other.
    config: all of it, but for where its data are; None in a report of before it was told.
    data_sha256: of the training data, of a run that is done; None where it was not told.
    taken_from: the report that a run was taken over from, whose files are elsewhere.
    """

    cell: str
    seed: int
    state: State
    folder: str
    commands: tuple[str, ...]
    attempts: int
    reason: str
    result: RunResult | None
    config: dict[str, Any] | None = None
    data_sha256: str | None = None
    taken_from: str | None = None

    @property
    def name(self) -> str:
        return f"{self.cell} (seed {self.seed})"

    @property
    def has_collapsed(self) -> bool:
        return self.result is not None and bool(self.result.collapsed)


# ------------------------------------------------------------------------------- many runs


@dataclass(frozen=True)
class CellCost:
    """What the runs of a cell took, see `Cost`; peak_memory is None where none recorded it."""

    network: str
    parameters: int
    macs: int
    steps_per_second: Summary
    seconds: Summary
    peak_memory: Summary | None


@dataclass(frozen=True)
class Count:
    """How many of `n` runs."""

    count: int
    n: int


@dataclass(frozen=True)
class CellRecord:
    """All runs that differ in their seed alone.

    labels: axis -> label. planned: how many runs; n: how many of them are done.
    collapsed: of those whose curve can tell.
    scores: when -> name -> summary over the runs. area: of the areas under their curves.
    plateau_gain: over the runs that have one; None where none has. cost: None where no run is done.
    final_minus_selected: of the score, over the runs that have both; None where none has, and in a
        report of before it was told.
    """

    name: str
    labels: dict[str, str]
    planned: int
    n: int
    collapsed: Count
    scores: dict[When, dict[str, Summary]]
    area: Summary | None
    plateau_gain: GeometricSummary | None
    cost: CellCost | None
    final_minus_selected: Summary | None = None

    @property
    def done_of_planned(self) -> str:
        """How many runs are done, and of how many if that is not all."""
        return f"{self.n}" + (f" of {self.planned}" if self.n < self.planned else "")


@dataclass(frozen=True)
class Comparison:
    """A paired t-test of the score between two cells, over the seeds that both have.

    difference: mean of cell - against; None without a common seed. interval, p: None where there is
        no test. p_holm: adjusted for all tests of the benchmark.
    """

    cell: str
    against: str
    seeds: tuple[int, ...]
    difference: float | None
    interval: Interval | None
    p: float | None
    p_holm: float | None
    verdict: Verdict

    @property
    def n(self) -> int:
        """How many pairs of runs are compared."""
        return len(self.seeds)

    @property
    def is_tested(self) -> bool:
        return self.verdict != "not tested"


@dataclass(frozen=True)
class McNemarTest:
    """An exact test of two classifiers, of one seed, on the same images.

    only_cell, only_against: how many images one classifier alone is right about.
    """

    cell: str
    against: str
    seed: int
    score: str
    images: int
    only_cell: int
    only_against: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Trial:
    """A factor that was tried, and the gain that it gave."""

    scale: float
    gain: float


@dataclass(frozen=True)
class Match:
    """The factor at which runs of a cell have the gain that was asked for, and how it was found.

    target: the gain that was asked for. scale: the factor. gain: that of `scale`, as measured or,
        for a factor that no pilot run had, as interpolated between two or extrapolated from one.
    trials: all factors that were tried, in rising order: networks at the first step, or pilot runs.
    seeds: of the trials; no run of the grid has one of them.
    config: all else that the gain depends on.
    doubts: sentences, each a reason not to take the match at face value.
    """

    cell: str
    how: How
    target: float
    scale: float
    gain: float
    trials: tuple[Trial, ...]
    seeds: tuple[int, ...]
    config: dict[str, Any]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Matched:
    """The content of matched.json: what was found before the first run of the grid, and stays."""

    FORMAT: ClassVar = "convnorm-suite/matched/1"

    matches: tuple[Match, ...]


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark found: the content of results.json.

    command: what carries the benchmark out. grid: its file, resolved. attacks: those of the grid.
    compared_axis, reference: each value of this axis is compared with this one of them.
    axes: axis -> labels of its values. metrics: of every score, in the order of the tables.
    curve_name, curve_metric: the score that was followed during training.
    floor: name of a score -> its value for real images against real ones.
    protocol: all that the numbers of one column have in common.
    changed: in what the grid differs from that of the first start; None where that is not known.
    left_out: folders of finished runs that the grid does not have.
    versions: of a library -> all that were used.
    matched: how factors of cells were found that the grid gives by the gain they lead to.
    """

    FORMAT: ClassVar = "convnorm-suite/benchmark/4"

    name: str
    question: str
    command: str
    pipeline: str
    grid: dict[str, Any]
    attacks: tuple[str, ...]
    score: Score
    compared_axis: str
    reference: str
    axes: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    metrics: dict[str, Metric]
    curve_name: str
    curve_metric: Metric
    cells: tuple[CellRecord, ...]
    runs: tuple[RunRecord, ...]
    comparisons: tuple[Comparison, ...]
    mcnemar: tuple[McNemarTest, ...]
    floor: dict[str, float]
    protocol: dict[str, Any]
    changed: tuple[str, ...] | None
    left_out: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    hardware: tuple[str, ...]
    matched: tuple[Match, ...] = ()

    @property
    def metric(self) -> Metric:
        """That of the score that answers the question."""
        return self.metrics[self.score.name]

    @property
    def score_name(self) -> str:
        """The score that answers the question with its moment: "final FD (digits)"."""
        return f"{self.score.at} {self.score.name}"

    @property
    def done(self) -> list[RunRecord]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result is not None]

    @property
    def failed(self) -> list[RunRecord]:
        return [run for run in self.runs if run.state == "failed"]
