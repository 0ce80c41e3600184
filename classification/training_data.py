"""What a run trains and selects on: the parts of one training file, with noisy labels if asked."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from classification import label_noise
from classification.config import ClassifierConfig
from classification.splits import split
from convnorm.experiment.data import (
    DataConfig,
    Images,
    Pixels,
    evenly_spaced,
    has_split,
    parts_of,
)
from convnorm.experiment.data.stored import per_read
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.batches import sha256_of


@dataclass(frozen=True)
class TrainingData:
    """The parts of a training file.

    train, validation: the images with the labels that training and selection see; validation is
        None where the config holds none out. Label noise affects both parts, because someone
        whose labels are noisy has no clean ones to select by.
    clean, noisy: (N,) int64, labels of the whole file. train_positions, validation_positions:
        int64, positions in the file.
    mean, std: of the whole file's pixels in [0, 1], one a channel. sha256: of its images and
        clean labels; together with the config, and the labels of people in `noise.file`, they
        determine everything here.
    """

    train: Images
    validation: Images | None
    clean: torch.Tensor
    noisy: torch.Tensor
    train_positions: torch.Tensor
    validation_positions: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    @property
    def has_scores(self) -> bool:
        """Whether there are validation images or wrong labels, which are scored in training."""
        return self.validation is not None or len(self.mislabelled(1)[1]) > 0

    def mislabelled(self, limit: int) -> tuple[Images, torch.Tensor]:
        """At most `limit` training images with their wrong labels, and their clean labels.

        They are evenly spaced among all that have one.
        """
        clean = self.clean[self.train_positions]
        wrong = (self.train.labels != clean).nonzero().flatten()
        wrong = wrong[evenly_spaced(len(wrong), limit)]
        return self.train.take(wrong), clean[wrong]


def training_data(config: ClassifierConfig, images: Images) -> TrainingData:
    """Split a training file and draw its noisy labels; InputError where the config does not fit."""
    if len(images.classes) < 2:
        raise InputError(f"data: {images.found or 'images of 1 class'}; expected 2 classes or more")
    noisy = label_noise.noisy_labels(images.labels, images.classes, config.noise)
    train, validation = split(images.labels, config.split)
    labelled = replace(images, labels=noisy)
    mean, std = _moments(images.images)
    return TrainingData(
        labelled.take(train),
        labelled.take(validation) if len(validation) else None,
        images.labels,
        noisy,
        train,
        validation,
        mean,
        std,
        sha256_of(images),
    )


def without_test_images(data: DataConfig) -> str | None:
    """Return what to say before training on data without a test split; None where there is one."""
    if has_split(data, "test"):
        return None
    return (
        f"data.root: {data.root} has no test images; evaluate_cls.py will need --split validation, "
        "or --data_root with a folder or file that has both"
    )


def noise_report(data: TrainingData, config: ClassifierConfig) -> dict[str, Any]:
    """Return the requested and the actual label noise of each part, ready for JSON."""
    report = {}
    for part in ("train", "validation"):
        positions = getattr(data, f"{part}_positions")
        report[part] = label_noise.describe(
            data.clean[positions], data.noisy[positions], len(data.train.classes), config.noise
        )
    return report


def _moments(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, scaled to [0, 1]."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in parts_of(images, per_read(images.shape)):
        counts += torch.stack([c.flatten().bincount(minlength=256) for c in part.unbind(1)])
    means, stds = [], []
    for density in counts.double() / (images.shape.numel() // images.shape[1]):
        mean = (density * levels).sum()
        means.append(mean.item())
        stds.append((density * (levels - mean).square()).sum().sqrt().item())
    return tuple(means), tuple(stds)
