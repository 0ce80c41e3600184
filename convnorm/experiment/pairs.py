"""The record of two runs that are held against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnorm.experiment.records import CurvePoint, Metric, When


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    kind: of its normalizer. scores: when -> name -> value. curve: the score that was followed
    during training. plateau_gain: of a discriminator, see `statistics.plateau`. picture: a PNG of
    samples at the end of training. doubts: each a reason not to take the scores at face value.
    """

    folder: Path
    kind: str
    seed: int
    scores: dict[When, dict[str, float]]
    curve: tuple[CurvePoint, ...]
    plateau_gain: float | None
    picture: Path | None
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class ImageTest:
    """McNemar's exact test of the two classifiers on the same images, see `statistics.McNemar`.

    p_holm: adjusted for all tests of the two runs.
    """

    when: When
    score: str
    images: int
    only_a: int
    only_b: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Pair:
    """Two runs of one pipeline that were measured in the same way.

    settings: dotted key of a config -> its values in A and in B, where these differ; None where one
    has no such key. metrics: of every score. curve_name: None where the two followed different
    scores. notes: sentences on what the two do not have in common.
    """

    pipeline: str
    a: Side
    b: Side
    settings: dict[str, tuple[Any, Any]]
    metrics: dict[str, Metric]
    curve_name: str | None
    tests: tuple[ImageTest, ...]
    notes: tuple[str, ...]
