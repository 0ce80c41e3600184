"""Calibration of a classifier: closed forms of ECE and NLL."""

import math

import pytest
import torch
from scipy.stats import t

from classification.calibration import calibration_error, confidences, mean_nll


def found(confidence: list[float], right: list[int]) -> float:
    return calibration_error(
        torch.tensor(confidence, dtype=torch.float64), torch.tensor(right).bool()
    )


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        ([0.75] * 4, [1, 1, 1, 0], 0.0),  # as sure as right
        ([1.0] * 5, [0] * 5, 1.0),  # sure and wrong
        ([1.0] * 5, [1] * 5, 0.0),
        ([0.1] * 4, [1, 0, 0, 0], 0.15),
        ([0.9, 0.9, 0.5, 0.5], [0, 1, 1, 1], (2 * 0.4 + 2 * 0.5) / 4),  # bins do not cancel
        ([0.61, 0.66], [1, 0], 0.135),  # in one bin they do: (9 / 15, 10 / 15]
        ([0.65, 0.69], [1, 0], (0.35 + 0.69) / 2),  # 2/3 is an end
        ([6 / 10, 0.61], [1, 0], (0.4 + 0.61) / 2),  # the upper end belongs to the bin below
        ([0.0, 1 / 15], [0, 0], 1 / 30),
    ],
)
def test_ece_is_its_closed_form(confidence, right, expected):
    assert found(confidence, right) == pytest.approx(expected, abs=1e-12)


def test_equal_logits_are_the_uniform_distribution():
    rows = confidences(torch.full((6, 10), 3.5), torch.arange(6))
    assert torch.allclose(rows["confidence"], torch.full((6,), 0.1).double(), atol=1e-12)
    assert torch.allclose(rows["nll"], torch.full((6,), math.log(10)).double(), atol=1e-12)


def test_nll_is_minus_the_log_of_the_labels_probability():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    rows = confidences(p.log(), torch.tensor([1, 2]))
    assert rows["nll"].tolist() == pytest.approx([-math.log(0.2), -math.log(0.6)], rel=1e-6)
    assert rows["confidence"].tolist() == pytest.approx([0.7, 0.6], rel=1e-6)


def test_the_largest_logits_of_float32_overflow_nothing():
    """In float32 the difference of the two is infinite."""
    most = torch.finfo(torch.float32).max
    rows = confidences(torch.tensor([[most, -most]] * 2), torch.tensor([0, 1]))
    assert rows["nll"].tolist() == [0, 2 * most]
    assert rows["confidence"].tolist() == [1, 1]
    assert math.isfinite(mean_nll(rows["nll"]).interval[1])


def test_the_interval_of_nll_is_students():
    values = torch.tensor([0.5, 1.5, 1.0, 3.0]).double()
    half = t.ppf(0.975, 3) * values.std().item() / 2
    result = mean_nll(values)
    assert (result.mean, result.n) == (1.5, 4)
    assert result.interval == pytest.approx((1.5 - half, 1.5 + half))
    assert mean_nll(values[:1]).interval is None
