"""CIFAR-10-C's nineteen image corruptions made locally, and the reader of the official files.

The corruptions and their constants are those of make_cifar_c.py (Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019).
That script sets no seed, so the official images cannot be made again: accuracies on ours are
named by `VERSION` and the seed, and are not to be mixed with published CIFAR-10-C numbers. Our
frost has a procedural texture in place of the original's photographs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from classification.corruptions.blur import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from classification.corruptions.colours import brightness, contrast, saturate
from classification.corruptions.constants import CONSTANTS, EXTRA, FIFTEEN, SEVERITIES
from classification.corruptions.digital import elastic_transform, jpeg_compression, pixelate
from classification.corruptions.drops import spatter
from classification.corruptions.noise import (
    gaussian_noise,
    impulse_noise,
    shot_noise,
    speckle_noise,
)
from classification.corruptions.official_files import load_official
from classification.corruptions.sampling import whole
from classification.corruptions.weather import fog, frost, snow
from convnorm.experiment.errors import InputError
from convnorm.experiment.streams import generator

__all__ = [
    "CONSTANTS",
    "CORRUPTIONS",
    "EXTRA",
    "FIFTEEN",
    "PROCEDURAL",
    "SEVERITIES",
    "VERSION",
    "applicable",
    "corrupt",
    "load_official",
]

VERSION = "local-2"  # to be raised where an image changes, or which corruptions there are
PROCEDURAL = ("frost",)  # made of something else than the original

CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}


def applicable(name: str, channels: int) -> bool:
    """Say whether a corruption is for images with so many channels: saturate needs colour."""
    return name != "saturate" or channels == 3


def corrupt(images: Tensor, name: str, severity: int, *, seed: int, indices: Tensor) -> Tensor:
    """Corrupt images as CIFAR-10-C does, computed in float64 on the CPU.

    Every image's random numbers are a function of `seed`, `name`, `severity` and its index only,
    so the batches into which a data set is cut and their order do not matter.

    The result is rounded down, as in the original. Where the exact value is whole, float errors
    take a level from it there and not here, so that all machines agree; the blurs of the original
    have less precise sums. Both change at most one level. Gray images stay gray: their value in
    HSV is the pixel itself, their JPEG has no chroma, and ice, water and mud have their luma.

    Args:
        images: (N, C, H, W) uint8, C 1 or 3.
        name: One of `CORRUPTIONS`.
        severity: One of `SEVERITIES`.
        seed: Seed of the corrupted copy of the data set.
        indices: (N,) integers, the images' positions in the data set.

    Returns:
        (N, C, H, W) uint8, on the device of `images`.

    Raises:
        InputError: `name` or `severity` is unknown, or `name` is not applicable to gray images.
    """
    if name not in CORRUPTIONS:
        raise InputError(f"corruption: got {name!r}, expected one of {', '.join(CORRUPTIONS)}")
    if type(severity) is not int or severity not in SEVERITIES:
        raise InputError(f"severity of {name}: got {severity!r}, expected one of {SEVERITIES}")
    if not applicable(name, images.shape[1]):
        raise InputError(f"corruption {name}: got {images.shape[1]} channel, expected 3")
    if images.dtype != torch.uint8:
        raise TypeError(f"images: got {images.dtype}, expected torch.uint8")
    generators = (generator("cpu", seed, "corrupt", name, severity, i) for i in indices.tolist())
    x = images.cpu().contiguous().double() / 255  # numbers are drawn in the order of memory
    corrupted = CORRUPTIONS[name](x, CONSTANTS[name][severity - 1], generators)
    return whole(corrupted).to(torch.uint8).to(images.device)
