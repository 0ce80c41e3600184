"""Statistics against published values, closed forms, enumeration and what they promise."""

import math
from dataclasses import asdict
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import binom

from convnorm.experiment.statistics import (
    area_under,
    collapsed,
    geometric_summary,
    holm,
    mcnemar,
    paired,
    plateau,
    summary,
    wilson_interval,
)

# Extra hours of sleep by two drugs in the same ten patients: Cushny and Peebles, 1905, in
# "Student", "The probable error of a mean", 1908.
FIRST = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SECOND = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
NO_SAMPLES = [(), (1.0, math.nan), (1.0, math.inf), (-math.inf,)]


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


def test_a_summary_is_that_of_students_data():
    """R: t.test(sleep$extra[1:10]) and sd()."""
    assert asdict(summary(FIRST)) == {
        "mean": pytest.approx(0.75),
        "sd": pytest.approx(1.789010, abs=5e-7),
        "n": 10,
        "interval": pytest.approx((-0.5297804, 2.0297804), abs=5e-8),
    }


def test_few_seeds_have_the_wide_intervals_of_the_closed_forms():
    """With one degree of freedom t is Cauchy's; with two its quantile is algebraic."""
    two, three = summary([1.0, 4.0]), summary([1.0, 2.0, 6.0])
    assert two.interval[1] - 2.5 == pytest.approx(math.tan(0.475 * math.pi) * 1.5)
    quantile = (2 * 0.975 - 1) / math.sqrt(2 * 0.975 * 0.025)
    assert three.interval[1] - 3 == pytest.approx(quantile * math.sqrt(7 / 3))
    assert three.interval[0] + three.interval[1] == pytest.approx(6)


def test_one_run_has_no_spread():
    assert asdict(summary([1.41])) == {"mean": 1.41, "sd": None, "n": 1, "interval": None}


def test_equal_scores_have_no_spread_by_rounding():
    """A spread of 1e-17 would be printed as one."""
    assert asdict(summary([0.1] * 3)) == {"mean": 0.1, "sd": 0, "n": 3, "interval": (0.1, 0.1)}


def test_values_of_numpy_become_plain_numbers():
    """Others cannot be written as JSON."""
    results = [
        *asdict(summary(np.float32([1, 2, 4]))).values(),
        *asdict(paired(np.arange(3.0), np.array([1.0, 1.5, 0.0]))).values(),
        *asdict(mcnemar(np.array([True, False]), np.array([False, False]))).values(),
        area_under(np.array([[0.0, 1.0], [1.0, 2.0]])),
        collapsed(np.ones(2), np.float64(3), "lower"),
        *holm(np.array([0.01, 0.2])),
    ]
    numbers = [x for result in results for x in (result if type(result) is tuple else (result,))]
    assert {type(number) for number in numbers} == {float, int, bool}


@pytest.mark.parametrize("values", NO_SAMPLES)
def test_no_sample_has_no_statistics(values):
    """A NaN among scores would make every cell of a table NaN, or worse, none."""
    for statistic in (
        lambda: summary(values),
        lambda: paired(values, values),
        lambda: area_under(list(enumerate(values))),
        lambda: collapsed(values, 1.0, "lower"),
    ):
        with pytest.raises(ValueError, match="no sample"):
            statistic()


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    intervals = [summary(row).interval for row in np.random.default_rng(0).normal(5, 2, (4000, 3))]
    assert np.mean([low < 5 < high for low, high in intervals]) == pytest.approx(0.95, abs=0.01)


def test_an_area_is_the_mean_of_the_line_through_the_points():
    """Against the line drawn at 100,001 places: steps far apart count for more."""
    points = [(100, 9.0), (150, 3.0), (400, 4.0), (1100, -1.0)]
    line = np.interp(np.linspace(100, 1100, 100_001), *zip(*points, strict=True))
    assert area_under(points) == pytest.approx(line.mean(), abs=1e-4)
    assert area_under(points) == pytest.approx((50 * 6 + 250 * 3.5 + 700 * 1.5) / 1000)


def test_the_area_of_a_level_curve_is_its_level():
    assert area_under([(50, 2.5), (60, 2.5), (800, 2.5)]) == pytest.approx(2.5)
    assert area_under([(50, 2.5)]) == 2.5


@pytest.mark.parametrize("steps", [(0, 2, 1), (0, 1, 1)])
def test_steps_that_do_not_increase_have_no_area(steps):
    """A log with a step twice, as of a run that resumed, is not a curve."""
    with pytest.raises(ValueError, match="steps do not increase"):
        area_under([(step, 1.0) for step in steps])


