"""Real images: read right, or refused with a clear line."""

import io
import pickle
import urllib.request
from http.client import BadStatusLine
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from fake_archive import write_archive
from PIL import Image
from torchvision.datasets import CIFAR10

from convnorm.experiment import memory
from convnorm.experiment.data import DataConfig, Images, load_images
from convnorm.experiment.data.pixels import from_uint8, resize, to_uint8
from convnorm.experiment.errors import InputError


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def refused(config: DataConfig, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        load_images(config, split)
    line = str(caught.value)
    assert "\n" not in line
    return line


# ------------------------------------------------------------------- configuration, pixels


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "mnist"),
        ("root", ""),
        ("image_size", 0),
        ("image_size", 32.0),
        ("image_size", 1025),
        ("image_size", 10**24),
    ],
)
def test_a_bad_setting_is_refused_by_its_key(key, value):
    with pytest.raises(InputError, match=rf"data\.{key}: got {value!r}, expected"):
        DataConfig(**{key: value})


LEVELS = torch.arange(256, dtype=torch.uint8)[:, None]
# The edges of noise in float32: 0, the least number above it, and the last ones below 1.
EDGES = torch.tensor([0, 2**-149, 2**-24, 2**-16, 0.5, 1 - 2**-15, 1 - 2**-16, 1 - 2**-24])


@pytest.mark.parametrize("nearest", [False, True])
def test_every_level_survives_the_way_to_floats_and_back(nearest):
    """128 instead of 127.5 loses a level, and so does rounding down where nothing was added."""
    assert torch.equal(to_uint8(from_uint8(LEVELS), nearest=nearest), LEVELS)
    assert from_uint8(LEVELS)[[0, 255]].flatten().tolist() == [-1, 1]


def test_every_level_survives_dequantization_with_any_noise():
    """Rounded to nearest, as the generator's images were, a third of the pixels move by a level."""
    noise = torch.cat([EDGES, torch.rand(2000, generator=torch.Generator().manual_seed(0))])
    noise = noise.expand(256, -1)
    images = from_uint8(LEVELS, noise)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert torch.equal(to_uint8(images), LEVELS.expand_as(noise))
    assert not torch.equal(to_uint8(images, nearest=True), LEVELS.expand_as(noise))


def test_to_uint8_clamps_and_computes_in_float32():
    """Clamping left out, 1.5 would wrap around to a dark pixel."""
    half = torch.linspace(-1, 1, 999, dtype=torch.bfloat16)
    for nearest in (False, True):
        assert to_uint8(torch.tensor([-1.5, 1.5]), nearest=nearest).tolist() == [0, 255]
        same = (to_uint8(images, nearest=nearest) for images in (half, half.float()))
        assert torch.equal(*same)


def test_without_noise_the_nearest_level_counts():
    """Floored, a network that misses a dark point by a hair would lose a level."""
    level = from_uint8(torch.tensor([100], dtype=torch.uint8))
    assert to_uint8(level - 0.49 / 127.5, nearest=True) == 100
    assert to_uint8(level + 0.49 / 127.5, nearest=True) == 100
    assert to_uint8(level + 0.51 / 127.5, nearest=True) == 101


def test_resize_matches_pillow_and_does_not_depend_on_chunks():
    """Without antialiasing or clamping it differs by tens of levels."""
    pixels = random_pixels(5, 24, 24) // 128 * 255  # black and white: a bicubic filter overshoots
    images = torch.from_numpy(pixels)[:, None]
    for size in (16, 32):
        # Pillow's floats: its bytes are clamped once more between rows and columns.
        floats = [Image.fromarray(p.astype(np.float32)) for p in pixels]
        pillow = np.stack([np.asarray(f.resize((size, size), Image.BICUBIC)) for f in floats])
        resized = resize(images, size)
        assert np.abs(resized[:, 0].numpy() - pillow.clip(0, 255)).max() < 0.501
        assert torch.equal(resize(images, size, max_floats=1), resized)
        channels_last = images.expand(-1, 3, -1, -1).to(memory_format=torch.channels_last)
        assert torch.equal(resize(channels_last, size), resized.expand(-1, 3, -1, -1))
    assert resize(images, 24) is images


def test_the_content_hash_sees_pixels_and_shape_but_not_labels():
    images = torch.from_numpy(random_pixels(2, 1, 4, 4))
    labels, other = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    digest = Images(images, labels, ("a",)).sha256()
    assert Images(images, other, ("a",)).sha256() == digest
    assert Images(images.reshape(2, 1, 2, 8), labels, ("a",)).sha256() != digest
    assert Images(images.flip(0), labels, ("a",)).sha256() != digest
    assert Images(images.mT.contiguous().mT, labels, ("a",)).sha256() == digest


# ------------------------------------------------------------------------------- data sets


def test_digits_are_split_disjoint_stratified_and_scaled_to_255():
    train = load_images(DataConfig("digits", image_size=8))
    test = load_images(DataConfig("digits", image_size=8), "test")
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert train.classes == tuple("0123456789")
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert (share - 0.2).abs().max() < 0.005
    assert not {i.tobytes() for i in train.images.numpy()} & {
        i.tobytes() for i in test.images.numpy()
    }


