"""Ways in which real images get worse, each in steps, as a generator's could be.

Three spoil every image and leave their variety; two spoil the variety and leave every image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from classification import corruptions
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.experiment.streams import generator

# (images in random order, how many, strength) -> indices of as many of them.
Choose = Callable[[Images, int, float], Tensor]
# ((N, C, H, W) uint8, strength, seed) -> the same, spoiled.
Spoil = Callable[[Tensor, float, int], Tensor]


def first(images: Images, num: int, strength: float) -> Tensor:
    """Choose the first images, as where nothing is changed."""
    return torch.arange(num)


def drop_classes(images: Images, num: int, dropped: float) -> Tensor:
    """Choose no image of the last `dropped` classes, and more of the others for them.

    Raises:
        InputError: The others have too few.
    """
    kept = (images.labels < len(images.classes) - dropped).nonzero().flatten()
    if len(kept) < num:
        raise InputError(
            f"--num: got {num}, but without {dropped:g} of {len(images.classes)} classes there are "
            f"{len(kept)} images to change; expected no more than that"
        )
    return kept[:num]


def duplicate(images: Images, num: int, copies: float) -> Tensor:
    """Choose fewer images, each `copies` times; the last one less often if num is no multiple."""
    return torch.arange(num) // int(copies)


def unspoiled(images: Tensor, strength: float, seed: int) -> Tensor:
    """Leave every image as it is."""
    return images


def noise(images: Tensor, sigma: float, seed: int) -> Tensor:
    """Add normal noise with a standard deviation of `sigma` grey levels.

    The noise of an image at another strength is the same but for its size.
    """
    streams = (generator("cpu", seed, "noise", index) for index in range(len(images)))
    return _levels(corruptions.gaussian_noise(images.double() / 255, sigma / 255, streams))


def blur(images: Tensor, sigma: float, seed: int) -> Tensor:
    """Filter with a Gaussian of `sigma` pixels."""
    return _levels(corruptions.gaussian_blur(images.double() / 255, sigma, ()))


def jpeg(images: Tensor, quality: float, seed: int) -> Tensor:
    """Write and read as a JPEG of Pillow's `quality`."""
    return _levels(corruptions.jpeg_compression(images.double() / 255, int(quality), ()))


def _levels(pixels: Tensor) -> Tensor:
    """Turn floats in [0, 1] into the nearest bytes."""
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Change:
    """A way to change images: which are chosen, and what is done to each.

    Args:
        name: What tables and figures call it.
        unit: What its strengths are.
        strengths: From the weakest to the strongest, without the one that changes nothing.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    choose: Choose = first
    spoil: Spoil = unspoiled


UNCHANGED = Change("unchanged", "", (0,))
CHANGES = (
    Change("noise", "standard deviation in grey levels", (2, 4, 8, 16, 32), spoil=noise),
    Change("blur", "standard deviation in pixels", (0.4, 0.5, 0.7, 1.0, 1.5), spoil=blur),
    Change("JPEG", "quality", (95, 85, 75, 50, 25), spoil=jpeg),
    Change("classes dropped", "of all classes", (1, 2, 3, 4, 5), choose=drop_classes),
    Change("duplicates", "copies of each image", (2, 4, 10, 50, 250), choose=duplicate),
)
