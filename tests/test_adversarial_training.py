"""Perturbations of training images against what the papers define."""

import pytest
import torch
import torch.nn.functional as F
from runs import ALONE, classifier_run, differing, state_of, tiny_classifier
from torch import nn

from classification.adversarial_training import (
    cross_entropy_of,
    divergence,
    next_perturbation,
    perturbed,
)
from classification.attacks import logits, pgd
from classification.trainer import Trainer
from classification.training_data import training_data
from convnorm.experiment.data import load_images
from convnorm.experiment.run.loop import take_step


class Linear(nn.Module):
    """Two classes: the logits are 0 and the sum of weight * x, whose gradient has known signs."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(1, 4, 4, generator=random))
        self.norm = nn.BatchNorm2d(1)
        self.norm.weight.data.fill_(2.0)

    def forward(self, x):
        score = (self.norm(x) * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def images(num: int = 6) -> torch.Tensor:
    return torch.rand(num, 1, 4, 4, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 0, 1, 0, 1])


def test_enough_steps_end_at_the_corner_that_is_worst_for_a_linear_network():
    network, x = Linear(), images()
    towards = (1 - 2 * LABELS)[:, None, None, None] * network.weight.detach().sign()
    worst = (x + 0.1 * towards).clamp(0, 1)
    for steps, step_size in ((1, 0.2), (10, 0.025)):
        start = 0.1 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) - 1)
        found = perturbed(
            network, cross_entropy_of(LABELS), x, start, eps=0.1, step_size=step_size, steps=steps
        )
        assert torch.allclose(found, worst, atol=1e-6)


def test_training_images_stay_in_the_ball_and_in_range():
    """A start that is not projected, or a step after the projection, would leave them."""
    x = images()
    start = torch.full_like(x, 0.3)
    for steps in (0, 3):
        found = perturbed(
            Linear(), cross_entropy_of(LABELS), x, start, eps=0.1, step_size=0.07, steps=steps
        )
        assert (found - x).abs().max() <= 0.1 + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1


def test_attacking_leaves_the_network_as_it_was():
    """Attacked in training mode, perturbed images would move the running statistics."""
    network = Linear().train()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = images()
    perturbed(
        network,
        cross_entropy_of(LABELS),
        x,
        torch.zeros_like(x),
        eps=0.1,
        step_size=0.1,
        steps=2,
    )
    assert differing(before, dict(network.state_dict())) == []
    assert network.training
    assert not network.norm.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_the_divergence_is_that_of_the_attacked_from_the_clean_prediction():
    """Kullback-Leibler is not symmetric; TRADES has the clean prediction first."""
    clean, moved = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    p, q = clean.softmax(1), moved.softmax(1)
    expected = (p * (p / q).log()).sum()
    assert divergence(moved, clean).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_free_perturbation_steps_by_sign_and_stays_in_the_ball():
    before = torch.tensor([0.0, 0.02, -0.03, 0.03])
    gradient = torch.tensor([0.5, 3.0, -1.0, 0.0])
    after = next_perturbation(before, gradient, eps=0.03, step_size=0.02)
    assert after.tolist() == pytest.approx([0.02, 0.03, -0.03, 0.03])


def make_trainer(changes: dict) -> Trainer:
    config = tiny_classifier(changes)
    return Trainer(config, training_data(config, load_images(config.data)), ALONE)


def test_free_makes_m_updates_a_minibatch_on_a_perturbation_that_grows(monkeypatch):
    """The definition, step by step, from a network of the same weights."""
    trainer = make_trainer({"adversary.kind": "free", "adversary.repeats": 3, "optim.lr": 0.01})
    shown = []
    descend = Trainer.descend

    def recorded(self, x, labels):
        shown.append((x.detach().clone(), labels))
        descend(self, x, labels)

    monkeypatch.setattr(Trainer, "descend", recorded)
    take_step(trainer)
    images, labels = trainer.batches(0)
    x = images.float() / 255
    assert len(shown) == 3
    assert torch.equal(shown[0][0], x)  # the perturbation begins at zero, once
    assert all(torch.equal(seen_labels, labels) for _, seen_labels in shown)

    reference = make_trainer({"optim.lr": 0.01})
    gradient = torch.autograd.grad(
        F.cross_entropy(reference.state.network(x.requires_grad_()), labels), x
    )[0]
    # Where nothing but rounding is left of a gradient, its sign is anyone's.
    clear = gradient.abs() > 1e-4 * gradient.abs().max()
    assert clear.float().mean() > 0.9
    assert clear[x == 0].any()  # a black pixel, at the bound of its range
    expected = (x.detach() + trainer.eps * gradient.sign()).clamp(0, 1)
    assert torch.equal(shown[1][0][clear], expected[clear])
    assert (shown[1][0] - x.detach()).abs().max() <= trainer.eps + 1e-6
    assert trainer.state.perturbation.abs().max().item() == pytest.approx(trainer.eps)


@pytest.mark.parametrize("reset", [False, True])
def test_the_free_perturbation_is_carried_to_the_next_minibatch_unless_reset(reset):
    trainer = make_trainer({"adversary.kind": "free", "adversary.reset_perturbation": reset})
    take_step(trainer)
    carried = trainer.state.perturbation.clone()
    assert (carried != 0).any()
    first = []
    trainer.descend, descend = (
        lambda x, y: (first.append(x.detach().clone()), descend(x, y)),
        trainer.descend,
    )
    take_step(trainer)
    x = trainer.batches(1)[0].float() / 255
    expected = x if reset else (x + carried).clamp(0, 1)
    assert torch.equal(first[0], expected)


@pytest.mark.parametrize("kind", ["fast", "pgd"])
def test_attacked_minibatches_raise_the_loss_within_eps(kind):
    trainer = make_trainer({"adversary.kind": kind, "adversary.eps": 16.0})
    for _ in range(3):
        take_step(trainer)
    draws = trainer.draw(3)
    x, labels = draws.images, draws.labels
    x_adv = trainer.attack(x, labels, draws.start)
    assert (x_adv - x).abs().max() <= 16 / 255 + 1e-6
    losses = [F.cross_entropy(logits(trainer.state.network, i, 99), labels) for i in (x, x_adv)]
    assert losses[1] > losses[0]


def test_a_random_start_depends_on_the_step_alone():
    a, b = (make_trainer({"adversary.kind": "fast"}) for _ in range(2))
    torch.manual_seed(5)
    start = a.draw(0).start
    assert start.shape == (40, 1, 8, 8)
    assert -a.eps <= start.min() < -0.99 * a.eps  # it fills the ball
    assert 0.99 * a.eps < start.max() <= a.eps
    assert torch.equal(start, b.draw(0).start)
    assert not torch.equal(start, b.draw(1).start)


def test_trades_adds_beta_times_the_mean_divergence():
    """A sum for a mean, the arguments swapped or another weight would train another loss."""
    changes = {"adversary.kind": "trades", "adversary.beta": 3.0, "normalizer.kind": "layer"}
    changes |= {"adversary.eps": 128.0}  # far enough that the divergence is not symmetric
    for form in ({}, {"adversary.as_published": False}):
        trainer, reference = (make_trainer({**changes, **form}) for _ in range(2))
        draws = trainer.draw(0)
        take_step(trainer)
        x, x_adv = draws.images, trainer.state.seen
        p, q = (reference.state.network(i).double().softmax(1) for i in (x, x_adv))
        expected = F.nll_loss(p.log(), draws.labels) + 3 * (p * (p / q).log()).sum() / len(x)
        assert (x_adv - x).abs().max().item() == pytest.approx(trainer.eps, rel=1e-5)
        assert draws.start.std().item() == pytest.approx(1e-3, rel=0.05)
        assert trainer.state.means()["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_penalty_on_the_weights_moves_them():
    """Logged and not added to the loss, it would look as if it worked."""
    weights = []
    for strength in (0.0, 1.0):
        trainer = make_trainer(
            {"normalizer.kind": "ocnn", "normalizer.penalty_weight": strength, "optim.lr": 1e-3}
        )
        take_step(trainer)
        weights.append(dict(trainer.state.network.state_dict()))
    assert differing(*weights) != []


def test_free_uses_the_new_weights_in_each_repeat_under_bfloat16(monkeypatch):
    """Autocast keeps the weights that it has cast until it is left."""
    trainer = make_trainer(
        {"adversary.kind": "free", "train.precision": "bfloat16", "normalizer.kind": "layer"}
    )
    wrong = []

    def compare(module, inputs, output):
        fresh = F.linear(inputs[0], module.weight.bfloat16(), module.bias.bfloat16())
        wrong.append((fresh - output).abs().max().item())

    trainer.state.network.head.linear.register_forward_hook(compare)
    take_step(trainer)
    assert len(wrong) == 4
    assert max(wrong) == 0


def test_every_adversary_uses_its_published_step():
    steps = {"free": 8.0, "fast": 10.0, "pgd": 2.0, "trades": 8 * 0.007 / 0.031}
    for kind, levels in steps.items():
        assert make_trainer({"adversary.kind": kind}).step_size == pytest.approx(levels / 255)
    assert make_trainer({"adversary.step_size": 3.0}).step_size == pytest.approx(3 / 255)


def test_adversarial_training_makes_digits_more_robust(tmp_path):
    """What it is for, at equal updates: 160 of standard training against 40 x 4 of Free's."""
    common = {
        "split.validation": 0.1,
        "split.train_fraction": 1.0,
        "model.options.width": 8,
        "normalizer.kind": "batch",
        "train.batch_size": 64,
        "train.crop": 0,
        "train.flip": False,
        "adversary.eps": 32.0,
        "select.every": 100,
    }
    config = tiny_classifier(common)
    test = load_images(config.data, "test")
    x, y = test.images.float() / 255, test.labels
    robust = {}
    for kind, epochs in (("standard", 8), ("free", 2)):
        changes = {**common, "adversary.kind": kind, "train.epochs": epochs}
        classifier_run(tmp_path / kind, changes)
        trainer = make_trainer(changes)
        trainer.state.network.load_state_dict(state_of(tmp_path / kind)["network"])
        attack = {"norm": "linf", "eps": 32 / 255, "step_size": 8 / 255, "steps": 10}
        x_adv = pgd(trainer.state.network, x, y, **attack)
        predictions = [logits(trainer.state.network, i, 500).argmax(1) for i in (x, x_adv)]
        clean, robust[kind] = ((p == y).float().mean().item() for p in predictions)
        assert clean > 0.9
    assert robust["free"] > robust["standard"] + 0.15, robust
