"""Twelve of CIFAR-10-C's image corruptions made locally, and the reader of the official files.

The corruptions and their constants are those of make_cifar_c.py (Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019).
That script sets no seed, so the official images cannot be made again: accuracies on ours are
named by `VERSION` and the seed, and are not to be mixed with published CIFAR-10-C numbers.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.experiment.streams import generator

VERSION = "local-1"
SEVERITIES = (1, 2, 3, 4, 5)

# One entry for each severity; lengths are in pixels and were chosen for 32x32 images.
CONSTANTS = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons that a white pixel receives
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # fraction of values replaced
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),  # standard deviation relative to the value
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, sigma
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),  # sigma
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to HSV's value
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # factor, then summand
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # size relative to the image's
    "jpeg_compression": (80, 65, 58, 50, 40),  # Pillow's quality
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
    HSV is the pixel itself, and their JPEG has no chroma.

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
    return (corrupted.clamp(0, 1) * 255 + 1e-6).to(torch.uint8).to(images.device)


# Each corruption takes x (N, C, H, W) float64 in [0, 1], its constant and N generators, and
# returns the corrupted x, which `corrupt` clamps and rounds.


def gaussian_noise(x: Tensor, scale: float, generators: Iterator[Generator]) -> Tensor:
    """Add a normal number to every value."""
    return x + scale * _draw(x, Tensor.normal_, generators)


def shot_noise(x: Tensor, photons: float, generators: Iterator[Generator]) -> Tensor:
    """Count photons: a Poisson number of them for every value."""
    rates = zip(x * photons, generators, strict=True)
    return torch.stack([torch.poisson(rate, generator=own) for rate, own in rates]) / photons


def impulse_noise(x: Tensor, amount: float, generators: Iterator[Generator]) -> Tensor:
    """Replace a fraction of the values, each by 0 or by 1 with equal chances."""
    chance = _draw(x, Tensor.uniform_, generators)
    return x.masked_fill(chance < amount / 2, 0).masked_fill(chance >= 1 - amount / 2, 1)


def speckle_noise(x: Tensor, scale: float, generators: Iterator[Generator]) -> Tensor:
    """Add a normal number times the value to every value."""
    return x + x * scale * _draw(x, Tensor.normal_, generators)


def defocus_blur(x: Tensor, constant: tuple[float, float], generators: Iterable) -> Tensor:
    """Filter with an antialiased disk; borders are mirrored without repeating the edge."""
    return _filter(x, defocus_kernel(*constant), "reflect")


def gaussian_blur(x: Tensor, sigma: float, generators: Iterable) -> Tensor:
    """Filter with a Gaussian cut off at 4 sigma; borders repeat the edge."""
    radius = int(4 * sigma + 0.5)
    kernel = gaussian(torch.arange(-radius, radius + 1), sigma)
    return _filter(_filter(x, kernel[None], "replicate"), kernel[:, None], "replicate")


def motion_blur(x: Tensor, constant: tuple[int, float], generators: Iterator[Generator]) -> Tensor:
    """Average along a line at a random angle of up to 45 degrees, as ImageMagick's -motion-blur.

    The line begins at the pixel, its weights are one half of a Gaussian, its points are rounded to
    whole pixels, and borders repeat the edge.
    """
    radius, sigma = constant
    number, _, height, width = x.shape
    angles = torch.deg2rad(90 * _draw(x[:, 0, 0, :1], Tensor.uniform_, generators) - 45)  # (N, 1)
    distances = torch.arange(2 * radius + 1)  # (K,)
    down = (distances * angles.sin() - 0.5).ceil().long()  # (N, K)
    right = (distances * angles.cos() - 0.5).ceil().long()
    rows = (torch.arange(height) + down[..., None]).clamp(0, height - 1)  # (N, K, H)
    columns = (torch.arange(width) + right[..., None]).clamp(0, width - 1)  # (N, K, W)
    pixels = x.permute(0, 2, 3, 1).contiguous()
    each = torch.arange(number)[:, None, None]
    blurred = torch.zeros_like(pixels)
    for k, weight in enumerate(gaussian(distances, sigma).tolist()):
        blurred += weight * pixels[each, rows[:, k, :, None], columns[:, k, None, :]]
    return blurred.permute(0, 3, 1, 2)


def brightness(x: Tensor, summand: float, generators: Iterable) -> Tensor:
    """Add to HSV's value; hue and saturation stay."""
    value, saturation, hue = _hsv(x)
    return (value + summand).clamp(max=1) * (1 - saturation * hue)


def contrast(x: Tensor, factor: float, generators: Iterable) -> Tensor:
    """Scale the distance of every value from the image's mean in its channel."""
    means = x.mean((-2, -1), keepdim=True)
    return (x - means) * factor + means


def saturate(x: Tensor, constant: tuple[float, float], generators: Iterable) -> Tensor:
    """Scale HSV's saturation and add to it; gray becomes red where something is added."""
    factor, summand = constant
    value, saturation, hue = _hsv(x)
    return value * (1 - (saturation * factor + summand).clamp(max=1) * hue)


