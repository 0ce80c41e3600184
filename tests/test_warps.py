"""Corruptions that move pixels, against SciPy's interpolation and the original's loops."""

import math

import numpy as np
import pytest
import torch
from leaves import streams, values
from scipy import ndimage
from torch import Tensor

from classification.corruptions import CONSTANTS, SEVERITIES
from classification.corruptions.blur import glass_blur, zoom_blur
from classification.corruptions.digital import elastic_transform
from classification.corruptions.sampling import (
    filtered,
    mirrored,
    reflected,
    repeated,
    sampled,
    zoomed,
)


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """skimage's gaussian of the original, (..., H, W)."""
    sigmas = (*[0] * (x.ndim - 2), sigma, sigma)
    return ndimage.gaussian_filter(x, sigmas, mode="nearest", truncate=4)


@pytest.mark.parametrize(
    ("border", "mode"), [(repeated, "nearest"), (mirrored, "mirror"), (reflected, "reflect")]
)
def test_borders_are_scipys(border, mode):
    """Also where the image ends many times over."""
    x = values(1, 2, 4, 5)
    kernel = torch.rand(13, 21, dtype=torch.float64)
    expected = ndimage.correlate(x[0].numpy(), kernel[None].numpy(), mode=mode)
    assert filtered(x, kernel, border)[0].numpy() == pytest.approx(expected)
    rows, columns = 30 * torch.rand(2, 1, 4, 5, dtype=torch.float64) - 15
    found = sampled(x, rows, columns, border)[0]
    for channel, own in zip(found, x[0], strict=True):
        where = [rows[0].numpy(), columns[0].numpy()]
        expected = ndimage.map_coordinates(own.numpy(), where, order=1, mode=mode)
        assert channel.numpy() == pytest.approx(expected)


def clipped_zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The original's, of a square (C, H, H)."""
    size = image.shape[-1]
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    image = image[:, top : top + crop, top : top + crop]
    image = ndimage.zoom(image, (1, factor, factor), order=1, mode="nearest")
    trim = (image.shape[-1] - size) // 2
    return image[:, trim : trim + size, trim : trim + size]


@pytest.mark.parametrize("size", [3, 9, 32, 96])
@pytest.mark.parametrize("factor", [1, 1.03, 1.2, 1.25, 1.75, 2.25])
def test_zooms_are_scipys(size, factor):
    x = values(1, 2, size, size)
    assert zoomed(x, factor)[0].numpy() == pytest.approx(clipped_zoom(x[0].numpy(), factor))


@pytest.mark.parametrize(
    ("severity", "end"), [(1, 1.06), (2, 1.11), (3, 1.16), (4, 1.21), (5, 1.26)]
)
def test_zoom_blur_is_the_mean_of_the_image_and_its_zooms(severity, end):
    """The factors of the original are ranges of NumPy: their rounding decides on a pixel."""
    x = values(1)
    factors = np.arange(1, end, 0.01)
    total = x[0].numpy() + sum(clipped_zoom(x[0].numpy(), factor) for factor in factors)
    expected = total / (len(factors) + 1)
    found = zoom_blur(x, CONSTANTS["zoom_blur"][severity - 1], ())
    assert len(factors) == {1: 7, 2: 12, 3: 16, 4: 21, 5: 26}[severity]
    assert found[0].numpy() == pytest.approx(expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_blur_is_the_originals_loop(severity):
    """Pixels moved all at once must be those that one assignment after the other moves."""
    sigma, rounds = CONSTANTS["glass_blur"][severity - 1]
    x = values(2, 3, 12, 9)
    found = glass_blur(x, (sigma, rounds), streams(2))
    for image, own, result in zip(x, streams(2), found, strict=True):
        chances = torch.empty(rounds, 2, 12, 9, dtype=torch.float64).uniform_(generator=own)
        offsets = np.where(chances.numpy() < 0.5, -1, 0)
        pixels = np.uint8(smooth(image.numpy(), sigma) * 255 + 1e-6).transpose(1, 2, 0).copy()
        for offset in offsets:
            for h in range(11, 1, -1):
                for w in range(8, 1, -1):
                    there = h + offset[0, h, w], w + offset[1, h, w]
                    pixels[h, w], pixels[there] = pixels[there], pixels[h, w]
        expected = smooth(pixels.transpose(2, 0, 1) / 255, sigma)
        assert result.numpy() == pytest.approx(expected)


def uniform(generator: torch.Generator, *shape: int) -> np.ndarray:
    """From -1 to 1."""
    return 2 * torch.empty(shape, dtype=torch.float64).uniform_(generator=generator).numpy() - 1


def warped(image: Tensor, severity: int, own: torch.Generator) -> np.ndarray:
    """elastic_transform with SciPy, of (C, H, W): the affine map, inverted, then displacements."""
    _, height, width = image.shape
    side = min(height, width)
    strength, sigma, shift = (side * c for c in CONSTANTS["elastic_transform"][severity - 1])
    arm, x, y = side // 3, width // 2, height // 2
    before = np.array([[x + arm, y + arm], [x + arm, y - arm], [x - arm, y - arm]], float)
    after = before + shift * uniform(own, 3, 2)
    forward = np.linalg.solve(np.c_[before, np.ones(3)], after).T  # (2, 3), as OpenCV's
    inverse = np.linalg.inv(np.r_[forward, [[0, 0, 1]]])
    rows, columns = np.mgrid[:height, :width].astype(float)
    from_x = inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2]
    from_y = inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2]
    channels = [
        ndimage.map_coordinates(channel, [from_y, from_x], order=1, mode="mirror")
        for channel in image.numpy()
    ]
    if not strength:
        return np.stack(channels)
    right, below = (
        strength * ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
        for field in uniform(own, 2, height, width)
    )
    where = [rows + below, columns + right]
    return np.stack(
        [ndimage.map_coordinates(each, where, order=1, mode="reflect") for each in channels]
    )


@pytest.mark.parametrize(("height", "width"), [(32, 32), (10, 17)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_transform_is_scipys(severity, height, width):
    """Rows mistaken for columns, a map that is not inverted, borders of the other kind."""
    x = values(2, 3, height, width)
    found = elastic_transform(x, CONSTANTS["elastic_transform"][severity - 1], streams(2))
    for image, own, result in zip(x, streams(2), found, strict=True):
        expected = warped(image, severity, own)
        assert np.abs(result.numpy() - expected).max() < 1e-9


def test_elastic_transform_moves_points_by_the_constants():
    """The affine map alone moves the three points by at most 2.56 of 32 pixels, and does."""
    x = torch.zeros(200, 1, 32, 32, dtype=torch.float64)
    x[..., 26, 26] = 1
    y = elastic_transform(x, CONSTANTS["elastic_transform"][0], streams(200))[:, 0]
    positions = torch.arange(32).double()
    moved = torch.stack([y.sum(1) @ positions, y.sum(2) @ positions]) / y.sum((1, 2)) - 26
    assert 2 < moved.abs().max() < 2.56 + 0.7  # a point is seen where pixels are
    assert moved.mean().abs() < 0.3
    assert math.isclose(moved.std(), 2.56 / 3**0.5, rel_tol=0.15)