@pytest.mark.parametrize(
    ("curve", "final", "better", "expected"),
    [
        ((9.0, 2.0, 3.0), 4.1, "lower", True),
        ((9.0, 2.0, 3.0), 3.9, "lower", False),
        ((9.0, 2.0, 3.0), 1.0, "lower", False),
        ((-0.2, 0.3), -0.2, "lower", False),  # the estimate of a distance may be negative
        ((-0.2, 0.3), 0.3, "lower", True),
        ((0.8, 0.9), 0.75, "higher", True),  # though 0.75 is more than half of 0.9
        ((0.8, 0.9), 0.85, "higher", False),
        ((0.5, 1.0), 0.985, "higher", False),  # one slip of 66 images
        ((0.5, 1.0), 0.975, "higher", True),
        ((0.4, 0.2), 0.0, "higher", True),  # robust overfitting: an error of 0.6 cannot double
        ((0.4, 0.2), 0.21, "higher", False),
        ((0.02, 0.01), 0.0, "higher", False),  # a share near 0 halves by chance
    ],
)
def test_a_run_collapsed_if_it_ended_worse_than_twice_its_best(curve, final, better, expected):
    assert collapsed(curve, final, better) is expected


def test_a_run_that_never_left_real_images_did_not_collapse():
    """FD of 0.05 and then 0.3, where real images are 0.17 from others, is noise."""
    assert collapsed([0.05, 0.3], 0.3, "lower")
    assert not collapsed([0.05, 0.3], 0.3, "lower", resolution=0.17)
    assert collapsed([0.05, 0.35], 0.35, "lower", resolution=0.17)


def test_exactly_twice_the_errors_is_no_collapse_by_rounding():
    n = 367
    for wrong in range(4, n // 3):  # of more, the share of right images halves
        best, final = (n - wrong) / n, (n - 2 * wrong) / n
        assert not collapsed([best], final, "higher"), wrong
        assert collapsed([best], final - 1 / n, "higher"), wrong


def test_what_cannot_be_judged_is_refused():
    """An inception score has no error, and without a resolution a single slip is a collapse."""
    for curve, final in (([7.2, 8.1], 0.5), ([0.5], 7.9), ([-0.1], 0.5)):
        with pytest.raises(ValueError, match="no accuracies"):
            collapsed(curve, final, "higher")
    for final in (math.nan, math.inf):
        with pytest.raises(ValueError, match="no sample"):
            collapsed([1.0], final, "lower")
    for resolution in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="resolution"):
            collapsed([1.0], 1.0, "lower", resolution)


def test_pairs_are_compared_as_students():
    """R: t.test(first, second, paired = TRUE)."""
    assert asdict(paired(FIRST, SECOND)) == {
        "n": 10,
        "difference": pytest.approx(-1.58),
        "interval": pytest.approx((-2.4598858, -0.7001142), abs=5e-8),
        "p": pytest.approx(0.002833, abs=5e-7),
    }


def test_three_pairs_have_the_p_of_the_closed_form():
    """P(|T| > t) = 1 - t / sqrt(2 + t^2) with two degrees of freedom."""
    a, b = (3.0, 5.0, 9.0), (2.0, 3.0, 3.0)
    t = 3 / math.sqrt(7 / 3)
    assert paired(a, b).p == paired(b, a).p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_differences_without_spread_are_no_evidence():
    """Of x / 0 SciPy gives a p of 0, of 0 / 0 a NaN, with a warning or, by rounding, without."""
    for a, b in (
        ([1.0], [0.5]),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([0.3, 0.4, 0.8], [0.1, 0.2, 0.6]),  # differ by 0.2 and by 0.19999999999999998
        ([0.0, 0.0], [0.0, 0.0]),
    ):
        result = paired(a, b)
        assert (result.n, result.interval, result.p) == (len(a), None, None)
        assert result.difference == pytest.approx(a[0] - b[0])


def test_small_differences_with_spread_are_tested():
    assert paired([50.001, 50.002, 50.003], [50, 50, 50]).p == pytest.approx(0.0742, abs=1e-4)


def test_a_score_without_a_partner_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


def test_the_test_of_pairs_warns_falsely_as_often_as_it_says():
    a, b = np.random.default_rng(1).normal(size=(2, 2000, 3)) + 10
    found = [paired(*pairs) for pairs in zip(a, b, strict=True)]
    assert np.mean([each.p <= 0.05 for each in found]) == pytest.approx(0.05, abs=0.01)
    assert all((each.p <= 0.05) != (each.interval[0] < 0 < each.interval[1]) for each in found)


