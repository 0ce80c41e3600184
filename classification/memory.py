"""How much memory the training of a classifier needs at least."""

import torch

from classification.config import ClassifierConfig
from classification.networks import build_network
from convnorm.experiment.run.memory import (
    Estimate,
    bytes_for_backward,
    bytes_of_weights,
    on_paper,
)
from convnorm.normalizers import Normalizer

KEYS = ("model.options", "data.image_size", "train.batch_size")  # what makes it larger
CLASSES = 10  # they count for little


def estimate(config: ClassifierConfig, world_size: int = 1) -> Estimate:
    """Return what each of `world_size` processes needs, without a normalizer.

    Raises InputError for a network that cannot be built.
    """
    model, size = config.model, config.data.image_size
    channels = 1 if config.data.name == "digits" else 3
    num = max(1, config.train.batch_size // world_size)
    with on_paper():
        network = build_network(
            model.arch,
            Normalizer("none"),
            num_classes=CLASSES,
            channels=channels,
            image_size=size,
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
            options=model.options,
            activation=model.activation,
            norm_position=model.norm_position,
            init=model.init,
        )
        batch = bytes_for_backward(lambda: network(torch.zeros(num, channels, size, size)))
    if config.train.precision == "bfloat16":
        batch //= 2  # the least: BatchNorm, for one, keeps float32
    optim = config.optim
    means = 2 if optim.name == "adamw" else int(optim.momentum > 0)
    copies = 2 + means + (config.train.ema_decay > 0)  # of weights and gradients there is one each
    return Estimate(bytes_of_weights(network, copies), batch)
