"""Snow, frost, fog and spatter, against slow versions and OpenCV's rules in closed form."""

import numpy as np
import pytest
import torch
from leaves import corrupted, flat, leaves, streams, values
from scipy import ndimage
from test_warps import clipped_zoom, smooth

from classification.corruptions import CONSTANTS, PROCEDURAL, SEVERITIES
from classification.corruptions.colours import luma
from classification.corruptions.drops import _distances, edges, equalized, spatter
from classification.corruptions.weather import ICE, fog, frost, plasma, snow
from convnorm.experiment.streams import generator

LUMA = np.array([0.299, 0.587, 0.114])


def normal(own: torch.Generator, *shape: int) -> np.ndarray:
    return torch.empty(shape, dtype=torch.float64).normal_(generator=own).numpy()


# -------------------------------------------------------------------------------------- snow


def motion_blurred(layer: np.ndarray, degrees: float, radius: int, sigma: float) -> np.ndarray:
    """ImageMagick's, pixel by pixel, of (H, W)."""
    height, width = layer.shape
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    blurred = np.zeros_like(layer)
    for k, weight in enumerate(weights / weights.sum()):
        down = int(np.ceil(k * np.sin(np.deg2rad(degrees)) - 0.5))
        right = int(np.ceil(k * np.cos(np.deg2rad(degrees)) - 0.5))
        for row in range(height):
            for column in range(width):
                there = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
                blurred[row, column] += weight * layer[there]
    return blurred


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_is_the_originals(severity):
    """Flakes on one side only, a threshold before the zoom, or gray by the mean of channels."""
    constant = CONSTANTS["snow"][severity - 1]
    mean, scale, zoom, threshold, radius, sigma, kept = constant
    x = values(1, 3, 14, 14)
    (own,) = streams(1)
    layer = clipped_zoom(mean + scale * normal(own, 1, 14, 14), zoom)[0]
    layer = np.where(layer < threshold, 0, layer).clip(0, 1)
    degrees = 90 * torch.empty(1, dtype=torch.float64).uniform_(generator=own).item() - 135
    layer = motion_blurred(np.floor(255 * layer) / 255, degrees, radius, sigma)
    image = x[0].numpy()
    white = np.maximum(image, 1.5 * np.tensordot(LUMA, image, 1) + 0.5)
    expected = kept * image + (1 - kept) * white + layer + np.rot90(layer, 2)
    assert snow(x, constant, streams(1))[0].numpy() == pytest.approx(expected)


def test_snow_falls_within_45_degrees_of_upright():
    """One flake leaves a streak that is higher than wide; the turned layer has it once more."""
    images = corrupted(flat(0, number=8, channels=1), "snow", 5).double()
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    along = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    assert across > 1.2 * along


# ------------------------------------------------------------------------------------- frost


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_is_the_image_and_ice_in_the_originals_shares(severity):
    kept, added = constant = CONSTANTS["frost"][severity - 1]
    x = values(4, 3, 20, 31)
    ice = frost(torch.zeros_like(x), constant, streams(4)) / added
    assert torch.allclose(frost(x, constant, streams(4)), kept * x + added * ice)
    parts = 255 * ice / torch.tensor(ICE)[:, None, None]
    assert torch.allclose(parts[:, 0], parts[:, 1])  # of one colour
    assert torch.allclose(parts[:, 0], parts[:, 2])
    assert 0 <= parts.min() < 0.1
    assert 0.9 < parts.max() <= 1
    assert 0.3 < parts.mean() < 0.9
    gray = frost(torch.zeros_like(x[:, :1]), constant, streams(4)) / added
    assert torch.allclose(gray, luma(ice))


def test_frost_says_that_it_is_not_the_official_one():
    assert PROCEDURAL == ("frost",)
    assert "not the official frost" in frost.__doc__


# --------------------------------------------------------------------------------------- fog


