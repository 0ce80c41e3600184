"""Gradient accumulation: what a batch in parts has to do with the whole one."""

import pytest
import torch
from runs import ALONE, differing, tiny
from torch import nn

from convnorm import CATALOGUE
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import Process
from gan import memory
from gan.draws import Draws
from gan.parts import split
from gan.trainer import Trainer
from gan.training_images import training_images

WITH_PARTS = {
    "none": {
        "normalizer.kind": "none",
        "loss.gradient_penalty": 1.0,
        "train.diffaugment": "color,cutout",
        "train.one_pass": True,
    },
    "spectral": {
        "normalizer.kind": "spectral",
        "normalizer.generator": "spectral",
        "loss.name": "relativistic",
        "loss.r1": 1.0,
        "train.diffaugment": "translation",
    },
    "convnorm": {"normalizer.kind": "convnorm", "normalizer.generator": "convnorm"},
    "operator": {"normalizer.kind": "operator", "model.gradient_normalization": True},
    "ocnn": {"normalizer.kind": "ocnn", "normalizer.penalty_weight": 1.0},
    "projection": {"model.arch": "sngan_cnn", "model.conditional": "projection"},
    "acgan": {
        "model.arch": "sngan_cnn",
        "model.conditional": "acgan",
        "normalizer.kind": "spectral",
        "train.one_pass": True,
    },
}


def make_trainer(changes: dict, process: Process = ALONE) -> Trainer:
    config = tiny({"train.n_dis": 1, **changes})
    return Trainer(config, training_images(load_images(config.data), config), process)


def updated(changes: dict) -> Trainer:
    """A trainer after an update without Adam, in which rounding decides signs of steps."""
    trainer = make_trainer(changes)
    for name in ("optim_g", "optim_d"):
        network = trainer.generator if name == "optim_g" else trainer.discriminator
        setattr(trainer.state, name, torch.optim.SGD(network.parameters()))
    for module in trainer.generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # it would mix the part that it sees
    trainer.update(trainer.draw(0))
    return trainer


@pytest.mark.parametrize("changes", WITH_PARTS.values(), ids=WITH_PARTS)
def test_parts_train_as_the_whole_batch_does(changes):
    """Gradients that are not divided, power iterations of every part, labels of another part."""
    whole, parts = (updated({**changes, "train.accumulate": num}) for num in (1, 4))
    for name in ("generator", "discriminator"):
        one, other = (getattr(trainer, name) for trainer in (whole, parts))
        torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=1e-4, atol=1e-6)
        gradients = [[p.grad for p in network.parameters()] for network in (other, one)]
        size = max(gradient.abs().max() for gradient in gradients[1])
        assert size > 0
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5 * size)
    assert parts.state.means() == pytest.approx(whole.state.means(), rel=1e-4, abs=1e-6)


def test_parts_are_the_batch_in_order():
    draws: Draws = make_trainer({"train.diffaugment": "color", "loss.r1": 1.0}).draw(0)
    draw = draws.discriminator[0]
    cut = split(draw, 4)
    assert [len(part.latents.labels) for part in cut] == [2] * 4
    joined = torch.cat([part.real.images for part in cut])
    assert differing(joined, draw.real.images) == []
    assert differing(torch.cat([p.real.labels for p in cut]), draw.real.labels) == []
    colors = [part.real.augmentation["color"] for part in cut]
    assert differing(torch.cat(colors), draw.real.augmentation["color"]) == []
    assert all(part.penalty_factor is draw.penalty_factor for part in cut)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.accumulate": 0}, "train.accumulate: 0 .* 1 to"),
        ({"train.accumulate": 3}, "train.batch_size: 8 does not divide by the 3 parts"),
        (
            {"train.accumulate": 8, "train.generator_batch_size": 12},
            "train.generator_batch_size: 12 does not divide by the 8 parts",
        ),
        (
            {"train.accumulate": 2, "loss.lecam": 1.0, "loss.lecam_start": 0},
            "train.accumulate: 2 is not allowed; expected 1, or loss.lecam of 0",
        ),
        (
            {"train.accumulate": 2, "normalizer.batch_norm": True},
            "train.accumulate: 2 is not allowed; expected 1, or normalizer.kind",
        ),
        *(
            (
                {"train.accumulate": 2, "normalizer.kind": kind},
                f"train.accumulate: 2 .* normalizer.kind other than '{kind}'",
            )
            for kind, known in CATALOGUE.items()
            if known.mixes_batch
        ),
    ],
)
def test_what_has_no_parts_is_refused(changes, expected):
    with pytest.raises(InputError, match=f"^{expected}"):
        tiny(changes)


def test_the_part_of_a_process_has_to_have_parts():
    expected = "^train.batch_size: 8 does not divide by the 8 parts .*, in each of 2 processes$"
    with pytest.raises(InputError, match=expected):
        make_trainer({"train.accumulate": 8}, Process(torch.device("cpu"), 1, 2))


def test_parts_need_the_memory_of_a_part():
    whole, parts = (memory.estimate(tiny({"train.accumulate": num})) for num in (1, 4))
    assert parts.weights == whole.weights
    assert parts.batch < whole.batch / 3
