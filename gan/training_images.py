"""Which of the real images train a GAN."""

from dataclasses import replace

import torch

from convnorm.experiment.data import Images
from convnorm.experiment.data.strata import shuffled_classes
from convnorm.experiment.errors import InputError
from gan.config import GanConfig


def training_images(images: Images, config: GanConfig) -> Images:
    """Return the images that train: `train.fraction` of each class, rounded to a whole number.

    They are a function of the seed and the fraction, and a smaller fraction's are among a larger
    one's. Scores and their floor have all images, whatever the fraction.

    Raises InputError where a class has no image left.
    """
    fraction = config.train.fraction
    if fraction == 1:
        return images
    chosen = []
    for label, positions in shuffled_classes(images.labels, config.seed, "fraction"):
        number = round(fraction * len(positions))
        if number == 0:
            raise InputError(
                f"train.fraction: {fraction} of the {len(positions)} images of class "
                f"{images.classes[label]!r} is no image; expected more"
            )
        chosen.append(positions[:number])
    taken = images.take(torch.cat(chosen).sort().values)
    return replace(taken, found=f"{images.found}; {len(taken.images)} to train on")
