"""STL-10 as torchvision downloads it: all unlabeled images train, pixels stand upright."""

import numpy as np
import pytest
import torch
from fake_archive import write_archive
from test_data import refused
from torchvision.datasets import STL10

from convnorm.experiment.data import DataConfig, archives, load_images, read_images
from convnorm.experiment.data.pixels import resize
from gan.sources import NAMES, read_source

NUMBERS = {"train": 3, "unlabeled": 5, "test": 2}


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """An archive of a few images, no network; torchvision knows its MD5s."""
    random, files = np.random.default_rng(0), {}
    for name, number in NUMBERS.items():
        files[f"{name}_X.bin"] = random.integers(0, 256, number * 3 * 96 * 96, np.uint8).tobytes()
        if name != "unlabeled":
            files[f"{name}_y.bin"] = bytes(range(1, number + 1))
    archive, md5 = write_archive(STL10, files, tmp_path, monkeypatch)
    for listed in ("train_list", "test_list"):
        known = [[name, md5[name]] for name, _ in getattr(STL10, listed)]
        monkeypatch.setattr(STL10, listed, known)
    return archive


def by_torchvision(archive, split: str) -> torch.Tensor:
    """The images of torchvision's own reader, (N, 3, 96, 96)."""
    return torch.from_numpy(STL10(archive.parent, split, download=True).data)


@pytest.mark.parametrize("part", [2, 1000])
@pytest.mark.parametrize(("split", "theirs"), [("train", "train+unlabeled"), ("test", "test")])
def test_images_are_those_of_torchvision_resized(stl10, monkeypatch, capfd, part, split, theirs):
    """Lying on their sides as in the file, without the unlabeled ones, or mixed up by parts."""
    monkeypatch.setattr(archives, "PART", part)
    root = str(stl10.parent)
    small = load_images(DataConfig("stl10", root, 48), split)
    native = read_images("stl10", root, split, None)
    assert capfd.readouterr() == ("", "")
    expected = by_torchvision(stl10, theirs)
    assert torch.equal(native.images, expected)
    assert torch.equal(small.images, resize(expected, 48))
    assert small.images.is_contiguous()
    assert (small.native_sizes, native.size) == ((96, 96), 96)


def test_labels_are_left_out_and_the_line_says_what_was_read(stl10):
    """Most images have no class; ten classes and a hundred thousand of none would be a trap."""
    images = load_images(DataConfig("stl10", str(stl10.parent), 48))
    assert (images.classes, images.labels.tolist()) == (("all",), [0] * 8)
    assert images.found == (
        f"8 images in 1 class from stl10 (train) in {stl10.parent}, 96x96 resized to 48x48 "
        "(antialiased bicubic)"
    )


def test_the_archive_is_not_needed_once_it_is_unpacked(stl10):
    load_images(DataConfig("stl10", str(stl10.parent), 48), "test")
    stl10.unlink()
    assert len(load_images(DataConfig("stl10", str(stl10.parent), 48)).images) == 8
    (stl10.parent / STL10.base_folder / "unlabeled_X.bin").write_bytes(b"cut short")
    assert f"{stl10} is missing and the download failed" in refused(
        DataConfig("stl10", str(stl10.parent), 48)
    )


def test_without_archive_and_network_the_line_says_the_ways_out(stl10, capfd):
    stl10.unlink()
    line = refused(DataConfig("stl10", str(stl10.parent), 48))
    assert f"{stl10} is missing and the download failed" in line
    for needed in ("no network", "put that file there", "--data.name folder"):
        assert needed in line
    assert capfd.readouterr().err == f"downloading {STL10.url} to {stl10.parent}\n"


def test_a_damaged_archive_is_named(stl10):
    stl10.write_bytes(stl10.read_bytes()[:-1])
    assert f"{stl10} is damaged" in refused(DataConfig("stl10", str(stl10.parent), 48))


def test_a_shape_or_a_number_of_pixels_that_cannot_be_is_refused(stl10, monkeypatch):
    line = refused(DataConfig("stl10", str(stl10.parent), (48, 64)))
    assert "each image is 96 wide and 96 high, expected the shape of 64x48" in line
    monkeypatch.setattr("convnorm.experiment.memory.available_bytes", lambda: 2**10)
    assert "8 images of 48x48" in refused(DataConfig("stl10", str(stl10.parent), 48))


def test_stl10_can_be_scored_by_its_name(stl10):
    assert "stl10" in NAMES
    cpu = torch.device("cpu")
    source = read_source("stl10:test", "REAL", "train", cpu, str(stl10.parent), size=48)
    assert (source.image_size, len(source.images), source.origin.split) == (48, 2, "test")
    assert source.origin.resized_from == 96
