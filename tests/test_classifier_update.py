"""A training step of the classifier: its draws, and an update that nothing else enters."""

import copy
from dataclasses import fields

import pytest
import torch
from runs import ALONE, differing, tiny_classifier
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
)

from classification.draws import Draws
from classification.trainer import Trainer
from classification.training_data import training_data
from convnorm.experiment.data import load_images
from convnorm.experiment.run.loop import take_step

ADVERSARIES = ("standard", "free", "fast", "pgd", "trades")
every_adversary = pytest.mark.parametrize("adversary", ADVERSARIES)


def make_trainer(changes: dict) -> Trainer:
    config = tiny_classifier({"adversary.steps": 2, "train.ema_decay": 0.9, **changes})
    return Trainer(config, training_data(config, load_images(config.data)), ALONE)


def values(draws: Draws) -> dict:
    return {field.name: getattr(draws, field.name) for field in fields(draws)}


# Draws


@every_adversary
def test_draws_are_a_function_of_the_step(adversary):
    """A generator that lives on, or a draw from the global one, would depend on what was before."""
    first, second = (make_trainer({"adversary.kind": adversary}) for _ in range(2))
    for step in (4, 0, 1, 2):
        second.draw(step)
        take_step(second)
    torch.manual_seed(7)
    found = second.draw(3)
    assert differing(values(first.draw(3)), values(found)) == []
    assert differing(values(first.draw(2)), values(found)) != []


@every_adversary
def test_only_attacks_that_begin_at_random_have_a_start(adversary):
    draws = make_trainer({"adversary.kind": adversary}).draw(0)
    assert (draws.start is not None) == (adversary in ("fast", "pgd", "trades"))
    assert draws.images.dtype == torch.float32
    assert 0 <= draws.images.min() <= draws.images.max() <= 1


def test_the_decay_of_the_average_grows_to_that_of_the_config():
    trainer = make_trainer({"train.ema_decay": 0.3})
    decays = [trainer.draw(step).ema_decay for step in range(4)]
    assert decays == [1 / 10, 2 / 11, 3 / 12, 0.3]


@every_adversary
def test_draws_hold_every_random_number(adversary):
    """Two trainers whose surroundings differ end equal by the same draws."""
    states = []
    for seed in (0, 1):
        trainer = make_trainer({"adversary.kind": adversary, "normalizer.kind": "spectral"})
        draws = [trainer.draw(step) for step in range(2)]
        torch.manual_seed(seed)
        trainer.state.step = 100 * seed  # an update that counts steps would see it
        for drawn in draws:
            trainer.update(drawn)
        state = trainer.state.state_dict()
        states.append({key: state[key] for key in ("network", "ema", "optimizer", "perturbation")})
        assert trainer.state.step == 100 * seed
    assert differing(*states) == []


# Updates


@pytest.mark.parametrize("kind", ["batch", "spectral"])
@every_adversary
def test_an_update_waits_for_no_value(adversary, kind):
    """Fake tensors have no values: whatever would wait for a device raises."""
    changes = {"adversary.kind": adversary, "normalizer.kind": kind, "train.precision": "bfloat16"}
    trainer, fake = make_trainer(changes), FakeTensorMode()
    draws = trainer.draw(0)
    with FakeCopyMode(fake):
        trainer, draws = copy.deepcopy((trainer, draws))
    with fake:
        for _ in range(2):  # the second has momentum
            trainer.update(draws)
        assert all(isinstance(value, FakeTensor) for value in trainer.state.network.parameters())
        with pytest.raises(DataDependentOutputException):
            trainer.state.means()  # the watch works


# Dynamo's own way to trace an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "adversary"),
    [("none", "trades"), ("spectral", "standard"), ("convnorm", "standard")],
)
def test_the_loss_compiles_once_for_all_steps(kind, adversary):
    """One graph, where a break raises; a number that enters it would compile it in every step."""
    changes = {"normalizer.kind": kind, "adversary.kind": adversary, "train.epochs": 7}
    trainer, eager = make_trainer(changes), make_trainer(changes)
    torch.compiler.reset()
    trainer.loss = torch.compile(trainer.loss, backend="aot_eager", fullgraph=True)
    for each in (trainer, eager):
        take_step(each)
    weights, expected = (each.state.network.state_dict() for each in (trainer, eager))
    torch.testing.assert_close(weights, expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(20):
            take_step(trainer)
    torch.compiler.reset()
