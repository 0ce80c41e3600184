"""Folders of images: every entry is read, skipped by a rule and counted, or refused by its name."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnorm.experiment.data import DataConfig, has_split, load_images, read_images
from convnorm.experiment.errors import InputError


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save_images(folder: Path, pixels: np.ndarray, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}{suffix}")


def make(root: Path, *names: str) -> None:
    """Write an 8x8 image under each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(8, 8)).save(root / name, "PNG")


def config(root: Path, size: int = 8) -> DataConfig:
    return DataConfig("folder", str(root), size)


def refused(root: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        load_images(config(root), split)
    line = str(caught.value)
    assert "\n" not in line
    return line


# ------------------------------------------------------------------------------------ read


def test_class_folders_of_a_split_are_read_in_the_order_of_their_names(tmp_path):
    pixels = random_pixels(5, 8, 8, 3)
    save_images(tmp_path / "train" / "b", pixels[3:])
    save_images(tmp_path / "train" / "a", pixels[:3])
    save_images(tmp_path / "test" / "a", pixels[:1])
    save_images(tmp_path / "test" / "b", pixels[4:], ".BMP")
    train, test = load_images(config(tmp_path)), load_images(config(tmp_path), "test")
    assert np.array_equal(train.images.permute(0, 2, 3, 1), pixels)
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.classes == test.classes == ("a", "b")
    assert np.array_equal(test.images.permute(0, 2, 3, 1), pixels[[0, 4]])


def test_gray_files_make_one_channel_and_one_colored_file_makes_three(tmp_path, capfd):
    """The images that were read before the colored one must not be lost."""
    gray = random_pixels(3, 8, 8)
    save_images(tmp_path, gray)
    images = load_images(config(tmp_path))
    assert np.array_equal(images.images[:, 0], gray)
    assert (images.images.shape[1], images.classes) == (1, ("all",))
    color = random_pixels(8, 8, 3)
    Image.fromarray(color).save(tmp_path / "3.png")
    images = load_images(config(tmp_path)).images
    assert np.array_equal(images[:3], gray[:, None].repeat(3, 1))
    assert np.array_equal(images[3].permute(1, 2, 0), color)
    assert capfd.readouterr() == ("", "")  # no progress bar outside a terminal


SUFFIXES = "png JPG jpeg webp bmp gif tif tiff ppm pgm avif jp2 tga qoi pcx ico sgi dib jfif"


@pytest.mark.parametrize("suffix", SUFFIXES.split())
def test_every_suffix_is_read(suffix, tmp_path):
    Image.fromarray(random_pixels(16, 16)).convert("L" if suffix == "pgm" else "RGB").save(
        tmp_path / f"0.{suffix}"
    )
    assert load_images(config(tmp_path)).images.shape[0] == 1


def test_an_image_needs_no_suffix_of_its_own(tmp_path):
    make(tmp_path, "image", "image.png~", "image.PNG", "image.png")
    assert len(load_images(config(tmp_path)).images) == 4


def test_images_of_all_sizes_are_resized_as_they_are_read(tmp_path, monkeypatch):
    """Kept until all are read, 401 images of 2000 pixels took 4.5 GiB."""
    for size in (8, 12, 64):
        save_images(tmp_path / str(size), random_pixels(2, size, size))
    images = load_images(config(tmp_path, 16))
    assert images.images.shape == (6, 1, 16, 16)
    assert images.found == (
        f"6 images in 3 classes from {tmp_path}, 8x8 to 64x64 resized to 16x16 "
        "(antialiased bicubic)"
    )
    monkeypatch.setattr("convnorm.experiment.memory.available_bytes", lambda: 6 * 16 * 16)
    assert len(load_images(config(tmp_path, 16)).images) == 6
    with pytest.raises(InputError, match="6 images of 17x17 pixels would take"):
        load_images(config(tmp_path, 17))


def test_an_image_is_the_same_alone_and_among_others(tmp_path):
    pixels = random_pixels(5, 24, 24, 3)
    save_images(tmp_path / "folder", pixels)
    np.savez(tmp_path / "all.npz", images=pixels)
    npz = load_images(DataConfig("npz", str(tmp_path / "all.npz"), 16))
    assert load_images(config(tmp_path / "folder", 16)).sha256() == npz.sha256()


# --------------------------------------------------------------------------------- skipped


def test_what_is_skipped_is_counted_and_never_a_class(tmp_path):
    make(tmp_path, "a/0.png", "b/1.png", "b/2.png")
    make(tmp_path, "@eaDir/a.png", "__MACOSX/a.png", ".ipynb_checkpoints/a.png", "b/@eaDir/1.png")
    for name in ("README", "a/labels.csv", "a/.DS_Store", "b/._1.png", "Thumbs.db", "b/NOTES.TXT"):
        (tmp_path / name).touch()
    os.symlink("nowhere", tmp_path / "a" / ".lock")
    images = load_images(config(tmp_path))
    assert images.classes == ("a", "b")
    assert images.found == (
        f"3 images in 2 classes from {tmp_path} (11 files skipped: hidden .ipynb_checkpoints and "
        "3 more, of the system @eaDir and 3 more, text README and 2 more), 8x8"
    )


def test_validation_images_are_skipped_beside_train_and_test(tmp_path):
    make(tmp_path, "train/a/0.png", "test/a/0.png", "test/a/1.png", "valid/a/0.png")
    (tmp_path / "readme.md").touch()
    found = load_images(config(tmp_path), "test").found
    assert found == (
        f"2 images in 1 class from {tmp_path / 'test'} (2 files skipped: text readme.md, "
        "validation valid), 8x8"
    )


# --------------------------------------------------------------------------------- refused


def link(root: Path, name: str, target: object) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, root / name)


