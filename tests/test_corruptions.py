"""Corruptions: right in strength and distribution, the same in any batch, official files checked.

The oracles are SciPy's filters, the standard library's colorsys and the noises' moments.
"""

import colorsys
import hashlib
import io
import struct

import numpy as np
import pytest
import torch
from leaves import corrupted, distance, flat, leaves, streams, values
from PIL import Image
from scipy import ndimage

from classification.corruption_sources import check_size
from classification.corruptions import (
    CONSTANTS,
    CORRUPTIONS,
    EXTRA,
    FIFTEEN,
    SEVERITIES,
    applicable,
    corrupt,
    load_official,
    motion_blur,
    shot_noise,
)
from classification.corruptions.blur import defocus_kernel
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.experiment.streams import generator

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur")
RANDOM += ("glass_blur", "snow", "frost", "fog", "elastic_transform", "spatter")

# Mean distance in levels from `leaves(16)`, seed 0, at each severity. Pillow 13.0.0.
GOLDEN = {
    "gaussian_noise": (8.171, 12.190, 16.099, 18.088, 20.035),
    "shot_noise": (6.202, 8.741, 13.863, 15.818, 19.074),
    "impulse_noise": (1.262, 2.558, 3.736, 6.588, 8.743),
    "speckle_noise": (6.089, 10.023, 12.069, 15.790, 19.451),
    "defocus_blur": (1.320, 3.417, 5.254, 6.692, 10.234),
    "gaussian_blur": (1.398, 5.295, 6.840, 8.140, 10.340),
    "motion_blur": (5.235, 9.574, 11.439, 11.068, 14.019),
    "brightness": (8.242, 17.068, 24.665, 30.953, 39.200),
    "contrast": (12.582, 25.159, 30.160, 35.193, 42.724),
    "saturate": (39.791, 51.258, 20.313, 29.611, 32.485),
    "pixelate": (0.696, 1.944, 2.622, 4.099, 6.153),
    "jpeg_compression": (13.067, 15.070, 15.866, 16.750, 17.654),
    "glass_blur": (7.176, 7.620, 8.569, 13.510, 13.982),
    "zoom_blur": (7.182, 8.867, 10.735, 12.475, 14.356),
    "snow": (11.161, 25.836, 27.057, 39.246, 52.652),
    "frost": (30.743, 42.549, 47.109, 41.769, 41.701),
    "fog": (11.499, 22.337, 29.190, 32.555, 40.220),
    "elastic_transform": (16.379, 17.075, 15.005, 12.918, 11.549),
    "spatter": (0.975, 2.771, 6.867, 3.262, 5.333),
}


# SHA-256, its first digits, of what the first version of the local corruptions made of `leaves(4)`,
# seed 0, at all severities. JPEG's depend on the version of its library.
FIRST_VERSION = {
    "gaussian_noise": "bf47523867fc5235",
    "shot_noise": "f284a4af65524a85",
    "impulse_noise": "46a71bf7d6983c08",
    "speckle_noise": "e15f360a8e1e5957",
    "defocus_blur": "cc9eb6b6138dd6c2",
    "gaussian_blur": "30adc6b745d82161",
    "motion_blur": "1dfa252b7c9c5d44",
    "brightness": "936473377910579a",
    "contrast": "4c6e1c6d02eed849",
    "saturate": "1e329c86d51624a9",
    "pixelate": "48f56b113676ec04",
}


# -------------------------------------------------------------------------- all corruptions


