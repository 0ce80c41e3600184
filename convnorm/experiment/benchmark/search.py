"""Finds the factor that leads to a gain, among few and dear trials.

In log-log a gain over its factor is nearly straight: exactly so at the start of a stack of layers,
where each layer has the factor once; less so with shortcuts, and once training has reacted to it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Trial

DIGITS = 5  # of a factor, so that it can be read and typed
# Of the slope in log-log that may carry beyond all trials; noise alone can make any.
LEAST_EXPONENT, MOST_EXPONENT = 0.5, 100.0
LONGEST_STEP = 4.0  # by which a factor grows or shrinks beyond all trials


@dataclass(frozen=True)
class Method:
    """How a gain is matched.

    tolerance: how far off a trial may be, relative to the gain. rounds: of trials, at most.
    interpolates: whether a factor that was not tried will do, between two trials or as far beyond
        one as `tolerance` goes, where each of them is a training.
    """

    tolerance: float
    rounds: int
    interpolates: bool


METHODS = {
    "init_matched": Method(tolerance=0.02, rounds=30, interpolates=False),
    "plateau_matched": Method(tolerance=0.05, rounds=5, interpolates=True),
}


@dataclass(frozen=True)
class Problem:
    """A gain whose factor is sought.

    name: for errors. family: problems of one family have the same gain at the same factor.
    exponent: of the power law by which the second factor is guessed. least, most: of factors.
    """

    name: str
    family: str
    gain: float
    method: Method
    exponent: float
    least: float
    most: float


@dataclass(frozen=True)
class Found:
    """A factor with its gain, measured, interpolated or extrapolated; doubts: sentences."""

    scale: float
    gain: float
    doubts: tuple[str, ...] = ()


def search(
    problems: Sequence[Problem], measured: Callable[[str, float], float | None]
) -> tuple[dict[str, tuple[Found, tuple[Trial, ...]]], list[tuple[str, float]]]:
    """Try factors round by round until all are found, or until a gain is not known yet.

    It is a function of the measured gains: called again with more of them, it goes on where it was.

    Args:
        measured: (family, factor) -> the gain; None where it is not known yet.

    Returns:
        name -> what was found and the trials of its family so far; and the (family, factor) of one
        round whose gains are missing.

    Raises:
        InputError: A gain is out of reach.
    """
    trials: dict[str, dict[float, float]] = defaultdict(dict)
    found = {}
    for rounds in range(max(problem.method.rounds for problem in problems) + 1):
        asked = []
        for problem in problems:
            if problem.name not in found:
                known = _sorted(trials[problem.family])
                step = _next(problem, known, rounds)
                if isinstance(step, Found):
                    found[problem.name] = step, known
                else:
                    asked.append((problem.family, step))
        gains = {place: measured(*place) for place in dict.fromkeys(asked)}
        if missing := [place for place, gain in gains.items() if gain is None]:
            return found, missing
        for (family, factor), gain in gains.items():
            trials[family][factor] = gain
    return found, []


def _sorted(trials: dict[float, float]) -> tuple[Trial, ...]:
    return tuple(Trial(factor, gain) for factor, gain in sorted(trials.items()))


def _next(problem: Problem, trials: Sequence[Trial], rounds: int) -> float | Found:
    """Return the next factor to try or, if that is enough, what was found."""
    gain, method = problem.gain, problem.method
    if not trials:
        return 1.0  # as published
    near = _nearest(trials, gain)
    pair = _around(trials, gain)
    factor = _between(*pair, gain) if pair else _beyond(trials, gain, problem.exponent)
    factor = min(max(float(f"{factor:.{DIGITS}g}"), problem.least), problem.most)
    if abs(near.gain / gain - 1) <= method.tolerance:
        return Found(factor, gain) if method.interpolates else Found(near.scale, near.gain)
    if rounds < method.rounds and all(factor != trial.scale for trial in trials):
        return factor
    if pair and method.interpolates:
        doubt = (
            f"no pilot is within {method.tolerance:.0%} of the gain {gain:g}: the nearest has "
            f"{near.gain:.3g} at {near.scale:g}, and {factor:g} is interpolated"
        )
        return Found(factor, gain, (doubt,))
    told = ", ".join(f"{trial.gain:.3g} at {trial.scale:g}" for trial in trials)
    raise InputError(
        f"{problem.name}: the gain {gain:g} is out of reach: after {len(trials)} factors there are "
        f"{told}; expected a gain between these"
    )


def _nearest(trials: Sequence[Trial], gain: float) -> Trial:
    return min(trials, key=lambda trial: abs(math.log(trial.gain / gain)))


def _around(trials: Sequence[Trial], gain: float) -> tuple[Trial, Trial] | None:
    """Return the two neighbours, closest to each other, between whose gains a gain lies."""
    pairs = [
        (a, b) for a, b in pairwise(trials) if min(a.gain, b.gain) <= gain <= max(a.gain, b.gain)
    ]
    return min(pairs, key=lambda pair: pair[1].scale / pair[0].scale, default=None)


def _between(a: Trial, b: Trial, gain: float) -> float:
    """Return the factor of a gain on the line through two trials."""
    if a.gain == b.gain:
        return a.scale
    share = math.log(gain / a.gain) / math.log(b.gain / a.gain)
    return a.scale * (b.scale / a.scale) ** share


def _beyond(trials: Sequence[Trial], gain: float, exponent: float) -> float:
    """Return the factor by the power law through the two trials nearest to a gain."""
    near = _nearest(trials, gain)
    if others := [trial for trial in trials if trial is not near]:
        other = _nearest(others, gain)
        exponent = math.log(near.gain / other.gain) / math.log(near.scale / other.scale)
    exponent = min(max(exponent, LEAST_EXPONENT), MOST_EXPONENT)
    step = (gain / near.gain) ** (1 / exponent)
    return near.scale * min(max(step, 1 / LONGEST_STEP), LONGEST_STEP)
