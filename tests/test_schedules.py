"""Learning rates at the steps where an off-by-one shows."""

import pytest

from classification.config import OptimConfig
from classification.schedules import learning_rate


def rates(steps: int, steps_per_epoch: int = 10, **optim) -> list[float]:
    config = OptimConfig(lr=0.4, **optim)
    return [learning_rate(config, step, steps, steps_per_epoch) for step in range(steps)]


def test_multistep_drops_with_the_first_step_after_each_milestone():
    found = rates(40, schedule="multistep", milestones=(1, 3), gamma=0.5)
    assert found == pytest.approx([0.4] * 10 + [0.2] * 20 + [0.1] * 10)


def test_cosine_begins_at_lr_is_half_in_the_middle_and_would_end_at_zero():
    found = rates(40, schedule="cosine")
    assert found[0] == 0.4
    assert found[20] == pytest.approx(0.2)
    assert found[30] == pytest.approx(0.4 * (1 - 2**-0.5) / 2)
    assert 0 < found[-1] < 0.001


def test_onecycle_goes_straight_up_to_lr_and_straight_down():
    found = rates(40, schedule="onecycle", warmup=0.25)
    assert found[0] == 0
    assert found[5] == pytest.approx(0.2)
    assert max(found) == found[10] == pytest.approx(0.4)
    assert found[25] == pytest.approx(0.2)
    assert found[-1] == pytest.approx(0.4 / 30)


def test_constant_is_constant():
    assert rates(3, schedule="constant") == [0.4] * 3
