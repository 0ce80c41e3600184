"""Real images: read right, or refused with a clear line."""

import hashlib
import io
import pickle
import tarfile
import urllib.request
from http.client import BadStatusLine
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from convnorm.experiment.data import DataConfig, Images, load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.pixels import from_uint8, resize, to_uint8


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save_images(folder: Path, pixels: np.ndarray, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}{suffix}")


def refused(config: DataConfig, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        load_images(config, split)
    line = str(caught.value)
    assert "\n" not in line
    return line


# ------------------------------------------------------------------- configuration, pixels


@pytest.mark.parametrize(
    ("key", "value"), [("name", "mnist"), ("root", ""), ("image_size", 0), ("image_size", 32.0)]
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
        assert torch.equal(resize(images, size, chunk=2), resized)
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
    monkeypatch.setattr(urllib.request, "urlopen", Mock(side_effect=URLError("no network")))
    meta = {"label_names": [f"class{i}" for i in range(10)]}
    files = {"batches.meta": pickle.dumps(meta, protocol=2)}
    for index, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        pixels = np.full((3, 3072), 10 * index, np.uint8)
        pixels[:, 1024:2048] += 1  # the green plane
        batch = pickle.dumps({"data": OldArray(pixels), "labels": [index] * 3}, protocol=2)
        files[name] = batch.replace(b"numpy._core", b"numpy.core")
    archive = tmp_path / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
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


# --------------------------------------------------------------------------------- folders


def test_class_folders_of_a_split_are_read_in_the_order_of_their_names(tmp_path):
    pixels = random_pixels(5, 8, 8, 3)
    save_images(tmp_path / "train" / "b", pixels[3:])
    save_images(tmp_path / "train" / "a", pixels[:3])
    save_images(tmp_path / "test" / "a", pixels[:1])
    save_images(tmp_path / "test" / "b", pixels[4:], ".BMP")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("left by a file manager")
    config = DataConfig("folder", str(tmp_path), image_size=8)
    train, test = load_images(config), load_images(config, "test")
    assert np.array_equal(train.images.permute(0, 2, 3, 1), pixels)
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.classes == test.classes == ("a", "b")
    assert np.array_equal(test.images.permute(0, 2, 3, 1), pixels[[0, 4]])


def test_gray_files_make_one_channel_and_one_colored_file_makes_three(tmp_path, capfd):
    gray = random_pixels(3, 8, 8)
    save_images(tmp_path, gray)
    config = DataConfig("folder", str(tmp_path), image_size=8)
    images = load_images(config)
    assert np.array_equal(images.images[:, 0], gray)
    assert (images.images.shape[1], images.classes) == (1, ("all",))
    palette = Image.fromarray(random_pixels(8, 8, 3)).convert("P")
    palette.save(tmp_path / "3.png", transparency=bytes(256))  # Pillow warns of these
    assert load_images(config).images.shape == (4, 3, 8, 8)
    assert capfd.readouterr().err == ""  # no progress bar outside a terminal


def test_training_never_reads_the_test_folder(tmp_path):
    save_images(tmp_path / "test", random_pixels(1, 8, 8))
    config = DataConfig("folder", str(tmp_path))
    assert "no folder 'train'" in refused(config)
    save_images(tmp_path / "other" / "a", random_pixels(1, 8, 8))
    assert "no folder 'test'" in refused(DataConfig("folder", str(tmp_path / "other")), "test")


def bad_folder(case: str, root: Path) -> str:
    """Make the folder of that case; return what the error has to name."""
    save_images(root / "a", random_pixels(2, 8, 8))
    if case == "missing":
        return f"{root / 'nowhere'} is not a folder"
    if case == "empty":
        (root / "nowhere").mkdir()
        return f"{root / 'nowhere'}: no images"
    if case == "class without images":
        (root / "b").mkdir()
        return f"{root / 'b'}: no images"
    if case == "images beside folders":
        save_images(root, random_pixels(1, 8, 8))
        return "holds images and folders"
    if case == "text":
        (root / "a" / "2.png").write_text("not an image")
        return f"{root / 'a' / '2.png'}: not a readable image"
    if case == "truncated":
        whole = (root / "a" / "1.png").read_bytes()
        (root / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
        return f"{root / 'a' / '1.png'}: not a readable image"
    if case == "16 bits":
        Image.fromarray(random_pixels(8, 8).astype(np.uint16) * 200).save(root / "a" / "2.png")
        return f"{root / 'a' / '2.png'}: has pixels of mode I;16"
    if case == "another size":
        Image.fromarray(random_pixels(9, 10)).save(root / "a" / "2.png")
        return f"{root / 'a' / '2.png'}: 10x9 pixels, expected 8x8 as in 0.png"
    save_images(root / "a", random_pixels(2, 8, 6))
    return f"{root}: its images are 6 wide and 8 high"


FOLDER_CASES = (
    "missing,empty,class without images,images beside folders,text,truncated,16 bits,"
    "another size,not square"
)


@pytest.mark.parametrize("case", FOLDER_CASES.split(","))
def test_a_bad_folder_is_refused_with_its_name(case, tmp_path):
    expected = bad_folder(case, tmp_path)
    root = tmp_path / "nowhere" if case in ("missing", "empty") else tmp_path
    assert expected in refused(DataConfig("folder", str(root)))


def test_a_class_that_one_split_lacks_is_named(tmp_path):
    """Numbered on its own, each split would give the same class another label."""
    for folder in ("train/a", "train/b", "test/b"):
        save_images(tmp_path / folder, random_pixels(1, 8, 8))
    assert "only one of train and test: a" in refused(DataConfig("folder", str(tmp_path)), "test")


# ------------------------------------------------------------------------------------- npz


def test_npz_arrays_come_back_as_images_labels_and_classes(tmp_path):
    pixels = random_pixels(4, 8, 8, 3)
    for split, part in (("train", pixels[:3]), ("test", pixels[3:])):
        labels = np.arange(len(part), dtype=np.uint8)
        np.savez(tmp_path / f"my_{split}.npz", images=part, labels=labels, classes=["a", "b", "c"])
    for root in (tmp_path, tmp_path / "my_train.npz"):
        config = DataConfig("npz", str(root), image_size=8)
        train, test = load_images(config), load_images(config, "test")
        assert np.array_equal(train.images.permute(0, 2, 3, 1), pixels[:3])
        assert np.array_equal(test.images.permute(0, 2, 3, 1), pixels[3:])
        assert (train.labels.tolist(), train.classes) == ([0, 1, 2], ("a", "b", "c"))
        assert train.labels.dtype == torch.int64


def test_npz_labels_are_optional_and_gray_images_need_no_channel_axis(tmp_path):
    np.savez(tmp_path / "a.npz", images=random_pixels(3, 8, 8))
    images = load_images(DataConfig("npz", str(tmp_path / "a.npz"), image_size=8))
    assert images.images.shape == (3, 1, 8, 8)
    assert (images.labels.tolist(), images.classes) == ([0, 0, 0], ("0",))
    np.savez(tmp_path / "a.npz", images=random_pixels(2, 8, 8), labels=np.uint8([255, 1]))
    assert len(load_images(DataConfig("npz", str(tmp_path / "a.npz"))).classes) == 256


GOOD = random_pixels(3, 8, 8, 3)
BAD_ARRAYS = {
    "images: missing": {"x": GOOD},
    "images: got float32 (3, 8, 8, 3), expected uint8": {"images": GOOD.astype(np.float32)},
    "images: got uint8 (3, 3, 8, 8), expected": {"images": GOOD.transpose(0, 3, 1, 2)},
    "images: got uint8 (8, 3), expected": {"images": GOOD[0, 0]},
    "images: got uint8 (0, 8, 8, 3), expected at least one image": {"images": GOOD[:0]},
    "images: cannot be read": {"images": np.array([None])},
    "labels: got int64 (2,), expected integers (3,)": {"images": GOOD, "labels": [0, 1]},
    "labels: got float64 (3,), expected integers": {"images": GOOD, "labels": [0.0, 1.0, 2.0]},
    "labels: got -1 to 1, expected 0 to 1": {"images": GOOD, "labels": [-1, 0, 1]},
    "labels: got 0 to 2, expected 0 to 1": {
        "images": GOOD,
        "labels": [0, 1, 2],
        "classes": ["a", "b"],
    },
    "classes: got int64 (2,), expected strings": {"images": GOOD, "classes": [0, 1]},
}


@pytest.mark.parametrize("expected", BAD_ARRAYS)
def test_a_bad_npz_is_refused_with_its_file_and_key(expected, tmp_path):
    file = tmp_path / "bad.npz"
    np.savez(file, **BAD_ARRAYS[expected])
    assert refused(DataConfig("npz", str(file))).startswith(f"{file}: {expected}")


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    """A .npy file, a pickle and half an archive must not reach the user as a traceback."""
    np.save(tmp_path / "array.npy", GOOD)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(GOOD))
    np.savez(tmp_path / "whole.npz", images=GOOD)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("array.npy", "pickle.npz", "half.npz"):
        file = tmp_path / name
        assert refused(DataConfig("npz", str(file))).startswith(f"{file}: not an .npz file")
    middle = len(whole) // 2
    file = tmp_path / "flipped.npz"
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    assert refused(DataConfig("npz", str(file))).startswith(f"{file}: images: cannot be read")


def test_an_npz_that_is_not_where_it_should_be_is_named(tmp_path):
    assert "nowhere does not exist" in refused(DataConfig("npz", str(tmp_path / "nowhere")))
    assert "expected one file *train*.npz, found none" in refused(DataConfig("npz", str(tmp_path)))
    for name in ("mine.npz", "a_train.npz", "b_train.npz"):
        np.savez(tmp_path / name, images=GOOD)
    assert "found ['a_train.npz', 'b_train.npz']" in refused(DataConfig("npz", str(tmp_path)))
    test = tmp_path / "a_test.npz"
    line = refused(DataConfig("npz", str(tmp_path / "a_train.npz")), "test")
    assert line.startswith(f"{test}: missing")
    assert "lacks 'train'" in refused(DataConfig("npz", str(tmp_path / "mine.npz")), "test")
