"""How much memory the training of a GAN needs at least."""

import torch

from convnorm.experiment.data.pixels import height_and_width
from convnorm.experiment.run.memory import (
    Estimate,
    bytes_for_backward,
    bytes_of_weights,
    on_paper,
)
from convnorm.normalizers import Normalizer
from gan.config import GanConfig
from gan.networks import build_discriminator, build_generator
from gan.networks.conditional import Conditioning

# What makes it larger.
KEYS = (
    "model.options",
    "model.z_dim",
    "data.image_size",
    "train.batch_size",
    "train.generator_batch_size",
)
ADAM = 4  # the weights, their gradients and two means


def estimate(config: GanConfig, world_size: int = 1) -> Estimate:
    """Return what each of `world_size` processes needs, with plain networks.

    Raises InputError for networks that cannot be built.
    """
    model, train = config.model, config.train
    shape = {
        "image_size": config.data.image_size,
        "channels": 1 if config.data.name == "digits" else 3,
        "options": model.options,
        # How many there are is known once the data are read; the least number.
        "conditioning": Conditioning(model.conditional, num_classes=2),
    }
    real, fake = (
        max(1, size // (world_size * train.accumulate))
        for size in (train.batch_size, train.generator_batch_size)
    )
    with on_paper():
        generator = build_generator(model.arch, z_dim=model.z_dim, **shape)
        discriminator = build_discriminator(model.arch, Normalizer("none"), **shape)

        def discriminate(num: int) -> torch.Tensor:
            size = (num, shape["channels"], *height_and_width(shape["image_size"]))
            return discriminator(torch.zeros(size), torch.zeros(num, dtype=torch.long))

        def generate() -> torch.Tensor:
            labels = torch.zeros(fake, dtype=torch.long)
            return discriminator(generator(torch.zeros(fake, model.z_dim), labels), labels)

        updates = (lambda: [discriminate(real), discriminate(real)]), generate
        batch = max(map(bytes_for_backward, updates))
    average = train.ema_decay > 0
    weights = bytes_of_weights(generator, ADAM + average) + bytes_of_weights(discriminator, ADAM)
    return Estimate(weights, batch)
