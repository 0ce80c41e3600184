"""LeCam's term against its formula, and its anchors over the steps of a run."""

import pytest
import torch
from runs import ALONE, log_of, run, state_of, tiny

from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.loop import take_step
from gan.lecam import lecam, move
from gan.losses import LOSSES
from gan.trainer import Trainer

ANCHORS = torch.tensor([1.0, -0.5])  # of real, of fake


def gradients(real: list[float], fake: list[float]) -> tuple[float, list[float], list[float]]:
    """The term, and its gradients by the logits of real images and of fakes."""
    logits = [torch.tensor(each, requires_grad=True) for each in (real, fake)]
    term = lecam(*logits, ANCHORS)
    return term.item(), *(g.tolist() for g in torch.autograd.grad(term, logits))


def test_the_term_equals_its_formula():
    real, fake = [2.0, -1.0, 0.5], [0.0, 3.0]
    expected = (2.5**2 + 0 + 1.0**2) / 3 + (1.0**2 + 0) / 2
    assert gradients(real, fake)[0] == pytest.approx(expected)


def test_it_does_nothing_where_the_discriminator_is_less_sure_than_the_anchors():
    """A square without the relu, as the paper prints it, would pull from there, too."""
    assert gradients([-0.5, -0.6, -9.0], [1.0, 1.1, 9.0]) == (0, [0, 0, 0], [0, 0, 0])


def test_equal_logits_and_anchors_are_at_rest():
    logits, anchors = torch.full((4,), 0.3), torch.full((2,), 0.3)
    assert lecam(logits, logits, anchors).item() == 0


def test_beyond_the_anchors_the_gradient_grows_linearly():
    """And it points back: real logits down to the anchor of fakes, fakes up to that of reals."""
    _, real, fake = gradients([0.5, 1.5], [0.0, -1.0])
    assert real == pytest.approx([1.0, 2.0])
    assert fake == pytest.approx([-1.0, -2.0])


def test_anchors_are_moving_averages_without_a_gradient():
    anchors = ANCHORS.clone()
    real, fake = (torch.tensor(each, requires_grad=True) for each in ([1.0, 5.0], [0.5, 0.5]))
    move(anchors, real, fake, 0.9, ALONE)
    torch.testing.assert_close(anchors, torch.tensor([0.9 + 0.3, -0.45 + 0.05]))
    assert not anchors.requires_grad
    move(anchors, real, fake, 0.0, ALONE)
    assert torch.equal(anchors, torch.tensor([3.0, 0.5]))


def test_anchors_are_those_of_all_processes(monkeypatch):
    """Processes with anchors of their own would train different losses, and save one of them."""
    other = torch.tensor([7.0, -3.0])

    def average_(self, tensors):
        tensors[0].add_(other).div_(2)

    monkeypatch.setattr(Process, "average_", average_)
    anchors = torch.zeros(2)
    move(anchors, torch.tensor([1.0]), torch.tensor([2.0]), 0.0, ALONE)
    assert torch.equal(anchors, torch.tensor([4.0, -0.5]))


# In a run


def make_trainer(changes: dict) -> Trainer:
    config = tiny({"loss.lecam": 0.3, **changes})
    return Trainer(config, load_images(config.data), ALONE)


@pytest.mark.parametrize("start", [0, 2])
def test_anchors_follow_every_update_of_the_discriminator(start):
    """Before the start they are the means of the last update: an average of old ones would lag."""
    trainer, means = make_trainer({"loss.lecam_start": start}), []
    original = trainer.discriminator_loss

    def discriminator_loss(draw):
        loss, terms, d_real = original(draw)
        means.append(torch.stack([terms["d_real"], terms["d_fake"]]).detach())
        assert ("lecam" in terms) == (trainer.state.step >= start)
        return loss, terms, d_real

    trainer.discriminator_loss = discriminator_loss
    for _ in range(4):
        take_step(trainer)
    assert len(means) == 4 * 2
    first = max(2 * start, 1)
    expected = means[first - 1]
    for each in means[first:]:
        expected = 0.9 * expected + 0.1 * each
    torch.testing.assert_close(trainer.state.anchors, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_added_to_every_loss_of_the_discriminator(name):
    trainer = make_trainer({"loss.name": name, "loss.lecam_start": 0, "loss.lecam": 0.5})
    trainer.state.anchors.copy_(torch.tensor([2.0, -2.0]))
    draws = trainer.draw(1)
    loss, terms, _ = trainer.discriminator_loss(draws.discriminator[0])
    assert terms["lecam"].item() > 1
    torch.testing.assert_close(loss, terms["loss_d"] + 0.5 * terms["lecam"])
    assert trainer.generator_loss(draws.generator)[1].keys() == {"loss_g"}


def test_it_is_off_until_its_start_and_logged_from_there_on(tmp_path):
    changes = {"log.every": 1, "steps": 3}
    run(tmp_path / "without", changes)
    run(tmp_path / "with", {**changes, "loss.lecam": 10.0, "loss.lecam_start": 2})
    without, plus = log_of(tmp_path / "without"), log_of(tmp_path / "with")
    assert plus[:3] == without[:3]  # of step 0 too
    assert plus[3].pop("lecam") > 0
    assert plus[3] != without[3]
    anchors = state_of(tmp_path / "with")["anchors"]
    assert anchors.shape == (2,)
    assert (anchors != 0).all()


def test_a_start_after_the_last_step_is_refused():
    """The published start would leave a run of the digits as it is, without a word."""
    tiny({"steps": 1000})
    tiny({"steps": 1001, "loss.lecam": 0.3})
    with pytest.raises(InputError) as error:
        tiny({"steps": 700, "loss.lecam": 0.3})
    assert str(error.value) == (
        "loss.lecam_start: 1000 is not allowed; expected less than 700, the number of steps"
    )
