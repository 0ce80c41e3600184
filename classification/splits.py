"""Which images of the training file train, which validate, and which stay unused."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convnorm.experiment.config.fields import LARGEST_SEED, bounded, check_ranges
from convnorm.experiment.data.strata import shuffled_classes
from convnorm.experiment.errors import InputError


@dataclass(frozen=True)
class SplitConfig:
    """How the training file is divided; the test file is never part of it.

    Args:
        validation: the fraction of each class that is held out to select models; 0 holds out none.
        train_fraction: the fraction of the rest of each class that trains.
        seed: of the split alone, so that runs of different training seeds have the same split.
    """

    validation: float = bounded(0.1, least=0, below=1)
    train_fraction: float = bounded(1.0, above=0, most=1)
    seed: int = bounded(0, least=0, most=LARGEST_SEED)

    def __post_init__(self):
        check_ranges(self, "split")


def split(labels: Tensor, config: SplitConfig) -> tuple[Tensor, Tensor]:
    """Return the sorted positions of the training and of the validation images.

    Both are stratified: every class gives the same fraction, rounded to a whole number of images,
    so that classes of equal size stay equal. The validation images do not depend on
    `train_fraction`, and a smaller fraction's training images are among a larger one's.

    Args:
        labels: (N,) int64, the clean ones, so that label noise does not change the split.

    Returns:
        Two disjoint int64 tensors of positions in `labels`.

    Raises:
        InputError: A class has no image left to train on, or none for the validation asked for.
    """
    train, validation = [], []
    for label, positions in shuffled_classes(labels, config.seed, "split"):
        held_out, trained = _sizes(label, len(positions), config)
        validation.append(positions[:held_out])
        train.append(positions[held_out : held_out + trained])
    train, validation = (torch.cat(parts).sort().values for parts in (train, validation))
    assert not torch.isin(validation, train).any(), "validation images would be trained on"
    return train, validation


def _sizes(label: int, count: int, config: SplitConfig) -> tuple[int, int]:
    """How many of a class's `count` images validate and how many train."""
    held_out = round(config.validation * count)
    trained = round(config.train_fraction * (count - held_out))
    if config.validation > 0 and held_out == 0:
        raise InputError(
            f"split.validation: {config.validation} of the {count} images of class {label} is "
            "no image; expected more, or 0 for no validation"
        )
    if held_out == count:
        raise InputError(
            f"split.validation: {config.validation} of the {count} images of class {label} "
            "leaves none to train on; expected less"
        )
    if trained == 0:
        raise InputError(
            f"split.train_fraction: {config.train_fraction} of the {count - held_out} training "
            f"images of class {label} is no image; expected more"
        )
    return held_out, trained
