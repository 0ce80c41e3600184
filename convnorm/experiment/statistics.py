"""From the scores of some runs and images to what they say about others.

Seeds are few, so intervals and tests of means are Student's. They take the scores to be normal,
which nobody can check with three seeds. Intervals are at 95 %, tests are two-sided.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, mean, stdev
from typing import Literal

import numpy as np
from scipy.stats import binomtest, t, ttest_rel

from convnorm.experiment.records import GeometricSummary, Interval, Summary

LEVEL = 0.05  # of tests: where p, after any correction, is below it, there is a difference
CONFIDENCE = 1 - LEVEL
PLATEAU = (10, 20)  # percent of a training, in which a gain has left its start behind
# Relative to the values: differences that vary by less vary by rounding alone.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Paired:
    """A t-test of `n` pairs.

    difference: mean of a - b.
    interval: t-interval of that mean. p: p-value, if there were no difference. Both are None for a
        single pair and where all differences are equal, as the t statistic would divide by 0.
    """

    n: int
    difference: float
    interval: Interval | None
    p: float | None


@dataclass(frozen=True)
class McNemar:
    """A test of two classifiers on the same images.

    only_a, only_b: how many images one classifier alone is right about.
    p: p-value, if both were right equally often.
    """

    only_a: int
    only_b: int
    p: float


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval (low, high) of a proportion, after `successes` among `n`.

    By Wilson (1927), without continuity correction: it lies inside [0, 1] and, near both ends,
    where accuracies under attack are, its coverage is closer to the nominal one than that of other
    intervals. It speaks of other test images, not of other training seeds.

    Raises:
        ValueError: `n` is 0, or `successes` is not in 0 to `n`.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"no proportion: {successes} of {n}")
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def summary(values: Sequence[float]) -> Summary:
    """Summarize the scores of runs that differ in their seed.

    Raises:
        ValueError: There is no value, or one that is not finite.
    """
    values = _finite(values)
    n, centre = len(values), mean(values)
    if n == 1:
        return Summary(centre, None, n, None)
    sd = stdev(values)  # in exact arithmetic, as `mean`: 0, not 1e-17, where all are equal
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(centre, sd, n, (centre - half, centre + half))


def geometric_summary(values: Sequence[float]) -> GeometricSummary:
    """Summarize the gains of runs that differ in their seed.

    Raises:
        ValueError: There is no value, or one that is not finite and above 0.
    """
    values = _finite(values)
    if min(values) <= 0:
        raise ValueError(f"no geometric mean: {values}; expected numbers above 0")
    logs = [math.log(value) for value in values]
    factor = None if len(values) == 1 else math.exp(stdev(logs))
    return GeometricSummary(math.exp(fmean(logs)), factor, len(values))


def plateau(points: Sequence[tuple[int, float]], steps: int) -> float | None:
    """Return the geometric mean of a gain from 10 to 20 % of a training, both ends included.

    points: (step, gain). steps: of the whole training, which may be longer than what is measured.

    None where no point lies there, or one is 0, which has no logarithm: D is flat, or was not
    measured.
    """
    low, high = PLATEAU
    gains = [gain for step, gain in points if low * steps <= 100 * step <= high * steps]
    if not gains or min(gains) <= 0:
        return None
    return math.exp(fmean(math.log(gain) for gain in gains))


def area_under(points: Sequence[tuple[float, float]]) -> float:
    """Return the area under a curve of (step, value), over the range of steps.

    It is computed by trapezoids and divided by the range, so that it is the mean height of the
    curve, in units of the value. The area under a single point is its value. Only areas over the
    same range of steps can be compared.

    Raises:
        ValueError: There is no point, one is not finite, or steps do not increase.
    """
    steps = _finite(step for step, _ in points)
    values = _finite(value for _, value in points)
    widths = [after - before for before, after in pairwise(steps)]
    if any(width <= 0 for width in widths):
        raise ValueError(f"steps do not increase: {steps}")
    if len(values) == 1:
        return values[0]
    return fmean(map(fmean, pairwise(values)), weights=widths)


def collapsed(
    curve: Sequence[float],
    final: float,
    better: Literal["lower", "higher"],
    resolution: float = 0.01,
) -> bool:
    """Return whether a run ended worse than twice the best value of its curve.

    Where higher is better, values are accuracies in [0, 1]. Such a run collapsed if its error,
    1 - accuracy, is more than twice the best one, or its accuracy less than half the best one: a
    large error cannot double, and a high accuracy is lost long before it halves.

    final: the value at the end; may be of other images than the curve.
    resolution: the smallest value, error or half accuracy that counts; a smaller one is taken to be
        as large. Otherwise one slip after a best value of 0 would be a collapse. 0.01 suits
        accuracies; for a distance, take that between real images.

    Raises:
        ValueError: There is no value, one is not finite or, where higher is better, not in [0, 1],
            or `resolution` is 0 or less.
    """
    values, last = _finite(curve), _finite([final])[0]
    if not resolution > 0:
        raise ValueError(f"resolution is {resolution}; expected more than 0")
    if better == "higher":
        if not all(0 <= value <= 1 for value in (*values, last)):
            raise ValueError(f"no accuracies: {values} and {last}; expected 0 to 1")
        half = max(values) / 2
        if half > resolution and last < half and not math.isclose(last, half):
            return True
        values, last = [1 - value for value in values], 1 - last
    limit = 2 * max(min(values), resolution)
    return last > limit and not math.isclose(last, limit)  # twice, but for rounding, is no more


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compare two ways of training by their scores, (n,) each, at the same seeds in the same order.

    Raises:
        ValueError: There is no pair, a value without a partner, or one that is not finite.
    """
    a, b = _finite(a), _finite(b)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n, difference = len(differences), fmean(differences)
    if max(differences) - min(differences) <= ROUNDING * max(map(abs, a + b)):
        return Paired(n, difference, None, None)
    test = ttest_rel(a, b)
    low, high = test.confidence_interval(CONFIDENCE)
    return Paired(n, difference, (float(low), float(high)), float(test.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for their number, in the order given.

    By the step-down procedure of Holm (1979): calling everything at most 0.05 a difference is wrong
    somewhere with a probability of at most 0.05, however the tests depend on each other. None, for
    a test that could not be made, stays None and does not count.

    Raises:
        ValueError: A p-value is not in 0 to 1.
    """
    if bad := [p for p in p_values if p is not None and not 0 <= p <= 1]:
        raise ValueError(f"no p-values: {bad}")
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * float(p)))
        adjusted[index] = largest
    return adjusted


def mcnemar(a: np.ndarray, b: np.ndarray) -> McNemar:
    """Compare two classifiers by which of the same images, (N,) bool, each is right about.

    The exact form of the test of McNemar (1947): if both are equally good, each image that only one
    of them is right about is a fair coin. It speaks of these two networks on other images, not of
    other training seeds.

    Raises:
        ValueError: `a` and `b` do not have one length.
    """
    if a.shape != b.shape:
        raise ValueError(f"not the same images: {len(a)} and {len(b)}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    p = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return McNemar(only_a, only_b, p)


def _finite(values: Iterable[float]) -> list[float]:
    values = [float(value) for value in values]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"no sample: {values}; expected finite numbers, at least one")
    return values