def pixelate(x: Tensor, factor: float, generators: Iterable) -> Tensor:
    """Make the image smaller and larger again with Pillow's box filter."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        small = image.resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
        return small.resize((width, height), Image.Resampling.BOX)

    return _by_pillow(x, change)


def jpeg_compression(x: Tensor, quality: int, generators: Iterable) -> Tensor:
    """Write and read a JPEG through Pillow; other versions of it may differ by some levels."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(x, change)


CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "defocus_blur": defocus_blur,
    "gaussian_blur": gaussian_blur,
    "motion_blur": motion_blur,
    "brightness": brightness,
    "contrast": contrast,
    "saturate": saturate,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}


def gaussian(offsets: Tensor, sigma: float) -> Tensor:
    """Return a Gaussian's float64 weights at `offsets`, with sum 1."""
    return torch.softmax(-(offsets.double() ** 2) / (2 * sigma**2), dim=0)


def defocus_kernel(radius: float, sigma: float) -> Tensor:
    """Return a disk smoothed by a 3x3 Gaussian: (K, K) float64, K odd, with sum 1."""
    edge = int(radius) + 1  # one pixel for the smoothing
    squares = torch.arange(-edge, edge + 1) ** 2
    disk = (squares + squares[:, None] <= radius**2).double()
    smooth = gaussian(torch.arange(-1, 2), sigma)
    smoothed = F.conv2d(disk[None, None], torch.outer(smooth, smooth)[None, None], padding=1)
    return smoothed[0, 0] / disk.sum()


def _filter(x: Tensor, kernel: Tensor, border: str) -> Tensor:
    """Correlate every channel with a (K, L) kernel, K and L odd; `border` is a mode of F.pad."""
    height, width = kernel.shape
    padded = F.pad(x, (width // 2, width // 2, height // 2, height // 2), mode=border)
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).view_as(x)


def _draw(x: Tensor, sample: Callable[..., Tensor], generators: Iterator[Generator]) -> Tensor:
    """Return random numbers of the shape of `x`, every image's from its own generator."""
    numbers = torch.empty_like(x)
    for image, own in zip(numbers, generators, strict=True):
        sample(image, generator=own)
    return numbers


def _hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value and saturation (N, 1, H, W) and the hue: x = value * (1 - saturation * hue).

    The hue (N, C, H, W) tells how far from the largest channel (0) towards the smallest (1) each
    channel lies, which no change of value and saturation alters. Gray has the hue of red.
    """
    value = x.amax(1, keepdim=True)
    span = value - x.amin(1, keepdim=True)
    red = x.new_tensor([0, 1, 1])[: x.shape[1], None, None]
    hue = torch.where(span > 0, (value - x) / span, red)
    return value, torch.where(span > 0, span / value, 0), hue


def _by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    changed = torch.empty_like(x)
    for source, target in zip((x * 255).to(torch.uint8).permute(0, 2, 3, 1), changed, strict=True):
        pixels = source.numpy() if x.shape[1] == 3 else source[..., 0].numpy()
        result = np.atleast_3d(np.asarray(change(Image.fromarray(pixels)), np.float64))
        target.copy_(torch.from_numpy(result).permute(2, 0, 1))
    return changed / 255


def load_official(folder: Path, name: str, test: Images) -> Tensor:
    """Open `folder`/`name`.npy of the official CIFAR-10-C or CIFAR-100-C without reading it.

    The file holds the N test images at severity 1, then at severity 2, and so on:
    (5N, H, W, C) uint8. `labels.npy` beside it holds the 5N labels.

    Args:
        folder: Where the files are.
        name: The corruption, also one that is not in `CORRUPTIONS`, such as "fog".
        test: All clean test images, whose number, size and labels the files must have.

    Returns:
        (5, N, C, H, W) uint8, mapped from the file: index by severity - 1, then by image.

    Raises:
        InputError: A file is missing, truncated or of another shape or type, or the labels differ.
    """
    number, channels, height, width = test.images.shape
    total = len(SEVERITIES) * number
    labels = _open(folder / "labels.npy", np.integer, (total,))
    wrong = (labels.reshape(len(SEVERITIES), number) != test.labels.cpu().numpy()).sum()
    if wrong:
        raise InputError(
            f"{folder / 'labels.npy'}: {wrong} of {total} labels differ from those of the test "
            f"images, expected the {number} test labels {len(SEVERITIES)} times in their order"
        )
    images = _open(folder / f"{name}.npy", np.uint8, (total, height, width, channels))
    return torch.from_numpy(images).unflatten(0, (len(SEVERITIES), number)).permute(0, 1, 4, 2, 3)


def _open(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """Map a .npy file into memory; mode "c" because torch warns of read-only arrays."""
    expected = f"expected {dtype.__name__} {shape}"
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: not a file, {expected}")
    try:
        array = np.lib.format.open_memmap(file, mode="c")
    except FileNotFoundError as error:
        raise InputError(f"{file}: missing, {expected}") from error
    except Exception as error:  # what is raised depends on the damage
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read ({reason:.100}), {expected}") from error
    if not np.issubdtype(array.dtype, dtype) or array.shape != shape:
        raise InputError(f"{file}: got {array.dtype} {array.shape}, {expected}")
    return array