@pytest.mark.parametrize(
    "p_values",
    [(0.01, 0.02, 0.03, 0.04, 0.05), (0.04, 0.01, 0.03, 0.04), (0.9, 0.3, 0.6), (0.02,), (0, 0, 1)],
)
def test_holms_p_is_that_of_the_closed_test(p_values):
    """By definition the largest of Bonferroni's over all sets of hypotheses with this one in."""
    n = len(p_values)
    sets = [chosen for size in range(1, n + 1) for chosen in combinations(range(n), size)]
    expected = [
        max(min(1, len(s) * min(p_values[i] for i in s)) for s in sets if index in s)
        for index in range(n)
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holms_p_is_that_of_r():
    """p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm"); what was not tested counts for nothing."""
    expected = [0.05, 0.08, None, 0.09, 0.09, 0.09]
    found = holm([0.01, 0.02, None, 0.03, 0.04, 0.05])
    assert [p and round(p, 12) for p in found] == expected
    assert holm([None, None]) == [None, None]
    assert holm([]) == []


def test_holm_bounds_the_chance_of_any_false_alarm():
    families = np.random.default_rng(2).uniform(size=(4000, 5))
    alarms = [min(holm(family)) <= 0.05 for family in families]
    assert np.mean(alarms) == pytest.approx(1 - (1 - 0.05 / 5) ** 5, abs=0.01)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match="no p-values"):
        holm([0.5, p])


def classifiers(only_a: int, only_b: int, both: int = 5, neither: int = 3):
    """Which images each of two is right about, with these counts."""
    counts = (only_a, only_b, both, neither)
    return np.repeat([True, False, True, False], counts), np.repeat(
        [False, True, True, False], counts
    )


def test_mcnemar_is_the_published_exact_one():
    """Fay, "Exact McNemar's test and matching confidence intervals", 2010: 9 against 2."""
    result = mcnemar(*classifiers(9, 2, both=21, neither=12))
    assert asdict(result) == {"only_a": 9, "only_b": 2, "p": pytest.approx(0.06543, abs=5e-6)}


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 3), (1, 6), (8, 0), (2, 9)])
def test_mcnemar_counts_the_throws_of_a_coin_that_are_as_uneven(only_a, only_b):
    n = only_a + only_b
    heads = [sum(throws) for throws in product((0, 1), repeat=n)]
    uneven = [abs(2 * count - n) >= abs(only_a - only_b) for count in heads]
    assert mcnemar(*classifiers(only_a, only_b)).p == pytest.approx(np.mean(uneven))


def test_mcnemar_never_warns_falsely_more_often_than_it_says():
    """A mid-p does, for some numbers of images."""
    for n in range(1, 40):
        p_values = np.array([mcnemar(*classifiers(k, n - k)).p for k in range(n + 1)])
        assert binom.pmf(np.arange(n + 1), n, 0.5)[p_values <= 0.05].sum() <= 0.05


def test_classifiers_that_agree_on_every_image_are_not_told_apart():
    assert mcnemar(*classifiers(0, 0)).p == 1


def test_classifiers_on_different_images_are_refused():
    with pytest.raises(ValueError, match="not the same images"):
        mcnemar(np.ones(3, bool), np.ones(1, bool))


def test_a_geometric_summary_is_one_of_logarithms():
    """Catches an arithmetic mean, a factor of n in the spread, and a spread in logarithms."""
    found = geometric_summary([1.0, 10.0, 100.0])
    assert (found.mean, found.factor, found.n) == (pytest.approx(10), pytest.approx(10), 3)
    assert geometric_summary([0.3]).factor is None
    assert geometric_summary([0.3, 0.3]).factor == 1
    for values in (*NO_SAMPLES, (1.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match=r"no sample|no geometric mean"):
            geometric_summary(values)


@pytest.mark.parametrize(
    ("gains", "steps", "expected"),
    [
        ({0: 9.0, 9: 9.0, 10: 2.0, 20: 8.0, 21: 9.0, 100: 9.0}, 100, 4.0),  # both ends count
        ({70: 2.0, 140: 8.0, 69: 9.0, 141: 9.0}, 700, 4.0),
        ({3: 5.0, 6: 5.0}, 30, 5.0),
        ({15: 3.0}, 100, 3.0),
        ({0: 1.0, 5: 1.0, 25: 1.0}, 100, None),
        ({12: 1.0, 15: 0.0}, 100, None),  # flat
        ({1: 0.0, 15: 3.0}, 100, 3.0),
        ({}, 100, None),
    ],
)
def test_a_plateau_is_the_geometric_mean_from_10_to_20_percent(gains, steps, expected):
    found = plateau(list(gains.items()), steps)
    assert found == (expected if expected is None else pytest.approx(expected))
