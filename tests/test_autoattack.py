"""AutoAttack: what the package does by itself, and nothing of what it leaves behind."""

import logging
import sys

import numpy as np
import pytest
import torch
from torch import nn

from classification.attacks import logits, pgd
from classification.autoattack import STAGES, autoattack, check_tiles
from convnorm.experiment.errors import InputError

pyautoattack = pytest.importorskip("pyautoattack")
EPS = {"linf": 0.02, "l2": 0.08}
every_norm = pytest.mark.parametrize("norm", EPS)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """A tenth of the steps and few queries: these tests are about what surrounds the attacks."""
    set_version = pyautoattack.AutoAttack._set_version

    def shorter(self, version):
        set_version(self, version)
        assert self.square.n_queries == 5000
        self.square.n_queries = 50
        for attack in (self.apgd, self.apgd_targeted, self.fab):
            assert attack.n_iter == 100
            assert attack.n_restarts == 1
            attack.n_iter = 10

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shorter)


def images(n: int = 24) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def network(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, classes),
    )
    with torch.no_grad():
        model(images())
    return model.eval()


def labels(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return logits(model, x, len(x)).argmax(1)


@every_norm
def test_outcome_is_what_the_model_says(norm, capfd):
    """Stages that are named wrongly, a budget that is not kept, output that nobody asked for."""
    model, x = network(), images()
    y = labels(model, x)
    y[:3] = (y[:3] + 1) % 5
    outcome = autoattack(model, x, y, norm=norm, eps=EPS[norm], seed=0)
    robust = torch.tensor([by is None for by in outcome.fooled_by])
    assert outcome.fooled_by[:3] == ["clean"] * 3
    assert set(outcome.fooled_by[3:]) <= {None, *STAGES}
    assert len(set(outcome.fooled_by)) >= 3
    assert torch.equal(labels(model, outcome.x_adv) == y, robust)
    untouched = (outcome.x_adv == x).flatten(1).all(1)
    assert torch.equal(untouched, robust | (torch.arange(24) < 3))
    far = (outcome.x_adv - x).flatten(1).norm(p=2 if norm == "l2" else torch.inf, dim=1)
    assert far.max() <= EPS[norm] + 1e-6
    assert 0 <= outcome.x_adv.min() <= outcome.x_adv.max() <= 1
    by_pgd = pgd(model, x, y, norm=norm, eps=EPS[norm], step_size=EPS[norm] / 4, steps=20)
    assert robust.sum() <= (labels(model, by_pgd) == y).sum()
    assert capfd.readouterr() == ("", "")


@every_norm
def test_stage_by_stage_is_the_standard_evaluation(norm):
    """Another order, seed, number of targets or set of images than the package's own run."""
    model, x = network(classes=10), images()
    y = labels(model, x)
    y[:3] = (y[:3] + 1) % 10
    outcome = autoattack(model, x, y, norm=norm, eps=EPS[norm], seed=7)
    trace = sys.gettrace()
    theirs = pyautoattack.AutoAttack(model, norm=norm.capitalize(), eps=EPS[norm], seed=7)
    assert tuple(theirs.attacks_to_run) == STAGES
    try:
        x_adv, _ = theirs.run_standard_evaluation(x, y, batch_size=len(x))
    finally:
        sys.settrace(trace)
    assert not torch.equal(x_adv, x)
    assert torch.equal(outcome.x_adv, x_adv)


@every_norm
def test_the_first_stages_alone_find_what_they_find_in_the_whole(norm):
    """Stages that share a stream of random numbers would find something else."""
    model, x = network(), images()
    y = labels(model, x)
    y[:3] = (y[:3] + 1) % 5
    settings = {"norm": norm, "eps": EPS[norm], "seed": 3}
    whole = autoattack(model, x, y, **settings)
    first = autoattack(model, x, y, **settings, stages=STAGES[:2])
    found = [by if by in ("clean", *STAGES[:2]) else None for by in whole.fooled_by]
    assert first.fooled_by == found
    assert None in found
    fooled = [by is not None for by in found]
    assert torch.equal(first.x_adv[fooled], whole.x_adv[fooled])


class Odd(nn.Module):
    """The logits are the first pixels: inverting an image turns their order around."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5).flatten(1)[:, : self.classes]


@pytest.mark.parametrize(("classes", "targets"), [(5, 4), (10, 9), (12, 9)])
def test_each_stage_has_its_turn_at_what_is_left(monkeypatch, classes, targets):
    """Random networks fall to the first stages; here every stage fools one image more.

    Targets that do not exist, an untargeted FAB, which takes another path through the package.
    """
    seen = []

    def invert_the_first(self, x, y):
        seen.append((len(x), getattr(self, "n_target_classes", None), vars(self).get("targeted")))
        return torch.cat([1 - x[:1], x[1:]])

    for name in ("APGDAttack", "APGDAttack_targeted", "FABAttack_PT", "SquareAttack"):
        attack = getattr(pyautoattack.autoattack, name)
        monkeypatch.setattr(attack, "perturb", invert_the_first)
    model, x = Odd(classes), images(6)
    outcome = autoattack(model, x, labels(model, x), norm="linf", eps=1, seed=0)
    assert outcome.fooled_by == [*STAGES, None, None]
    assert seen == [(6, None, None), (5, targets, None), (4, targets, True), (3, None, False)]


def test_nothing_is_left_behind():
    """The package reseeds torch, replaces the trace function and takes any mode as it comes."""
    model, x = network(), images(8)
    y = labels(model, x)
    model.train()
    model[1].eval()
    model[6].bias.requires_grad = False
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def trace(*_):
        return None

    def condition():
        return {
            "modes": [module.training for module in model.modules()],
            "frozen": [parameter.requires_grad for parameter in model.parameters()],
            "gradients": [parameter.grad.sum().item() for parameter in model.parameters()],
            "state": [value.sum().item() for value in model.state_dict().values()],
            "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
            "trace": sys.gettrace(),
        }

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        expected = condition()
        autoattack(model, x, y, norm="linf", eps=0.02, seed=0)
        assert condition() == expected
    finally:
        sys.settrace(before)


def test_the_mode_and_the_memory_format_change_nothing():
    """BatchNorm attacked with the statistics of the batch; a `view` of a channels_last gradient."""
    model, x = network(), images().expand(-1, 2, -1, -1)
    model[0] = nn.Conv2d(2, 8, 3, padding=1)
    y = labels(model, x)
    expected = autoattack(model, x, y, norm="l2", eps=0.1, seed=0)
    last = x.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    with torch.inference_mode():
        outcome = autoattack(model.train(), last, y, norm="l2", eps=0.1, seed=0)
    assert outcome.fooled_by == expected.fooled_by
    assert torch.equal(outcome.x_adv, expected.x_adv)


def test_the_seed_decides():
    model, x = network(), images()
    y = labels(model, x)
    first, again, other = (
        autoattack(model, x, y, norm="linf", eps=0.02, seed=seed).x_adv for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_warnings_of_zero_gradients_stay_in_the_log(caplog):
    class Steps(nn.Module):
        def forward(self, x):
            return 10 * (4 * x.flatten(1)[:, :5]).floor()

    model, x = Steps(), images(4)
    with caplog.at_level(logging.DEBUG):
        autoattack(model, x, labels(model, x), norm="linf", eps=0.001, seed=0)
    warned = [record for record in caplog.records if "zero gradient" in record.getMessage()]
    assert warned
    assert all(record.levelno == logging.DEBUG for record in warned)


def test_too_few_classes_are_refused():
    """The targeted loss reads the fourth largest logit."""
    model, x = network(classes=3).train(), images(4)
    y = torch.zeros(4, dtype=torch.long)
    with pytest.raises(InputError, match="needs at least 4 classes, the model has 3"):
        autoattack(model, x, y, norm="linf", eps=0.1, seed=0)
    assert model.training
    model = network(classes=4)
    autoattack(model, x, labels(model, x), norm="linf", eps=0.02, seed=0)


@pytest.mark.parametrize("size", [*((n, n) for n in range(3, 36)), (20, 24), (24, 20), (10, 33)])
def test_sizes_that_squares_tiles_do_not_fit_are_known(size):
    """By what the package does with them: it would end hours later, without a result."""
    predict = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 4))
    square = pyautoattack.square.SquareAttack(predict, "L2", n_queries=1, eps=0.5, device="cpu")
    x, fits, works = torch.rand(2, 1, *size), True, True
    try:
        check_tiles("autoattack_l2", *size)
    except InputError:
        fits = False
    try:
        with torch.no_grad():
            square.perturb(x, predict(x).argmax(1))
    except (RuntimeError, ZeroDivisionError):
        works = False
    assert fits == works


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    x = images(4)
    with pytest.raises(InputError, match="pyautoattack"):
        autoattack(network(), x, x, norm="linf", eps=0.1, seed=0)


def test_no_image_is_no_error():
    x = images()[:0]
    outcome = autoattack(network(), x, torch.zeros(0).long(), norm="linf", eps=0.1, seed=0)
    assert outcome.x_adv.shape == x.shape
    assert outcome.fooled_by == []