def test_the_table_of_constants_names_every_corruption_and_severity():
    assert list(CONSTANTS) == list(CORRUPTIONS)
    assert all(len(constants) == len(SEVERITIES) for constants in CONSTANTS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strength_is_what_it_was(name):
    """A changed constant, kernel, rounding or key of the random numbers."""
    images = leaves(16)
    distances = [distance(corrupted(images, name, severity), images) for severity in SEVERITIES]
    tolerance = 0.3 if name == "jpeg_compression" else 2e-3
    assert distances == pytest.approx(GOLDEN[name], abs=tolerance)


@pytest.mark.parametrize("name", FIRST_VERSION)
def test_images_of_the_first_version_stay_to_the_last_bit(name):
    """Twelve corruptions became nineteen: the old ones are told apart by their version alone."""
    images = torch.stack([corrupted(leaves(4), name, severity) for severity in SEVERITIES])
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    assert digest[:16] == FIRST_VERSION[name]


def test_the_fifteen_and_the_extra_ones_are_cifar_10_cs():
    assert len(FIFTEEN) == 15
    assert sorted(EXTRA) == ["gaussian_blur", "saturate", "spatter", "speckle_noise"]
    assert [*FIFTEEN, *EXTRA] == list(CORRUPTIONS)
    assert all(applicable(name, 1) for name in FIFTEEN)  # so that gray images have the mean of 15


@pytest.mark.parametrize(("height", "width"), [(3, 3), (4, 7), (33, 96)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_shape_and_black_and_white_give_numbers(name, height, width):
    """0 / 0 in an image without colour, contrast, edges or drops; rows mistaken for columns."""
    for channels in (1, 3) if applicable(name, 1) else (3,):
        x = values(3, channels, height, width)
        x[0], x[1] = 0, 1
        for constant in CONSTANTS[name]:
            y = CORRUPTIONS[name](x, constant, iter(streams(3)))
            assert y.shape == x.shape
            assert y.isfinite().all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_increases_the_distance_from_the_clean_images(name):
    """Constants in the wrong order. The original's saturate fades at 1 and 2, deepens at 3 to 5;
    its motion_blur differs between 3 and 4 only in where its line is cut off; its frost has less
    and less of the image from 3 on; its elastic_transform moves ever smaller parts less and less
    far; its spatter is water up to 3, and then mud."""
    images = leaves(64)
    distances = {s: distance(corrupted(images, name, s), images) for s in SEVERITIES}
    chains = {
        "saturate": [(1, 2), (3, 4, 5)],
        "motion_blur": [(1, 2, 3, 5), (1, 2, 4, 5)],
        "frost": [(1, 2, 3), (1, 4), (1, 5)],
        "elastic_transform": [(5, 4, 3, 2, 1)],
        "spatter": [(1, 2, 3), (4, 5)],
    }
    for chain in chains.get(name, [SEVERITIES]):
        values = [distances[severity] for severity in chain]
        assert values[0] > 0
        assert values == sorted(set(values))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_uint8_of_the_same_shape_goes_in_and_out_and_the_input_stays(name, size, channels):
    if not applicable(name, channels):
        return
    images = leaves(3, channels, size)
    before = images.clone()
    for severity in SEVERITIES:
        result = corrupted(images, name, severity)
        assert result.dtype == torch.uint8
        assert result.shape == images.shape
    assert torch.equal(images, before)
    assert not torch.equal(result, images)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_batch_size_order_layout_and_global_generator_do_not_matter(name):
    """Random numbers drawn for a batch, by position in it, in memory order or globally."""
    images, indices = leaves(6), torch.arange(6) + 100
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = corrupt(images, name, 3, seed=1, indices=indices)
    assert torch.equal(torch.get_rng_state(), state)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    batches = zip(images[order].split(4), indices[order].split(4), strict=True)
    parts = torch.cat([corrupt(batch, name, 3, seed=1, indices=i) for batch, i in batches])
    assert torch.equal(parts, whole[order])
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(corrupt(channels_last, name, 3, seed=1, indices=indices), whole)


@pytest.mark.parametrize("name", RANDOM)
def test_seed_severity_and_index_change_the_random_numbers(name):
    """One of them left out of the key: then the same noise lies on every image."""
    images = leaves(1).expand(2, -1, -1, -1)
    first, second = corrupted(images, name, 5)
    assert not torch.equal(first, second)
    assert not torch.equal(first, corrupted(images, name, 5, seed=1)[0])
    if name == "gaussian_noise":  # at other severities the same numbers would be scaled only
        noises = torch.stack([corrupted(flat(128), name, s).double() - 128 for s in (3, 5)])
        assert abs(torch.corrcoef(noises.flatten(1))[0, 1]) < 0.02


def test_unknown_names_severities_and_gray_images_for_saturate_are_refused():
    images = leaves(1, channels=1)
    with pytest.raises(InputError, match="corruption: got 'rain', expected one of gaussian_noise"):
        corrupted(images, "rain", 1)
    for severity in (0, 6, -1, 10**24, 1.0, True, None, "1"):
        message = f"severity of contrast: got {severity!r}, expected one of"
        with pytest.raises(InputError, match=message):
            corrupted(images, "contrast", severity)
    with pytest.raises(InputError, match="corruption saturate: got 1 channel, expected 3"):
        corrupted(images, "saturate", 1)
    with pytest.raises(TypeError, match=r"images: got torch.float32, expected torch.uint8"):
        corrupted(images.float(), "contrast", 1)
    assert [name for name in CORRUPTIONS if not applicable(name, 1)] == ["saturate"]


# ------------------------------------------------------------------------------------ noises


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_standard_deviation_and_is_rounded_down(severity):
    """Rounded to nearest, as the original does not, the mean is half a level higher."""
    noise = corrupted(flat(128), "gaussian_noise", severity).double() - 128
    assert noise.std().item() == pytest.approx(
        255 * CONSTANTS["gaussian_noise"][severity - 1], rel=0.02
    )
    assert noise.mean().item() == pytest.approx(-0.5, abs=0.3)


def test_results_are_rounded_down_except_whole_values_that_float_errors_lower():
    """Contrast halves the distance to the mean: 100 and 103 of mean 101.5 give 100.75, 102.25."""
    images = flat(100, number=1)
    images[..., ::2] = 103
    assert corrupted(images, "contrast", 2).unique().tolist() == [100, 102]
    levels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(-1, 1, 8, 8)
    for name in ("contrast", "gaussian_blur", "defocus_blur", "motion_blur"):
        assert torch.equal(corrupted(levels, name, 5), levels)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_has_the_variance_of_a_photon_count(severity):
    photons = CONSTANTS["shot_noise"][severity - 1]
    x = torch.full((16, 3, 32, 32), 0.4, dtype=torch.float64)
    noise = shot_noise(x, photons, (generator("cpu", severity, index) for index in range(16)))
    assert noise.mean().item() == pytest.approx(0.4, abs=0.002)
    assert noise.var().item() == pytest.approx(0.4 / photons, rel=0.03)
    assert corrupted(flat(0), "shot_noise", severity).max() == 0


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_replaces_its_fraction_half_by_black_and_half_by_white(severity):
    """Whole pixels replaced instead of values, or salt only."""
    noise = corrupted(flat(128, number=64), "impulse_noise", severity)
    amount = CONSTANTS["impulse_noise"][severity - 1]
    for level in (0, 255):
        assert (noise == level).double().mean().item() == pytest.approx(amount / 2, rel=0.06)
    assert noise.unique().tolist() == [0, 128, 255]
    replaced = (noise != 128).any(1).double().mean().item()
    assert replaced == pytest.approx(1 - (1 - amount) ** 3, rel=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_speckle_noise_grows_with_the_value(severity):
    for level in (50, 100):
        noise = corrupted(flat(level), "speckle_noise", severity).double()
        scale = CONSTANTS["speckle_noise"][severity - 1]
        assert noise.std().item() == pytest.approx(level * scale, rel=0.03)


# ------------------------------------------------------------------------------------- blurs


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_scipys_with_repeated_edges(severity):
    images = leaves(4)
    sigma = CONSTANTS["gaussian_blur"][severity - 1]
    expected = ndimage.gaussian_filter(
        images.double().numpy(), (0, 0, sigma, sigma), mode="nearest"
    )
    error = expected - corrupted(images, "gaussian_blur", severity).numpy()
    assert error.min() > -1e-5
    assert error.max() < 1 + 1e-5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_is_scipys_correlation_with_mirrored_borders(severity):
    images = leaves(4)
    kernel = defocus_kernel(*CONSTANTS["defocus_blur"][severity - 1])
    expected = ndimage.correlate(images.double().numpy(), kernel[None, None].numpy(), mode="mirror")
    error = expected - corrupted(images, "defocus_blur", severity).numpy()
    assert error.min() > -1e-5
    assert error.max() < 1 + 1e-5


def test_defocus_kernels_are_smoothed_disks():
    """Radii below 1 hold one pixel, so only the smoothing blurs; 1 holds 5 pixels, 1.5 holds 9."""
    for constants in CONSTANTS["defocus_blur"]:
        kernel = defocus_kernel(*constants)
        assert kernel.sum().item() == pytest.approx(1)
        assert torch.allclose(kernel, kernel.T)
        assert torch.allclose(kernel, kernel.flip(0))
    side = np.exp(-1 / (2 * 0.4**2))
    assert defocus_kernel(0.3, 0.4)[1, 1].item() == pytest.approx(1 / (1 + 2 * side) ** 2)
    assert [(defocus_kernel(r, 0.1) > 0.01).sum().item() for r in (1, 1.5)] == [5, 9]


def test_motion_blur_smears_one_point_along_half_a_gaussian_within_45_degrees():
    """Weights that do not sum to 1, a line on both sides, or angles in radians or of one sign."""
    radius, sigma = CONSTANTS["motion_blur"][4]
    x = torch.zeros(200, 1, 41, 41, dtype=torch.float64)
    x[..., 20, 20] = 1
    generators = (generator("cpu", index) for index in range(200))
    y = motion_blur(x, (radius, sigma), generators)
    assert torch.allclose(y.sum((1, 2, 3)), torch.ones(200, dtype=torch.float64))
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    assert torch.allclose(y[..., 20, 20], torch.tensor(weights[0] / weights.sum()))
    assert y[..., 21:].max() == 0  # the line begins at the pixel, so the point smears to one side
    offsets = torch.arange(41, dtype=torch.float64) - 20
    right, down = y.sum(2) @ offsets, y.sum(3) @ offsets
    slopes = torch.rad2deg(torch.atan(down / right))
    assert 40 < slopes.max() < 46
    assert -46 < slopes.min() < -40
    assert abs(slopes.mean()) < 5


# ------------------------------------------------------------- colours, pixelate, JPEG


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_brightness_and_saturate_work_in_hsv(name, severity):
    """Values scaled in RGB, unclipped saturations, or gray without the hue of red."""
    colours = torch.randint(0, 256, (200, 3), generator=generator("cpu", "colours")).tolist()
    colours += [[0, 0, 0], [90, 90, 90], [255, 255, 255], [255, 0, 0], [7, 7, 0], [0, 99, 99]]
    expected = []
    for colour in colours:
        h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
        if name == "brightness":
            v = min(v + CONSTANTS[name][severity - 1], 1)
        else:
            factor, summand = CONSTANTS[name][severity - 1]
            s = min(s * factor + summand, 1)
        expected.append([255 * channel for channel in colorsys.hsv_to_rgb(h, s, v)])
    images = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)
    error = torch.tensor(expected) - corrupted(images, name, severity)[..., 0, 0]
    assert error.min() > -1e-3
    assert error.max() < 1 + 1e-3


def test_brightness_adds_to_gray_images_and_stops_at_white():
    assert corrupted(flat(100, channels=1), "brightness", 4).unique().tolist() == [151]
    assert corrupted(flat(250, channels=1), "brightness", 4).unique().tolist() == [255]


def test_saturate_reddens_gray_pixels_only_where_saturation_is_added():
    """As the original does: gray has hue 0, which is red."""
    results = [corrupted(flat(100), "saturate", s)[0, :, 0, 0].tolist() for s in SEVERITIES]
    assert results == [[100] * 3, [100] * 3, [100] * 3, [100, 90, 90], [100, 80, 80]]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_scales_the_deviation_in_each_channel_and_keeps_its_mean(severity):
    images = leaves(8)
    result = corrupted(images, "contrast", severity).double()
    ratio = result.std((2, 3)) / images.double().std((2, 3))
    assert ratio.numpy() == pytest.approx(CONSTANTS["contrast"][severity - 1], rel=0.03)
    lost = images.double().mean((2, 3)) - result.mean((2, 3))
    assert lost.min() > -1e-5
    assert lost.max() < 1  # by rounding down


def test_pixelate_keeps_as_many_different_rows_as_its_constant_says():
    """A smooth filter, or sizes rounded up: 32 * 0.85 is 27.2."""
    column = (torch.arange(32) * 8).to(torch.uint8)
    images = column[:, None].expand(1, 3, 32, 32)
    kept = [corrupted(images, "pixelate", s)[0, 0, :, 0].unique().numel() for s in SEVERITIES]
    assert kept[3:] == [24, 20]
    small = Image.fromarray(images[0, 0].numpy()).resize((27, 27), Image.Resampling.BOX)
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    assert np.array_equal(corrupted(images, "pixelate", 3)[0, 1].numpy(), expected)


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (2, 65), (3, 58), (4, 50), (5, 40)])
def test_jpeg_is_pillows_in_rgb_order(severity, quality):
    images = leaves(1)
    file = io.BytesIO()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(corrupted(images, "jpeg_compression", severity)[0], expected)


# ---------------------------------------------------------------------------- official files


@pytest.fixture
def clean_images() -> Images:
    return Images(leaves(4, size=8), torch.tensor([2, 0, 1, 1]), ("a", "b", "c"))


@pytest.fixture
def official(tmp_path, clean_images):
    """A right folder: severity s adds s to the images."""
    images = torch.cat([clean_images.images + s for s in SEVERITIES])
    np.save(tmp_path / "fog.npy", images.permute(0, 2, 3, 1).contiguous().numpy())
    np.save(tmp_path / "labels.npy", np.tile(np.array([2, 0, 1, 1], np.uint8), 5))
    return tmp_path


def test_official_files_are_read_in_the_order_of_severities(official, clean_images):
    loaded = load_official(official, "fog", clean_images)
    assert loaded.dtype == torch.uint8
    for severity in SEVERITIES:
        assert torch.equal(loaded[severity - 1], clean_images.images + severity)


def test_writing_into_loaded_images_leaves_the_file_alone(official, clean_images):
    before = (official / "fog.npy").read_bytes()
    load_official(official, "fog", clean_images).zero_()
    assert (official / "fog.npy").read_bytes() == before


def refused(official, clean_images) -> str:
    with pytest.raises(InputError) as caught:
        load_official(official, "fog", clean_images)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["fog", "labels"])
