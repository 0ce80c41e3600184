"""DiffAugment (Zhao et al., 2020): what happens to images, real and fake, before D sees them.

Every augmentation is linear in the images, so that gradients pass through it to a generator and to
penalties, and it takes uniform random numbers that somebody else has drawn. Images are in [-1, 1],
where 0 is mid-grey. Nothing is clamped, as published: colors may leave that range.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from convnorm.experiment.run.batches import shifted


@dataclass(frozen=True)
class Augmentation:
    """One of a policy.

    numbers: how many random numbers it takes for an image.
    apply: (images (N, C, H, W), uniform numbers (N, numbers) in [0, 1)) -> images of that shape.
    """

    numbers: int
    apply: Callable[[Tensor, Tensor], Tensor]


def _color(images: Tensor, uniform: Tensor) -> Tensor:
    """Add -0.5 to 0.5, then scale saturation by 0 to 2, then contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = uniform.view(-1, 3, 1, 1, 1).unbind(1)
    images = images + (brightness - 0.5)
    gray = images.mean(1, keepdim=True)
    images = gray + 2 * saturation * (images - gray)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (images - mean)


def _translation(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift by whole pixels, at most an eighth of each side, and leave 0 behind."""
    reaches = [int(side / 8 + 0.5) for side in images.shape[2:]]
    padding = max(reaches)
    corners = [
        (numbers * (2 * reach + 1)).long() + (padding - reach)
        for numbers, reach in zip(uniform.unbind(1), reaches, strict=True)
    ]
    return shifted(images, torch.stack(corners, 1), padding)


def _cutout(images: Tensor, uniform: Tensor) -> Tensor:
    """Set half of each side to 0; its middle is anywhere, so it may reach over the edge."""
    rows, columns = (  # (N, H), (N, W)
        _half(numbers, size)
        for numbers, size in zip(uniform.unbind(1), images.shape[2:], strict=True)
    )
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _half(uniform: Tensor, size: int) -> Tensor:
    """Which of `size` places lie in a half of them, by numbers (N,) in [0, 1): (N, size)."""
    length = int(size / 2 + 0.5)
    first = (uniform * (size + 1 - length % 2)).long()[:, None] - length // 2
    places = torch.arange(size, device=uniform.device)
    return (places >= first) & (places < first + length)


AUGMENTATIONS = {
    "color": Augmentation(3, _color),
    "translation": Augmentation(2, _translation),
    "cutout": Augmentation(2, _cutout),
}


def augmented(images: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Apply augmentations to images (N, C, H, W) in [-1, 1].

    Colors of bfloat16 images are computed, and returned, in the float32 of their random numbers.

    draws: name, as in `AUGMENTATIONS` -> its uniform numbers, in the order of application.
    """
    for name, uniform in draws.items():
        images = AUGMENTATIONS[name].apply(images, uniform)
    return images
