"""FAKE and REAL: what is scored is what was meant, at its own size and of the right split."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.data.pixels import resize
from convnorm.experiment.errors import InputError
from gan.records import Origin
from gan.sources import ImageSource, read_source


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def make(root: Path, name: str, size: int) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_pixels(size, size)).save(root / name)


def read(text: str, split: str = "train", size: int | None = None) -> ImageSource:
    return read_source(text, "REAL", split, torch.device("cpu"), "data", size)


def refused(text: str, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        read(text, split)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_size_is_that_of_the_images_that_are_read(here):
    """Hidden files, those of the system and the other split have their own."""
    make(here, "train/0.png", 32)
    for name in ("test/0.png", "train/.thumbnails/0.png", "train/@eaDir/0.png", ".trash/0.png"):
        make(here, name, 8)
    source = read(".")
    assert source.image_size == source.images.shape[-1] == 32
    assert source.origin.found.startswith("1 image in 1 class from train (3 files skipped: ")
    assert read(".:test").image_size == 8


@pytest.mark.parametrize("container", ["folder", "files"])
@pytest.mark.parametrize(
    ("given", "of_protocol", "taken"),
    [
        ("", "train", "train"),
        ("", "test", "test"),
        (":train", "test", "train"),
        (":test", "train", "test"),
    ],
)
def test_the_split_is_the_one_that_is_told_or_the_protocols(
    container, given, of_protocol, taken, here
):
    """The training images, taken for the protocol's test images, give a score that is too good."""
    for split, size in (("train", 8), ("test", 16)):
        make(here, f"folder/{split}/0.png", size)
        (here / "files").mkdir(exist_ok=True)
        np.savez(here / "files" / f"x_{split}.npz", images=random_pixels(1, size, size))
    source = read(f"{container}{given}", of_protocol)
    assert source.image_size == {"train": 8, "test": 16}[taken]
    assert (source.origin.source, source.origin.split) == (container, taken)


def test_a_file_is_itself_and_its_test_images_lie_beside_it(here):
    np.savez("x_train.npz", images=random_pixels(2, 8, 8))
    np.savez("x_test.npz", images=random_pixels(3, 8, 8))
    assert read("x_train.npz", "test").origin.split is None
    assert len(read("x_train.npz", "test").images) == 2
    assert len(read("x_test.npz").images) == 3
    source = read("x_train.npz:test")
    assert (len(source.images), source.origin.split) == (3, "test")


def test_images_without_splits_have_none(here):
    make(here, "flat/0.png", 8)
    assert read("flat", "test").origin.split is None
    assert read("flat:train").origin.split == "train"
    assert "no folder 'test'" in refused("flat:test")


def test_images_are_resized_as_they_are_read_and_the_record_says_how(here):
    for name, size in (("0.png", 8), ("1.png", 8)):
        make(here, f"flat/{name}", size)
    origin = read("flat", size=16).origin
    assert (origin.resized_from, origin.resized_by) == (8, "antialiased bicubic")
    assert origin.found == (
        "2 images in 1 class from flat, 8x8 resized to 16x16 (antialiased bicubic)"
    )
    assert read("flat", size=8).origin.resized_by is None
    make(here, "flat/2.png", 12)
    origin = read("flat", size=16).origin
    assert (origin.resized_from, origin.resized_by) == (None, "antialiased bicubic")
    assert "2.png: 12x12 pixels, expected 8x8 as in 0.png" in refused("flat")


@pytest.mark.parametrize("text", ["digits", "digits:test", "cifar10"])
def test_a_name_that_is_also_a_folder_is_refused(text, here):
    """Which of the two was scored, nobody would see."""
    name = text.partition(":")[0]
    for split in ("train", "test"):
        make(here, f"{name}/{split}/0.png", 12)
    assert f"expected ./{text} for what lies here" in refused(text)
    source = read(f"./{text}")
    assert (source.image_size, source.origin.source) == (12, f"./{name}")


def test_a_colon_in_a_name_is_part_of_it(here):
    make(here, "a:test/0.png", 8)
    assert read("a:test").origin == Origin("a:test", found="1 image in 1 class from a:test, 8x8")
    make(here, "a/0.png", 8)
    assert "there are both 'a:test' and 'a'" in refused("a:test")


def test_a_generator_is_resized_and_has_no_splits(here, monkeypatch):
    images = load_images(DataConfig("digits", image_size=16)).images

    def parts(num: int, seed: int, share: slice) -> tuple[Tensor, ...]:
        return images[:num].split(2)[share]

    config = SimpleNamespace(data=DataConfig("digits", image_size=16))
    facts = {"step": 7, "ema": True, "sha256": "c" * 64, "classes": ()}
    loaded = SimpleNamespace(parts=parts, config=config, **facts)
    monkeypatch.setattr("gan.sources.load_generator", lambda path, device: loaded)
    Path("run").mkdir()
    Path("run/last.pt").touch()
    source = read("run", size=8)
    assert [len(part) for part in source.images(3, 0, slice(None))] == [2, 1]
    (last,) = source.images(3, 0, slice(1, None, 2))
    assert torch.equal(last, resize(images[2:3], 8))
    assert (source.origin.resized_from, source.origin.resized_by) == (16, "antialiased bicubic")
    assert "a generator has no splits" in refused("run:test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("absent", "REAL: 'absent' is not found: a run folder, "),
        ("absent:test", "REAL: 'absent:test' is not found"),
        ("digits:valid", "REAL: 'digits:valid' is not found"),
        ("~nobody-of-that-name", "REAL: ~nobody-of-that-name: there is no user"),
        ("n" * 300, "is too long; expected at most 255 bytes a name"),
        ("text.txt", "REAL: 'text.txt' is neither of these"),
    ],
)
def test_what_is_no_source_is_named(text, message, here):
    (here / "text.txt").touch()
    assert message in refused(text)
