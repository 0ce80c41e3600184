"""A folder of trained weights that others can use; `gan.publishing` writes it, this reads it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
from torch import Tensor

from convnorm.experiment import codec, files
from convnorm.experiment.config import yaml_text
from convnorm.experiment.errors import InputError

MODEL = "model.json"
# Not config.yaml: such a folder is no run, and no training shall take it for one that it can go on.
CONFIG = "training.yaml"
GENERATOR, DISCRIMINATOR = "generator.safetensors", "discriminator.safetensors"
SCORES, SAMPLES, CARD = "scores.json", "samples.png", "README.md"


@dataclass(frozen=True)
class Published:
    """What model.json says of the weights beside it.

    channels, num_classes: of the images. classes: their names; none where the generator is not
        conditional. step: how many steps it was trained. selected: whether score.select chose that
        step. ema: whether its weights are averages.
    checkpoint_sha256: of the checkpoint that they were in. data_sha256: of the images and labels
        that were trained on.
    files: name -> SHA-256, of all else in the folder but the card.
    """

    FORMAT: ClassVar = "convnorm-suite/published-gan/1"

    channels: int
    num_classes: int
    classes: tuple[str, ...]
    step: int
    selected: bool
    ema: bool
    checkpoint_sha256: str
    data_sha256: str
    files: dict[str, str]


def is_published(folder: Path) -> bool:
    """Whether a folder is one of published weights."""
    return (folder / MODEL).is_file()


def read(folder: Path) -> tuple[dict[str, Any], str]:
    """Return what the checkpoint held that the weights are from, and its SHA-256.

    It holds what `models.load_generator` reads, and the discriminator where it was published.
    Raises InputError where a file is missing, or is not the one that was published.
    """
    model = codec.read(Published, folder / MODEL, "that of published weights")
    if missing := {CONFIG, GENERATOR}.difference(model.files):
        raise InputError(f"{folder / MODEL}: files: lacks {min(missing)}; expected its SHA-256")
    _check(folder, CONFIG, model)
    generator = _weights(folder, GENERATOR, model)
    state = {
        "config": yaml_text.read(folder / CONFIG),
        "channels": model.channels,
        "num_classes": model.num_classes,
        "classes": model.classes,
        "step": model.step,
        "generator": generator,
        "ema": generator if model.ema else None,
    }
    if DISCRIMINATOR in model.files:
        state["discriminator"] = _weights(folder, DISCRIMINATOR, model)
    return state, model.checkpoint_sha256


def _weights(folder: Path, name: str, model: Published) -> dict[str, Tensor]:
    return safetensors.torch.load(_check(folder, name, model))


def _check(folder: Path, name: str, model: Published) -> bytes:
    """Return the content of a file that is the one that was published."""
    file, expected = folder / name, model.files[name]
    content = files.read(file, f"the file that {MODEL} names")
    if hashlib.sha256(content).hexdigest() != expected:
        raise InputError(f"{file}: changed since it was published; expected SHA-256 {expected}")
    return content
