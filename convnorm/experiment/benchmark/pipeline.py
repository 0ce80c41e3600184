"""What a pipeline tells the benchmark: how its runs are made, measured and read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convnorm.experiment.records import Cost, Measure, When


@dataclass(frozen=True)
class Result:
    """What a finished run says.

    measures: name -> how values of it are compared, of every score and of the curve.
    scores: when -> measure -> value; `selected` is that of the weights, or the step, which did best
        on what was held out, and lacks where nothing was.
    selected_step: the step of the selected scores.
    curve: (step, seconds of training, value) of the measure that was followed during training;
        its name is `curve_name`.
    norms: "operator", "matrix" or "rms" -> layer -> (step, singular value); see
        `convnorm.spectrum`.
    protocol: JSON-able, all that has to agree between numbers of one column.
    floor: measure -> value of real images against real ones, if there is such a thing.
    right: when -> measure -> (N,) bool, which images a classifier was right about; positions
        agree between runs of one protocol.
    picture: a PNG of samples at the end, at latents that depend on the seed alone.
    doubts: sentences, what speaks against taking the run's numbers at their face value.
    """

    measures: dict[str, Measure]
    scores: dict[When, dict[str, float]]
    selected_step: int | None
    curve_name: str
    curve: list[tuple[int, float, float]]
    norms: dict[str, dict[str, list[tuple[int, float]]]]
    protocol: dict[str, Any]
    floor: dict[str, float]
    cost: Cost
    hardware: str
    versions: dict[str, str]
    right: dict[When, dict[str, np.ndarray]] = field(default_factory=dict)
    picture: Path | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """One of the suite's pipelines.

    name: its folder under configs/. config: the dataclass of a run. script: what trains one.
    scores: (config, attacks) -> when -> name -> measure, of the scores that such a run will have;
        raises an InputError for attacks that there are not.
    conditions: (config, attacks) -> what of a config decides how its runs are measured.
    share: (config, line of log.jsonl) -> how much of the training is done there, in [0, 1].
    measurements: (run folder, attacks) -> the commands, each a script's name and arguments, that a
        trained run still needs before it can be read.
    read: (run folder, attacks) -> Result of a run that is trained and measured.
    """

    name: str
    config: type
    script: str
    scores: Callable[[Any, Sequence[str]], dict[When, dict[str, Measure]]]
    conditions: Callable[[Any, Sequence[str]], dict[str, Any]]
    share: Callable[[Any, dict[str, Any]], float]
    measurements: Callable[[Path, Sequence[str]], list[list[str]]]
    read: Callable[[Path, Sequence[str]], Result]