def test_the_digits_split_stays_as_it_is():
    """The shipped digits extractor and published scores belong to this very split."""
    assert load_images(DataConfig("digits")).images.shape == (1437, 1, 32, 32)
    digest = load_images(DataConfig("digits", image_size=8), "test").sha256()
    assert digest == "cbef5b26206128ff47cec5a92fc6d2714692cdbb3f99a8db13629c1b4cd7729c"


class OldArray:
    """Pickles as NumPy arrays did in 2009: with a dtype built from integers, not booleans."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self):
        rebuild, arguments, state = self.array.__reduce__()
        return rebuild, arguments, (*state[:2], OldDtype(), *state[3:])


class OldDtype:
    def __reduce__(self):
        # The real files say 0, of which only NumPy 2.4.0 to 2.4.4 warn; of 2 all do since 2.4.0.
        return np.dtype, ("u1", 2, 1), (3, "|", None, None, None, -1, -1, 0)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """An archive of 5 x 3 training and 3 test images with its MD5s known to torchvision."""
    meta = {"label_names": [f"class{i}" for i in range(10)]}
    files = {"batches.meta": pickle.dumps(meta, protocol=2)}
    for index, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        pixels = np.full((3, 3072), 10 * index, np.uint8)
        pixels[:, 1024:2048] += 1  # the green plane
        batch = pickle.dumps({"data": OldArray(pixels), "labels": [index] * 3}, protocol=2)
        files[name] = batch.replace(b"numpy._core", b"numpy.core")
    archive, md5 = write_archive(CIFAR10, files, tmp_path, monkeypatch)
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5[n]] for n in sorted(md5)[1:6]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return archive


def test_a_cifar_archive_is_read_in_silence(cifar, capfd):
    """The pickles of 2009 make NumPy warn, and warnings are errors here."""
    train = load_images(DataConfig("cifar10", str(cifar.parent)))
    test = load_images(DataConfig("cifar10", str(cifar.parent)), "test")
    assert train.images.shape == (15, 3, 32, 32)
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert test.images[0, :, 0, 0].tolist() == [50, 51, 50]
    assert test.classes[9] == "class9"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [URLError("no network"), BadStatusLine("no network")])
def test_without_archive_and_network_the_line_says_the_ways_out(error, cifar, capfd, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", Mock(side_effect=error))
    cifar.unlink()
    line = refused(DataConfig("cifar10", str(cifar.parent)))
    assert f"{cifar} is missing and the download failed" in line
    for needed in ("no network", "put that file there", "--data.name npz", "--data.name folder"):
        assert needed in line
    assert capfd.readouterr().err == f"downloading {CIFAR10.url} to {cifar.parent}\n"


def test_a_damaged_archive_is_named(cifar):
    cifar.write_bytes(cifar.read_bytes()[:-1])
    assert f"{cifar} is damaged" in refused(DataConfig("cifar10", str(cifar.parent)))


def test_a_sound_archive_that_cannot_be_unpacked_is_not_called_damaged(cifar):
    (cifar.parent / CIFAR10.base_folder).write_text("in the way")
    line = refused(DataConfig("cifar10", str(cifar.parent)))
    assert line.startswith(f"{cifar}: cannot be unpacked")


def test_a_download_that_breaks_off_leaves_no_progress_bar_in_a_log(cifar, capfd, monkeypatch):
    class HalfResponse(io.BytesIO):
        url, length = CIFAR10.url, 999

    content = cifar.read_bytes()[:500]
    cifar.unlink()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_: HalfResponse(content))
    assert f"{cifar} is damaged" in refused(DataConfig("cifar10", str(cifar.parent)))
    assert "%" not in capfd.readouterr().err


# --------------------------------------------------------------------------- paths, memory


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("~nobody-of-that-name/x", "there is no user 'nobody-of-that-name'"),
        ("n" * 300, "is too long; expected at most 255 bytes a name"),
        ("a\0b", "has a NUL byte"),
        ("link", "Too many levels of symbolic links"),
        ("file/below", "Not a directory"),
    ],
)
@pytest.mark.parametrize("name", ["folder", "npz"])
def test_a_path_that_cannot_be_is_told_in_a_line(name, root, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("link")
    (tmp_path / "file").touch()
    line = refused(DataConfig(name, root))
    assert line.startswith("data.root: ")
    assert message in line
    assert len(line) < 200


def test_what_does_not_fit_into_memory_is_refused_before_it_is_made(monkeypatch):
    """1,437 digits of 1024 pixels are 1.4 GiB; a set of CIFAR's size would be 150."""
    monkeypatch.setattr("convnorm.experiment.memory.available_bytes", lambda: 2**30)
    monkeypatch.setattr("convnorm.experiment.data.images.resize", None)
    line = refused(DataConfig("digits", image_size=1024))
    assert "1437 images of 1024x1024 pixels would take 1.4 GiB of memory, of which 1 GiB" in line


def test_the_limit_of_the_process_counts_as_memory(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**40, -1))
    limited = memory._address_space()
    assert 2**39 < limited < 2**40
    monkeypatch.setattr(memory, "_address_space", lambda: 12345)
    assert memory.available_bytes() == 12345


def test_a_line_says_what_was_read(cifar):
    assert load_images(DataConfig("digits")).found == (
        "1437 images in 10 classes from digits (train), 8x8 resized to 32x32 (antialiased bicubic)"
    )
    root = cifar.parent
    found = load_images(DataConfig("cifar10", str(root)), "test").found
    assert found == f"3 images in 10 classes from cifar10 (test) in {root}, 32x32"
