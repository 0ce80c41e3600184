"""Images in .npz files: what a file claims is checked before anything of that size is made."""

import pickle
import resource
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from convnorm.experiment.data import DataConfig, has_split, load_images, read_images
from convnorm.experiment.errors import InputError


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


GOOD = random_pixels(3, 8, 8, 3)


def load(root: Path, split: str = "train"):
    return load_images(DataConfig("npz", str(root), 8), split)


def refused(root: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        load(root, split)
    line = str(caught.value)
    assert "\n" not in line
    return line


# ---------------------------------------------------------------------------------- arrays


def test_arrays_come_back_as_images_labels_and_classes(tmp_path):
    pixels = random_pixels(4, 8, 8, 3)
    for split, part in (("train", pixels[:3]), ("test", pixels[3:])):
        labels = np.arange(len(part), dtype=">u2")
        np.savez(tmp_path / f"my_{split}.npz", images=part, labels=labels, classes=["a", "b", "c"])
    for root in (tmp_path, tmp_path / "my_train.npz"):
        train, test = load(root), load(root, "test")
        assert np.array_equal(train.images.permute(0, 2, 3, 1), pixels[:3])
        assert np.array_equal(test.images.permute(0, 2, 3, 1), pixels[3:])
        assert (train.labels.tolist(), train.classes) == ([0, 1, 2], ("a", "b", "c"))
        assert train.labels.dtype == torch.int64
    assert np.array_equal(load(tmp_path / "my_test.npz", "test").images, test.images)
    assert train.found == f"3 images in 3 classes from {tmp_path / 'my_train.npz'}, 8x8"


def test_labels_are_optional_and_gray_images_need_no_channel_axis(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, images=random_pixels(3, 8, 8))
    images = load(file)
    assert images.images.shape == (3, 1, 8, 8)
    assert (images.labels.tolist(), images.classes) == ([0, 0, 0], ("0",))
    np.savez_compressed(file, images=np.asfortranarray(GOOD), labels=np.uint8([2, 0, 1]))
    images = load(file)
    assert np.array_equal(images.images.permute(0, 2, 3, 1), GOOD)
    assert (images.labels.tolist(), images.classes) == ([2, 0, 1], ("0", "1", "2"))


def test_samples_of_guided_diffusion_are_read_and_other_keys_are_said(tmp_path):
    file = tmp_path / "VIRTUAL_64.npz"
    np.savez(file, GOOD, np.array([0, 1, 0]), mu=np.zeros(5), sigma=np.zeros((5, 5)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("README.txt", "of somebody")
    images = load(file)
    assert np.array_equal(images.images.permute(0, 2, 3, 1), GOOD)
    assert (images.labels.tolist(), images.classes) == ([0, 1, 0], ("0", "1"))
    assert images.found == (
        f"3 images in 2 classes from {file} (3 keys skipped: other mu and 2 more), 8x8"
    )


def labelled(labels: list | np.ndarray, **more) -> dict:
    return {"images": GOOD, "labels": np.asarray(labels), **more}


BAD_ARRAYS = {
    "images: missing, expected uint8 (N, H, W, C); its keys: x_train, y_train": {
        "x_train": GOOD,
        "y_train": [0, 1, 2],
    },
    "images: got float32 (3, 8, 8, 3), expected uint8": {"images": GOOD.astype(np.float32)},
    "images: got uint8 (3, 3, 8, 8), expected": {"images": GOOD.transpose(0, 3, 1, 2)},
    "images: got uint8 (8, 3), expected": {"images": GOOD[0, 0]},
    "images: got uint8 (0, 8, 8, 3), expected at least one image": {"images": GOOD[:0]},
    "images: got object (1,), expected uint8": {"images": np.array([None])},
    "arr_0: got float64 (3, 8, 8, 3), expected uint8": {"arr_0": GOOD / 255},
    "labels: got object (3,), expected integers": labelled([None] * 3),
    "labels: got int64 (2,), expected integers (3,)": labelled([0, 1]),
    "labels: got int64 (3, 1), expected integers (3,)": labelled([[0], [1], [2]]),
    "labels: got float64 (3,), expected integers": labelled([0.0, 1.0, 2.0]),
    "labels: got 3 different ones from -1 to 1, expected each of 0 to 2": labelled([-1, 0, 1]),
    "labels: got 3 different ones from 1 to 3, expected each of 0 to 2": labelled([1, 2, 3]),
    "labels: got 2 different ones from 0 to 2, expected each of 0 to 1": labelled([0, 2, 0]),
    "labels: got 2 different ones from 0 to 9223372036854775807": labelled([0, 2**63 - 1, 0]),
    "labels: got 2 different ones from 0 to 18446744073709551615": labelled(
        np.array([0, 2**64 - 1, 0], np.uint64)
    ),
    "labels: got 0 to 2, expected 0 to 1": labelled([0, 1, 2], classes=["a", "b"]),
    "labels: got -1 to 1, expected 0 to 1": labelled([-1, 0, 1], classes=["a", "b"]),
    "labels: missing, but label may hold them; expected the key labels": {
        "images": GOOD,
        "label": [0, 1, 2],
    },
    "labels: missing, but targets, y may": {"images": GOOD, "y": [0] * 3, "targets": np.eye(3)},
    "labels: missing, but arr_1 may hold them": {"arr_0": GOOD, "arr_1": [0.5, 1, 2]},
    "labels: missing, expected them with 2 classes": {"images": GOOD, "classes": ["a", "b"]},
    "classes: got int64 (2,), expected strings": labelled([0, 1, 1], classes=[0, 1]),
    "classes: got <U1 (), expected strings": labelled([0, 0, 0], classes="a"),
    "classes: more than one class is called 'a'": labelled([0, 1, 2], classes=["a", "b", "a"]),
    "classes: more than one class is called '\u00e9'": labelled(
        [0, 1, 1], classes=["\u00e9", "e\u0301"]
    ),
    "classes: a class is called '', expected a name": labelled([0, 1, 1], classes=["a", ""]),
    "classes: a class is called 'a\\nb', expected": labelled([0, 1, 1], classes=["a\nb", "b"]),
    "classes: got <U5 (32769,), expected at most 32768": labelled(
        [0, 1, 1], classes=np.arange(32769).astype("<U5")
    ),
}


@pytest.mark.parametrize("expected", BAD_ARRAYS)
def test_a_bad_npz_is_refused_with_its_file_and_key(expected, tmp_path):
    file = tmp_path / "bad.npz"
    np.savez(file, **BAD_ARRAYS[expected])
    assert refused(file).startswith(f"{file}: {expected}")


# --------------------------------------------------------------------------------- archive


def npy(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header_of(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text + b"\n"


def patched(content: bytes, offset: int, value: int) -> bytes:
    """Set a field of 2 bytes in the entries of the archive's only member."""
    for start, at in ((b"PK\3\4", offset), (b"PK\1\2", offset + 2)):
        place = content.index(start) + at
        content = content[:place] + struct.pack("<H", value) + content[place + 2 :]
    return content


def archive(**members: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def twice() -> bytes:
    """An archive of two members of one name."""
    return archive(images=npy(GOOD), imagex=npy(GOOD)).replace(b"imagex", b"images")


HUGE = (10**6, 1024, 1024, 3)
BAD_ARCHIVES = {
    "encrypted": (patched(archive(images=npy(GOOD)), 6, 1), "images: cannot be read (File "),
    "unknown compression": (patched(archive(images=npy(GOOD)), 8, 77), "images: cannot be read"),
    "no array": (archive(images=b"no array"), "images: cannot be read (the magic string"),
    "huge header": (
        archive(images=b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + bytes(2**16)),
        "images: cannot be read",
    ),
    "huge shape": (archive(images=header_of(HUGE)), "images: its header says uint8 (1000000, 1024"),
    "overflowing shape": (archive(images=header_of((2**40, 2**40, 1))), "images: its header says"),
    "negative shape": (archive(images=header_of((-3, 8, 8))), "images: its header says"),
    "too few bytes": (archive(images=npy(GOOD)[:-1]), "images: its header says uint8 (3, 8, 8, 3)"),
    "too many bytes": (archive(images=npy(GOOD) + b"x"), "images: its header says uint8"),
    "name of bytes": (
        archive(imäges=npy(GOOD)).replace("ä".encode(), b"\xe4g"),
        "not an .npz file, or a truncated one",
    ),
    "only a text": (b"", "not an .npz file, or a truncated one"),
    "twice": (twice(), "images: is there twice, expected one"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_in_one_line(case, tmp_path):
    content, expected = BAD_ARCHIVES[case]
    file = tmp_path / "bad.npz"
    file.write_bytes(content)
    assert refused(file).startswith(f"{file}: {expected}")


def test_a_small_file_that_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "bomb.npz"
    file.write_bytes(archive(images=npy(np.zeros((500, 64, 64, 3), np.uint8))))
    assert file.stat().st_size < 10_000
    monkeypatch.setattr("convnorm.experiment.memory.available_bytes", lambda: 2**22)
    assert refused(file).startswith(
        f"{file}: images: uint8 (500, 64, 64, 3) would take 0.00572 GiB of memory"
    )


def test_labels_take_no_more_memory_than_there_are(tmp_path):
    """A class for each number up to the largest label would be 2**63 names."""
    file = tmp_path / "x_test.npz"
    np.savez(file, images=GOOD, labels=np.array([0, 2**63, 5], np.uint64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "labels: got 0 to 9223372036854775808, expected 0 to 32767" in refused(file, "test")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    """A .npy file, a pickle and half an archive must not reach the user as a traceback."""
    np.save(tmp_path / "array.npy", GOOD)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(GOOD))
    np.savez(tmp_path / "whole.npz", images=GOOD)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("array.npy", "pickle.npz", "half.npz"):
        assert refused(tmp_path / name).startswith(f"{tmp_path / name}: not an .npz file")
    middle = len(whole) // 2
    file = tmp_path / "flipped.npz"
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    assert refused(file).startswith(f"{file}: images: cannot be read")


# ---------------------------------------------------------------------------------- splits


def save(folder: Path, *names: str, **arrays) -> None:
    for index, name in enumerate(names):
        np.savez(folder / name, **{"images": GOOD + index, **arrays})


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (("x_train.npz", "x_test.npz"), "x_train.npz", "x_test.npz"),
        (("Train.npz", "Test.npz", "val.npz"), "Train.npz", "Test.npz"),
        (("xTrain.npz", "xTest.npz", "latest.npz"), "xTrain.npz", "xTest.npz"),
        (("training-2.npz", "testing-2.npz"), "training-2.npz", "testing-2.npz"),
        (("latest.npz", "x_train.npz"), "x_train.npz", None),
        (("contest.npz", "constrained.npz", "restrain.npz"), None, None),
        (("mytest.npz", "fastest.npz", "greatest.npz"), None, None),
    ],
)
def test_a_split_is_the_file_with_its_word(names, train, test, tmp_path):
    save(tmp_path, *names)
    for split, name in (("train", train), ("test", test)):
        assert has_split(DataConfig("npz", str(tmp_path)), split) == (name is not None)
        if name is None:
            assert f"expected one .npz file with the word {split!r}" in refused(tmp_path, split)
        else:
            assert f"from {tmp_path / name}" in load(tmp_path, split).found
    if test:
        assert f"from {tmp_path / test}" in load(tmp_path / train, "test").found


def test_other_files_of_a_folder_are_said(tmp_path):
    save(tmp_path, "x_train.npz", "x_test.npz", "x_val.npz", "more.npz")
    (tmp_path / "README").touch()
    assert "(3 files skipped: other README and 2 more)" in load(tmp_path).found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a_train.npz", "b_train.npz"), "with the word 'train', found a_train.npz, b_train.npz"),
        (("train_test.npz",), "its name speaks of test and of train images, expected one"),
    ],
)
def test_one_file_serves_one_split(names, message, tmp_path):
    save(tmp_path, *names)
    for root in (tmp_path, *([tmp_path / names[0]] if len(names) == 1 else [])):
        assert message in refused(root)


def test_a_link_serves_no_second_split(tmp_path):
    save(tmp_path, "x_train.npz")
    (tmp_path / "x_test.npz").symlink_to("x_train.npz")
    for root in (tmp_path, tmp_path / "x_train.npz"):
        assert "x_test.npz: is the same file as x_train.npz" in refused(root, "test")


def test_an_npz_that_is_not_where_it_should_be_is_named(tmp_path):
    assert "nowhere does not exist" in refused(tmp_path / "nowhere")
    assert "expected one .npz file with the word 'train', found none" in refused(tmp_path)
    save(tmp_path, "mine.npz", "a_train.npz", "b_test.npz", "c_val.npz")
    assert "no file beside it has its name with 'test' for 'train'" in refused(
        tmp_path / "a_train.npz", "test"
    )
    for name in ("mine.npz", "c_val.npz"):
        assert "lacks the word 'train'" in refused(tmp_path / name, "test")
    assert "its name says that it holds test images" in refused(tmp_path / "b_test.npz")


def test_a_file_that_is_given_itself_has_no_split(tmp_path):
    save(tmp_path, "a_test.npz")
    images = read_images("npz", str(tmp_path / "a_test.npz"), None, None).images
    assert np.array_equal(images.permute(0, 2, 3, 1), GOOD)


# --------------------------------------------------------------------------------- classes


def test_held_out_images_have_the_classes_of_training(tmp_path):
    """Counted alone, a test file without the last class has fewer classes than the network."""
    save(tmp_path, "x_train.npz", labels=[0, 1, 2])
    save(tmp_path, "x_test.npz", labels=[0, 1, 1])
    for root in (tmp_path, tmp_path / "x_train.npz", tmp_path / "x_test.npz"):
        assert load(root, "test").classes == ("0", "1", "2")
    save(tmp_path, "x_train.npz", labels=[0, 1, 2], classes=["a", "b", "c"])
    assert load(tmp_path, "test").classes == ("a", "b", "c")
    save(tmp_path, "x_test.npz", labels=[0, 1, 1], classes=["a", "c", "b"])
    assert "x_test.npz: classes: other names than in x_train.npz" in refused(tmp_path, "test")
    save(tmp_path, "x_test.npz", labels=[0, 1, 3])
    assert "labels: got 0 to 3, expected 0 to 2" in refused(tmp_path, "test")


def test_a_class_with_a_name_needs_no_image(tmp_path):
    save(tmp_path, "x.npz", labels=[0, 2, 2], classes=["a", "b", "c"])
    assert load(tmp_path / "x.npz").classes == ("a", "b", "c")