def test_missing_truncated_and_foreign_official_files_are_refused(name, official, clean_images):
    file = official / f"{name}.npy"
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:40], b"", b"PK\x03\x04 an archive"):
        file.write_bytes(content)
        line = refused(official, clean_images)
        assert line.startswith(f"{file}: cannot be read (")
        assert ", expected " in line
    file.unlink()
    assert refused(official, clean_images).startswith(f"{file}: missing, expected ")


def header(text: str) -> bytes:
    """A .npy file with these words for its shape and type, and 100 bytes."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(100)


@pytest.mark.parametrize(
    "content",
    [
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (1" + 30 * "0" + ",)}"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-5,)}"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (True,)}"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (5,)}"),
        header(
            "{'descr': '|u1', 'fortran_order': False, 'shape': " + 5000 * "(" + 5000 * ")" + "}"
        ),
    ],
    ids=["huge", "negative", "bool", "objects", "deep"],
)
def test_official_files_with_odd_headers_are_refused(content, official, clean_images):
    file = official / "fog.npy"
    file.write_bytes(content)
    line = refused(official, clean_images)
    assert line.startswith(f"{file}: cannot be read (")
    assert len(line) < len(str(file)) + 200


def test_a_folder_in_the_place_of_an_official_file_is_refused(official, clean_images):
    file = official / "fog.npy"
    file.unlink()
    file.mkdir()
    assert refused(official, clean_images).startswith(f"{file}: not a file, expected uint8")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_images_that_are_too_small_for_a_corruption_are_refused(size):
    images = Images(torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.zeros(1), ("0",))
    if size < 3:
        with pytest.raises(InputError, match=f"the images have {size}x{size} pixels; expected at"):
            check_size(images)
        return
    check_size(images)
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            corrupted(images.images, name, severity)


@pytest.mark.parametrize(
    ("shape", "dtype", "found"),
    [
        ((19, 8, 8, 3), np.uint8, "uint8 (19, 8, 8, 3)"),
        ((4, 8, 8, 3), np.uint8, "uint8 (4, 8, 8, 3)"),
        ((20, 3, 8, 8), np.uint8, "uint8 (20, 3, 8, 8)"),
        ((20, 8, 8), np.uint8, "uint8 (20, 8, 8)"),
        ((20, 8, 8, 3), np.float32, "float32 (20, 8, 8, 3)"),
        ((20, 8, 8, 3), np.int8, "int8 (20, 8, 8, 3)"),
    ],
)
def test_official_images_of_another_shape_or_type_are_refused(
    shape, dtype, found, official, clean_images
):
    np.save(official / "fog.npy", np.zeros(shape, dtype))
    line = refused(official, clean_images)
    assert line == f"{official / 'fog.npy'}: got {found}, expected uint8 (20, 8, 8, 3)"


def test_official_labels_must_be_those_of_the_test_images(official, clean_images):
    """Images of another split or in another order would be scored as wrong answers."""
    file = official / "labels.npy"
    np.save(file, np.tile(np.array([2, 0, 1, 1]), 5))
    load_official(official, "fog", clean_images)
    np.save(file, np.repeat(np.array([2, 0, 1, 1]), 5))
    assert f"{file}: 10 of 20 labels differ" in refused(official, clean_images)
    np.save(file, np.array([2, 0, 1, 1]))
    assert refused(official, clean_images) == f"{file}: got int64 (4,), expected integer (20,)"
    np.save(file, np.tile(np.array([2.0, 0, 1, 1]), 5))
    assert refused(official, clean_images) == f"{file}: got float64 (20,), expected integer (20,)"
