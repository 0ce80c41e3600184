"""The classifier of a config, and the classifier of a finished run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from classification.config import ClassifierConfig
from classification.networks import build_network
from convnorm.experiment import streams
from convnorm.experiment.run import checkpoint
from convnorm.normalizers import fit_to_maps

FORMAT = "convnorm-suite/classifier/4"


def build(
    config: ClassifierConfig,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """Return the network on the CPU, initialized from the config's seed alone.

    mean, std: of the training images in [0, 1], one a channel; loading a checkpoint replaces them.
    """
    model, size = config.model, config.data.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.generator("cpu", config.seed, "classifier").initial_seed())
        network = build_network(
            model.arch,
            config.normalizer,
            num_classes=num_classes,
            channels=len(mean),
            image_size=size,
            mean=mean,
            std=std,
            options=model.options,
            activation=model.activation,
            norm_position=model.norm_position,
            init=model.init,
        )
        fit_to_maps(network, torch.zeros(1, len(mean), size, size))
    return network


@dataclass(frozen=True)
class LoadedClassifier:
    """The classifier of a run in evaluation mode; its average over steps where one was kept."""

    network: nn.Module  # x: (N, C, H, W) in [0, 1] -> logits (N, num_classes)
    config: ClassifierConfig
    classes: tuple[str, ...]
    channels: int
    step: int
    epoch: int
    file: Path
    sha256: str  # of the checkpoint file
    data_sha256: str | None  # of the training file, see training_data.sha256_of; None if unknown


def load_classifier(file: Path, device: torch.device | str = "cpu") -> LoadedClassifier:
    """Read the classifier of a checkpoint file; InputError if the file is not a complete one."""
    state, sha256 = checkpoint.load_with_hash(file, FORMAT)
    with checkpoint.taken_apart(file):
        config = checkpoint.config_in(state, ClassifierConfig)
        classes, channels = tuple(state["classes"]), state["channels"]
        network = build(config, len(classes), (0.5,) * channels, (0.5,) * channels)
        network.load_state_dict(state["network"] if state["ema"] is None else state["ema"])
        step, epoch, data_sha256 = state["step"], state["epoch"], state["data_sha256"]
    return LoadedClassifier(
        network.to(device).eval().requires_grad_(False),
        config,
        classes,
        channels,
        step,
        epoch,
        file,
        sha256,
        data_sha256,
    )
