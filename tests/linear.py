"""Evaluations of a linear classifier on digits, for the tests of what they measure and write."""

import json
from pathlib import Path

import torch
from runs import tiny_classifier
from torch import nn

from classification.evaluate import Options, evaluate
from classification.models import LoadedClassifier
from classification.records import Evaluation
from classification.training_data import sha256_of
from convnorm.experiment.codec import to_json
from convnorm.experiment.data import DataConfig, load_images

CPU = torch.device("cpu")
DIGITS = DataConfig("digits", image_size=8)
TRAINED_ON = sha256_of(load_images(DIGITS, "train"))


def nearest_mean(sharpness: float = 1.0) -> nn.Module:
    """A linear classifier that needs no training: the class whose mean image is nearest."""
    train = load_images(DIGITS, "train")
    x = train.images.flatten(1).double() / 255
    means = torch.stack([x[train.labels == label].mean(0) for label in range(10)])
    linear = nn.Linear(64, 10)
    linear.weight.data = (2 * sharpness * means).float()
    linear.bias.data = (-sharpness * means.square().sum(1)).float()
    return nn.Sequential(nn.Flatten(), linear)


class Rounded(nn.Module):
    """Masks gradients: what is rounded has none, and moves by less than half change nothing."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((4 * x).round() / 4)


def as_of_a_run(folder: Path) -> LoadedClassifier:
    """The linear classifier as if it were of a run in `folder`."""
    config = tiny_classifier({"split.validation": 0.1})
    classes, file = tuple("0123456789"), folder / "best.pt"
    network = nearest_mean().eval()
    return LoadedClassifier(network, config, classes, 1, 7, 2, file, "c" * 64, TRAINED_ON)


def run(loaded: LoadedClassifier, *attacks: str, **changes) -> Evaluation:
    """Evaluate 60 images in batches of 25; return the record."""
    return evaluated(loaded, *attacks, **changes)[0]


def evaluated(loaded: LoadedClassifier, *attacks: str, **changes) -> tuple[Evaluation, dict]:
    """The same, and what is known of single images."""
    found = evaluate(loaded, Options(attacks, **{"num": 60, "batch_size": 25, **changes}), CPU)
    return found.record, found.right


def text(record: Evaluation) -> str:
    return json.dumps(to_json(record), indent=2)
