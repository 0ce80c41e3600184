"""A training step of the classifier: its draws, and an update that nothing else enters."""

from dataclasses import fields

import pytest
import torch
from runs import ALONE, differing, tiny_classifier

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