def fifo(root: Path) -> None:
    os.mkfifo(root / "a" / "pipe.png")


# What is done to a/0.png and b/0.png -> what the line says.
BAD_FOLDERS = {
    "class without images": (lambda r: (r / "c").mkdir(), "c: no images in it"),
    "class of skipped files": (
        lambda r: ((r / "c").mkdir(), (r / "c" / ".x").touch()),
        "c: no images in it (1 file skipped: hidden .x)",
    ),
    "images beside folders": (lambda r: make(r, "x.png"), "holds images and folders ('x.png'"),
    "archive beside folders": (lambda r: (r / "x.zip").touch(), "('x.zip' beside 'a')"),
    "folders below a class": (lambda r: make(r, "b/c/0.png"), "b/c: a folder below the class"),
    "text called png": (lambda r: (r / "a/1.png").write_text("x"), "a/1.png: not a readable"),
    "empty file": (lambda r: (r / "a/1.png").touch(), "a/1.png: not a readable image (the file is"),
    "array": (lambda r: np.save(r / "a/1.npy", random_pixels(8, 8)), "a/1.npy: not a readable"),
    "dangling link": (lambda r: link(r, "a/1.png", "nowhere"), "a/1.png: is a link that leads now"),
    "dangling class": (lambda r: link(r, "c", "nowhere"), "c: is a link that leads nowhere"),
    "ring of links": (lambda r: link(r, "c", "c"), "c: cannot be read (Too many levels of"),
    "link to the root": (lambda r: link(r, "c", r), "a folder below the class folder 'c'"),
    "two links to a class": (lambda r: link(r, "c", "a"), "c: is the same folder as a"),
    "pipe": (fifo, "a/pipe.png: is no regular file"),
    "not square": (
        lambda r: save_images(r / "c", random_pixels(1, 8, 6)),
        "c/0.png: is 6 wide and 8 high, expected a square",
    ),
    "name of bytes": (
        lambda r: os.mkdir(os.fsencode(r) + b"/caf\xe9"),
        r"a class is called 'caf\udce9', expected",
    ),
    "composed and not": (
        lambda r: make(r, "\u00e9/0.png", "e\u0301/0.png"),
        "more than one class is called '\u00e9'",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_refused_with_its_name(case, tmp_path):
    spoil, expected = BAD_FOLDERS[case]
    make(tmp_path, "a/0.png", "b/0.png")
    load_images(config(tmp_path))
    spoil(tmp_path)
    line = refused(tmp_path)
    assert line.startswith(str(tmp_path))
    assert expected in line


def test_a_folder_that_is_not_there_or_empty_is_named(tmp_path):
    assert f"data.root: {tmp_path / 'x'} is not a folder" in refused(tmp_path / "x")
    assert f"{tmp_path}: no images in it" in refused(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def denied(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", denied)
    assert refused(tmp_path) == f"{tmp_path}: cannot be read (Permission denied)"


def test_without_a_size_that_is_asked_for_all_have_one(tmp_path):
    save_images(tmp_path, random_pixels(1, 8, 8))
    Image.fromarray(random_pixels(10, 10)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"1\.png: 10x10 pixels, expected 8x8 as in 0\.png"):
        read_images("folder", str(tmp_path), None, None)


def test_a_class_is_known_by_either_form_of_its_name(tmp_path):
    """A disk of macOS gives names back decomposed; then f would come before e with an accent."""
    names = ("\u00e9", "f")
    for split, form in (("train", "NFC"), ("test", "NFD")):
        make(tmp_path, *(f"{split}/{unicodedata.normalize(form, name)}/0.png" for name in names))
    train, test = load_images(config(tmp_path)), load_images(config(tmp_path), "test")
    assert train.classes == test.classes == ("f", "\u00e9")


# ---------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("train2017", "val2017"),
        ("train", "Test"),
        ("train", "test", "testing"),
        ("train_images", "test_images"),
        ("trainset", "testset"),
        ("training", "validation"),
        ("trainA", "trainB", "testA", "testB"),
        ("x_train", "x_test"),
        ("val",),
        ("valid", "invalid"),
        ("train", "bus"),
        ("test", "control"),
        ("train", "test", "unlabeled"),
        ("train", "test", "labels.npy"),
    ],
    ids=",".join,
)
def test_what_reads_as_a_split_is_never_a_class(names, tmp_path):
    """Read as classes, the test images would be trained on."""
    make(tmp_path, *(name if "." in name else f"{name}/0.png" for name in names))
    for split in ("train", "test"):
        line = refused(tmp_path, split)
        assert "expected" in line
        assert names[0].rpartition("/")[2] in line or names[-1] in line


def test_splits_within_a_split_are_no_classes(tmp_path):
    make(tmp_path, "train/train/0.png", "train/test/0.png")
    assert "train: holds only folders of splits (test, train), expected cl" in refused(tmp_path)


@pytest.mark.parametrize(
    "names", [("train_station", "bus"), ("latest", "contest"), ("bullet_train", "passenger_train")]
)
def test_classes_whose_names_have_such_a_word_in_them_stay_classes(names, tmp_path):
    make(tmp_path, *(f"{name}/0.png" for name in names))
    assert load_images(config(tmp_path)).classes == tuple(sorted(names))


def test_a_class_of_such_a_name_is_one_within_a_split(tmp_path):
    """CIFAR-100 has a class called train."""
    make(tmp_path, *(f"{s}/{c}/0.png" for s in ("train", "test") for c in ("bus", "train")))
    assert load_images(config(tmp_path), "test").classes == ("bus", "train")


def test_training_never_reads_the_test_folder(tmp_path):
    save_images(tmp_path / "test", random_pixels(1, 8, 8))
    assert "no folder 'train' in it, so it has no train images (it has test)" in refused(tmp_path)
    save_images(tmp_path / "other" / "a", random_pixels(1, 8, 8))
    assert "no folder 'test'" in refused(tmp_path / "other", "test")
    os.symlink("test", tmp_path / "train")
    (tmp_path / "other" / "a" / "0.png").unlink()
    (tmp_path / "other" / "a").rmdir()
    (tmp_path / "other").rmdir()
    assert "train and test are one folder" in refused(tmp_path)


def test_a_class_that_one_split_lacks_is_named(tmp_path):
    """Numbered on its own, each split would give the same class another label."""
    make(tmp_path, "train/a/0.png", "train/b/0.png", "test/b/0.png")
    for split in ("train", "test"):
        assert "only one of train and test: a" in refused(tmp_path, split)


def test_whether_there_is_a_split_is_known_without_reading_images(tmp_path):
    for name in ("train/a/0.png", "test/a/0.png", "other/a/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("no image")
    other = config(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path.parent / f"{tmp_path.name}-other")
    other = config(tmp_path.parent / f"{tmp_path.name}-other")
    assert has_split(config(tmp_path), "test")
    assert has_split(other, "train")
    assert not has_split(other, "test")
    assert has_split(DataConfig("digits"), "test")
    with pytest.raises(InputError, match="is not a folder"):
        has_split(config(tmp_path / "nowhere"), "test")