def slow_plasma(wobbles: np.ndarray, decay: float) -> np.ndarray:
    """The diamond-square algorithm, point by point, on a torus."""
    size = len(wobbles)
    heights, step, wobble = np.zeros((size, size)), size, 100.0

    def fill(row: int, column: int, neighbours: list[tuple[int, int]]) -> None:
        mean = sum(
            heights[(row + down) % size, (column + right) % size] for down, right in neighbours
        )
        heights[row, column] = mean / 4 + wobble * wobble * wobbles[row, column]

    while step >= 2:
        half = step // 2
        square = [(-half, -half), (-half, half), (half, -half), (half, half)]
        diamond = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for row in range(half, size, step):
            for column in range(half, size, step):
                fill(row, column, square)
        for row in range(0, size, half):
            for column in range(0, size, half):
                if (row + column) // half % 2:
                    fill(row, column, diamond)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


@pytest.mark.parametrize("size", [2, 4, 16, 32])
@pytest.mark.parametrize("decay", [3, 1.75])
def test_plasma_is_the_diamond_square_algorithms(size, decay):
    wobbles = 2 * torch.rand(2, size, size, dtype=torch.float64) - 1
    found = plasma(wobbles, decay)
    for own, fractal in zip(wobbles, found, strict=True):
        assert fractal.numpy() == pytest.approx(slow_plasma(own.numpy(), decay), abs=1e-9)


def test_fog_is_as_high_as_its_constant_and_keeps_the_brightest_value():
    """White becomes (1 + strength * mist) / (1 + strength), where mist goes from 0 to 1."""
    for severity, (strength, _) in zip(SEVERITIES, CONSTANTS["fog"], strict=True):
        images = corrupted(flat(255, number=4), "fog", severity)
        least = int(255 / (1 + strength) + 1e-6)
        assert images.amin((1, 2, 3)).tolist() == [least] * 4
        assert images.amax((1, 2, 3)).tolist() == [255] * 4
        assert corrupted(flat(0), "fog", severity).max() == 0
        dark = leaves(4) // 2
        fogged = corrupted(dark, "fog", severity)
        assert (fogged.amax((1, 2, 3)) <= dark.amax((1, 2, 3))).all()


def test_fog_is_rougher_where_it_decays_less():
    roughness = []
    for decay in (3, 2.5, 2, 1.75):
        mist = plasma(2 * torch.rand(32, 32, 32, generator=generator("cpu", 1)) - 1, decay)
        roughness.append((mist[:, 1:] - mist[:, :-1]).std().item())
    assert roughness == sorted(roughness)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(3, 4, 4), (5, 4, 8), (32, 32, 32), (9, 33, 64)]
)
def test_fog_is_cut_from_the_next_power_of_two(height, width, size):
    x = torch.ones(1, 1, height, width, dtype=torch.float64)
    (own,) = streams(1)
    wobbles = 2 * torch.empty(size, size, dtype=torch.float64).uniform_(generator=own) - 1
    mist = slow_plasma(wobbles.numpy(), 2)[:height, :width]
    assert fog(x, (1, 2), streams(1))[0, 0].numpy() == pytest.approx((1 + mist) / 2, abs=1e-9)


# ----------------------------------------------------------------------------------- spatter


