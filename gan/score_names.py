"""What the numbers of a score are called, and how their values compare."""

from dataclasses import dataclass, replace
from typing import Literal

from convnorm.experiment.records import Metric

# What can be computed from features; the last two from logits.
Number = Literal[
    "frechet",
    "frechet_corrected",
    "kernel",
    "kernel_error",
    "precision",
    "recall",
    "coverage",
    "classifier",
    "classifier_std",
]


@dataclass(frozen=True)
class ScoreName:
    """What a number is called, and how its values compare.

    Args:
        name: What records and tables call it.
        metric: How its values compare; None for the spread of a score, which is no score itself.
    """

    name: str
    metric: Metric | None


Scores = dict[Number, ScoreName]

LOWER, HIGHER = Metric("lower"), Metric("higher")
FROM_FEATURES: Scores = {
    "frechet": ScoreName("FD", LOWER),
    "frechet_corrected": ScoreName("FD corrected", LOWER),
    "kernel": ScoreName("KID", LOWER),
    "kernel_error": ScoreName("KID s.e.", None),
    "precision": ScoreName("precision", HIGHER),
    "recall": ScoreName("recall", HIGHER),
    "coverage": ScoreName("coverage", HIGHER),
}
FROM_LOGITS: Scores = {
    "classifier": ScoreName("CS", HIGHER),
    "classifier_std": ScoreName("CS std", None),
}


def renamed(pattern: str, scores: Scores) -> Scores:
    """Return the scores under the names that `pattern` makes of theirs, e.g. "{} (digits)"."""
    return {
        number: replace(score, name=pattern.format(score.name)) for number, score in scores.items()
    }


def of_statistics(scores: Scores) -> Scores:
    """Return the scores that can be had where only mean and covariance of the real features are
    known, the Fréchet distance under a name that says so.
    """
    found = {number: score for number, score in scores.items() if number in FROM_LOGITS}
    distance = scores["frechet"]
    return {"frechet": replace(distance, name=f"{distance.name} (reference statistics)"), **found}


def metrics(scores: Scores) -> dict[str, Metric]:
    """Return name -> how its values compare, without the spreads."""
    return {score.name: score.metric for score in scores.values() if score.metric is not None}
