"""What a pipeline tells the benchmark: how its runs are made, evaluated and read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convnorm.experiment.records import (
    Cost,
    CurvePoint,
    GainPoint,
    How,
    Metric,
    Norms,
    Segment,
    When,
)
from convnorm.experiment.run.memory import Estimate


@dataclass(frozen=True)
class Result:
    """What a finished run says.

    metrics: name -> how its values compare, of every score and of the curve.
    scores: when -> name -> value. The selected scores are those of the weights, or of the step,
        that did best on held-out data; where no data were held out there are none.
    selected_step: the step of the selected scores.
    curve: the score `curve_name` during training.
    norms: singular values of layers during training, see `convnorm.spectrum`.
    protocol: JSON-able, all that numbers of one column must have in common.
    floor: name of a score -> its value for real images against real ones, for scores that have one.
    segments: the parts of the training, in their order, at least one.
    versions: name -> version of what scored or evaluated the run, beside those of the segments.
    right: when -> name of a score -> (N,) bool, which images a classifier was right about; runs of
        one protocol have the same images at the same positions.
    picture: a PNG of samples at the end of training, of latents that depend on the seed alone.
    doubts: sentences, each a reason not to take the scores at face value.
    learned: whether the last weights do anything that chance would not do.
    gain: of a discriminator during training, from before its first step; empty where it was not
        measured.
    data_sha256: of the training data; None in a run of before it was told.
    """

    metrics: dict[str, Metric]
    scores: dict[When, dict[str, float]]
    selected_step: int | None
    curve_name: str
    curve: tuple[CurvePoint, ...]
    norms: Norms
    protocol: dict[str, Any]
    floor: dict[str, float]
    cost: Cost
    segments: tuple[Segment, ...]
    versions: dict[str, str]
    right: dict[When, dict[str, np.ndarray]] = field(default_factory=dict)
    picture: Path | None = None
    doubts: tuple[str, ...] = ()
    learned: bool = True
    gain: tuple[GainPoint, ...] = ()
    data_sha256: str | None = None


@dataclass(frozen=True)
class Matching:
    """How a pipeline measures the gain that a factor in a run's config leads to.

    key: the field that is the factor. least, most: its range.
    seeds: of what is measured, apart from those of a grid; the first is that of pilot runs.
    check: (config, how) -> doubts about matching its gain, in sentences. Raises an InputError where
        the factor cannot set it.
    relevant: (config, how) -> all that the gain depends on, beside the factor and the seed.
    at_start: config -> the gain before the first step, over all seeds.
    depth: config -> how often the factor enters: the gain at the start is about its power of this.
    pilot: config -> field -> value, of what a pilot run does in another way than the run itself.
    plateau: (config, folder of its pilot run) -> the gain early in the training.
    """

    key: str
    least: float
    most: float
    seeds: tuple[int, ...]
    check: Callable[[Any, How], tuple[str, ...]]
    relevant: Callable[[Any, How], dict[str, Any]]
    at_start: Callable[[Any], float]
    depth: Callable[[Any], int]
    pilot: Callable[[Any], dict[str, Any]]
    plateau: Callable[[Any, Path], float]


@dataclass(frozen=True)
class Pipeline:
    """One of the suite's pipelines.

    name: its folder under configs/. config: the dataclass of a run. script: what trains one.
    format: of its checkpoints. memory: config -> what a run needs of it at least.
    scores: (config, attacks) -> when -> name -> metric, of the scores that such a run will have.
        Raises an InputError for an attack that does not exist.
    conditions: (config, attacks) -> the part of a config that decides how its runs are evaluated.
    fraction_done: (config, line of log.jsonl) -> the fraction of the training that is done there,
        in [0, 1].
    remaining_evaluations: (run folder, attacks, number of images or None for all) -> the commands,
        each a script's name and its arguments, that a trained run still needs before it can be
        read.
    read: the same -> the result of a run that is trained and evaluated.
    matching: how factors are found for a gain; None where no field takes one.
    """

    name: str
    config: type
    script: str
    format: str
    memory: Callable[[Any], Estimate]
    scores: Callable[[Any, Sequence[str]], dict[When, dict[str, Metric]]]
    conditions: Callable[[Any, Sequence[str]], dict[str, Any]]
    fraction_done: Callable[[Any, dict[str, Any]], float]
    remaining_evaluations: Callable[[Path, Sequence[str], int | None], list[list[str]]]
    read: Callable[[Path, Sequence[str], int | None], Result]
    matching: Matching | None = None