@pytest.mark.parametrize("severity", [4, 5])
def test_mud_covers_where_smooth_noise_is_high(severity):
    mean, scale, sigma, threshold, blur, is_mud = CONSTANTS["spatter"][severity - 1]
    assert is_mud
    x = values(2)
    found = spatter(x, CONSTANTS["spatter"][severity - 1], streams(2))
    for image, own, result in zip(x, streams(2), found, strict=True):
        liquid = smooth(mean + scale * normal(own, 1, 32, 32)[0], sigma)
        cover = smooth((liquid > threshold).astype(float), blur)
        cover[cover < 0.8] = 0
        mud = np.array([63, 42, 20])[:, None, None] / 255
        assert result.numpy() == pytest.approx((1 - cover) * image.numpy() + cover * mud)
        assert 0.005 < (cover > 0).mean() < 0.2


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_shines_in_its_colour_up_to_its_strength(severity):
    """The brightest drop of each image adds the strength, and nothing is added without a drop."""
    mean, scale, sigma, threshold, strength, is_mud = CONSTANTS["spatter"][severity - 1]
    assert not is_mud
    x = values(8)
    added = spatter(x, CONSTANTS["spatter"][severity - 1], streams(8)) - x
    turquoise = torch.tensor([175, 238, 238])[:, None, None] / 255
    light = added / turquoise
    assert torch.allclose(light, light[:, :1].expand_as(light))
    assert light.min() > -1e-12
    assert torch.allclose(light.amax((1, 2, 3)), torch.tensor(strength).double())
    for own, one in zip(streams(8), light[:, 0].numpy(), strict=True):
        liquid = smooth(mean + scale * normal(own, 1, 32, 32)[0], sigma)
        assert np.abs(one[liquid < threshold]).max() < 1e-12
        assert (one > 0.01).mean() > 0.25 * (liquid >= threshold).mean()
    dry = spatter(x, (0.0, 0.1, sigma, threshold, strength, False), streams(8))
    assert torch.equal(dry, x)


def marked(*places: tuple[int, int], size: int = 24) -> torch.Tensor:
    image = torch.zeros(1, 1, size, size, dtype=torch.bool)
    for row, column in places:
        image[..., row, column] = True
    return image


def test_distances_are_to_the_nearest_mark_within_two_percent():
    """As long as 20 pixels; OpenCV's mask of 5 x 5 knows steps of 1, 1.4 and 2.1969."""
    image = marked((2, 3), (17, 12), (5, 20))
    exact = ndimage.distance_transform_edt(~image[0, 0].numpy()).clip(max=20)
    found = _distances(image)[0, 0].numpy()
    assert found == pytest.approx(exact, rel=0.025)
    lone = _distances(marked((0, 0)))[0, 0]
    assert lone[0, 5] == 5
    assert lone[4, 4].item() == pytest.approx(5.6)
    assert lone[2, 1].item() == pytest.approx(2.1969)
    assert lone[23, 23] == 20
    assert (_distances(marked()) == 20).all()


def test_equalized_levels_are_opencvs():
    """255 times the pixels not above a level, without those of the lowest one."""
    image = torch.tensor([3, 3, 5, 5, 5, 9, 9, 20, 3]).double().view(1, 1, 3, 3)
    expected = {3: 0, 5: round(255 * 3 / 6), 9: round(255 * 5 / 6), 20: 255}
    found = equalized(torch.cat([image, torch.full_like(image, 20)]))
    assert found[0].flatten().tolist() == [expected[int(each)] for each in image.flatten()]
    assert (found[1] == 20).all()


def test_edges_are_cannys():
    """One pixel wide, weak ones only where they are linked with strong ones, as OpenCV's."""
    step = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    step[..., 6:] = 200
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[:, 5] = True  # of two that are equally steep, the first
    assert torch.equal(edges(step, 50, 150)[0, 0], expected)
    assert torch.equal(edges(step.mT.contiguous(), 50, 150)[0, 0], expected.T)
    weak = step * 30 / 200  # the slope is 4 * 30
    assert not edges(weak, 50, 150).any()
    assert not edges(step * 10 / 200, 50, 150).any()
    linked = weak.clone()
    linked[..., 8:, 6:] = 200
    assert edges(linked, 50, 150)[0, 0, :5, 5].all()
    both = edges(torch.cat([weak, linked, step]), 50, 150)
    assert torch.equal(both[2, 0], expected)
    assert not both[0].any()


def test_edges_along_a_diagonal_are_the_two_pixels_that_are_equally_steep():
    """Both diagonals; compared with neighbours along the edge, no pixel would be steeper."""
    rows = torch.arange(16)
    for away in (rows[:, None] - rows, rows[:, None] + rows - 15):
        found = edges(200 * (away > 0).double()[None, None], 50, 150)[0, 0]
        expected = (away == 0) | (away == 1)
        assert torch.equal(found[2:-2, 2:-2], expected[2:-2, 2:-2])
