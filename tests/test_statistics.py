"""Intervals against published values, closed forms and their promise of coverage."""

import math

import pytest
from scipy.stats import binom

from convnorm.experiment.statistics import wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_it_is_the_published_interval_without_continuity_correction(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_it_solves_its_defining_equation():
    """At each end, the proportion seen lies z standard errors of that end away."""
    for end in wilson_interval(37, 120, confidence=0.95):
        standard_error = math.sqrt(end * (1 - end) / 120)
        assert abs(37 / 120 - end) / standard_error == pytest.approx(1.959964, abs=1e-5)


def test_more_confidence_is_a_wider_interval():
    low, high = wilson_interval(30, 100, confidence=0.8)
    wide_low, wide_high = wilson_interval(30, 100, confidence=0.99)
    assert wide_low < low < 0.3 < high < wide_high


def test_none_and_all_stay_in_range_and_have_a_width():
    """The usual interval has no width there, and says that a robust accuracy of 0 is certain."""
    assert wilson_interval(0, 50)[0] == 0
    assert wilson_interval(0, 50)[1] == pytest.approx(0.0713, abs=1e-3)
    assert wilson_interval(50, 50)[1] == 1
    assert wilson_interval(50, 50)[0] == pytest.approx(1 - 0.0713, abs=1e-3)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_it_holds_the_truth_about_as_often_as_it_says(p):
    n = 200
    covering = [
        k for k in range(n + 1) if wilson_interval(k, n)[0] <= p <= wilson_interval(k, n)[1]
    ]
    assert sum(binom.pmf(k, n, p) for k in covering) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(successes, n)
