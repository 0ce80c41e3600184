"""scripts/prepare_data.py: from files of many kinds to one file, in order, whole or not at all."""

import io
import json
import os
import signal
import sys
import tarfile
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import Child, script

from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.data.preparing import prepare as prepare_module
from convnorm.experiment.data.preparing.crop import cropped
from convnorm.experiment.data.preparing.find import source_at
from convnorm.experiment.data.preparing.parts import PER_PART, Source
from convnorm.experiment.data.preparing.prepare import prepare
from convnorm.experiment.data.storing import Building
from convnorm.experiment.errors import InputError, exit_code

RANDOM = np.random.default_rng(0)


def picture(width: int, height: int, value: int | None = None) -> Image.Image:
    shape = (height, width, 3)
    pixels = RANDOM.integers(0, 256, shape, np.uint8) if value is None else np.full(shape, value)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def done(source: Path, out: Path, size: int = 4, **options) -> np.ndarray:
    """Prepare a source and return the value of each image, which are of one colour."""
    given = {"workers": 1, "skip_damaged": False, **options}
    columns = given.pop("image_column", "image"), given.pop("label_column", None)
    file = prepare(source_at(source, *columns), out, size, **given)
    return np.load(file.path, mmap_mode="r")[:, 0, 0, 0]


def folder(root: Path, num: int, classes: int = 2) -> Path:
    """Image i, of class i modulo `classes`, has the value i in all pixels."""
    for number in range(num):
        path = root / f"class{number % classes}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(5 + number % 3, 6, number % 251).save(path)
    return root


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


# -------------------------------------------------------------------------------------- an image


def test_the_middle_square_is_resized_by_lanczos():
    image = picture(17, 11)
    found = cropped(np.asarray(image), (7, 7))
    expected = image.crop((3, 0, 14, 11)).resize((7, 7), Image.Resampling.LANCZOS)
    assert np.array_equal(found.pixels.transpose(1, 2, 0), np.asarray(expected))
    assert found.native == (11, 11)
    other = image.crop((3, 0, 14, 11)).resize((7, 7), Image.Resampling.BICUBIC)
    assert not np.array_equal(np.asarray(other), np.asarray(expected))
    tall = cropped(np.asarray(picture(4, 9, 8)), (4, 4))
    assert tall.pixels.tolist() == np.full((3, 4, 4), 8).tolist()


def test_the_middle_of_another_shape_is_as_large_as_it_can_be():
    image = picture(17, 11)
    wide, tall = (cropped(np.asarray(image), sides) for sides in ((4, 8), (8, 4)))
    expected = image.crop((0, 1, 17, 9)).resize((8, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(wide.pixels.transpose(1, 2, 0), np.asarray(expected))
    assert (wide.native, tall.native) == ((8, 17), (11, 5))
    assert tall.pixels.shape == (3, 8, 4)
    assert cropped(np.asarray(picture(1, 9)), (2, 64)).native == (1, 1)


# --------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_is_written_in_the_order_of_names(workers, tmp_path, monkeypatch):
    num = 2 * PER_PART + 3 if workers > 1 else 9
    monkeypatch.setattr(prepare_module, "AHEAD", 1)  # of three parts, one is waited for early
    values = done(folder(tmp_path / "source", num), tmp_path / "train.npy", workers=workers)
    order = [*range(0, num, 2), *range(1, num, 2)]
    assert values.tolist() == [number % 251 for number in order]
    images = load_images(DataConfig("prepared", str(tmp_path / "train.npy"), 4))
    assert images.labels.tolist() == [number % 2 for number in order]
    assert images.classes == ("class0", "class1")
    made = "(center crop, Lanczos of 5x5 to 6x6 pixels to 4x4)"
    assert images.found.endswith(f"train.npy {made}, 4x4")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["train.npy"]


def test_shards_are_read_as_webdataset_has_them(tmp_path):
    image = {value: encoded(picture(6, 6, value), "PNG") for value in range(10, 16)}
    tar(
        tmp_path / "b.tar",
        [
            ("x/0004.png", image[14]),
            ("x/0004.cls", b"7\n"),
            ("x/0005.cls", b"7"),
            ("x/0005.jpg", image[15]),
        ],
    )
    tar(
        tmp_path / "a.tar",
        [
            ("0000.png", image[10]),
            ("0000.cls", b"3"),
            ("0000.txt", b"a caption"),
            ("._0000.png", b"of a Mac"),
            ("0001.json", json.dumps({"label": 7, "id": 5}).encode()),
            ("0001.PNG", image[11]),
            ("../../0002.png", image[12]),
            ("../../0002.cls", b"3"),
            ("x/0002.png", image[13]),
            ("x/0002.json", b'{"cls": 5}'),
        ],
    )
    assert done(tmp_path, tmp_path / "train.npy").tolist() == [10, 11, 12, 13, 14, 15]
    images = load_images(DataConfig("prepared", str(tmp_path / "train.npy"), 4))
    assert [images.classes[label] for label in images.labels] == ["3", "7", "3", "5", "7", "7"]
    assert source_at(tmp_path, "", "").found == "2 shards (1 other members skipped)"
    assert not (tmp_path.parent.parent / "0002.png").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.cls", b"3")], "1: has the images none; expected one"),
        ([("1.png", b""), ("1.jpg", b"")], r"has the images 1\.png, 1\.jpg; expected one"),
        ([("1.png", b""), ("1.cls", b"cat")], r"1\.cls: b'cat'; expected a label"),
        ([("1.png", b""), ("1.cls", b"-1")], r"1\.cls: b'-1'; expected a label"),
        ([("1.png", b""), ("1.cls", b"1"), ("1.json", b'{"cls": 2}')], r"labels \[1, 2\]"),
        ([("1.png", b""), ("1.cls", b"1"), ("2.png", b"")], r"2\.png: has no label, as 1 of 2"),
        ([("1.png", b""), ("1.cls", b" " * 2**21)], "has 2097152 bytes; expected a label"),
        ([("._1.png", b"")], "no images in it"),
    ],
)
def test_a_shard_that_is_not_clear_is_refused(members, message, tmp_path):
    with pytest.raises(InputError, match=message):
        source_at(tar(tmp_path / "a.tar", members), "", "")


def test_links_and_compressed_shards_are_not_read(tmp_path):
    """What a link in a shard names is not of the shard."""
    (tmp_path / "secret.png").write_bytes(encoded(picture(4, 4, 1)))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(info)
    with pytest.raises(InputError, match="no images in it"):
        source_at(tmp_path / "a.tar", "", "")
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(tmp_path / "secret.png", "1.png")
    with pytest.raises(InputError, match=r"b\.tar: cannot be read as a tar file that is not comp"):
        source_at(tmp_path / "b.tar", "", "")
    content = tar(tmp_path / "c.tar", [("1.png", b"x" * 2000), ("2.png", b"")]).read_bytes()
    (tmp_path / "c.tar").write_bytes(content[:1000])
    with pytest.raises(InputError, match=r"c\.tar"):
        done(tmp_path / "c.tar", tmp_path / "out.npy")


def parquet(path: Path, columns: dict[str, list], names: list[str] | None = None) -> None:
    """Write columns as Hugging Face's library does, in groups of two rows.

    columns: values of images under `image`, in structs, and under `raw`, as they are; or labels.
    """
    arrow, written = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def column(name: str, values: list) -> list:
        if name not in ("image", "raw"):
            return values
        images = [value and encoded(picture(6, 6, value)) for value in values]
        return images if name == "raw" else [{"bytes": each, "path": None} for each in images]

    table = arrow.table({name: column(name, values) for name, values in columns.items()})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    written.write_table(table, path, row_group_size=2)


def test_parquet_files_are_read_by_groups_of_rows(tmp_path):
    for name, first in (("b", 4), ("a", 1)):
        columns = {"image": [first, first + 1, first + 2], "label": [2, 0, 2]}
        parquet(tmp_path / f"{name}.parquet", columns, ["cat", "dog", "eel"])
    assert done(tmp_path, tmp_path / "train.npy").tolist() == [1, 2, 3, 4, 5, 6]
    images = load_images(DataConfig("prepared", str(tmp_path / "train.npy"), 4))
    assert images.classes == ("cat", "dog", "eel")
    assert images.labels.tolist() == [2, 0, 2] * 2


def test_columns_of_other_names_are_asked_for(tmp_path):
    file = tmp_path / "a.parquet"
    parquet(file, {"raw": [1, 2, 3, 4], "fine": [9, 9, 5, 9]})
    with pytest.raises(InputError, match=r"has no 'image'; expected one of raw, fine"):
        done(file, tmp_path / "train.npy")
    columns = {"image_column": "raw", "label_column": "fine"}
    assert done(file, tmp_path / "train.npy", **columns).tolist() == [1, 2, 3, 4]
    images = load_images(DataConfig("prepared", str(tmp_path / "train.npy"), 4))
    assert (images.classes, images.labels.tolist()) == (("5", "9"), [1, 1, 0, 1])
    with pytest.raises(InputError, match=r"--label_column: .* has no 'none'; expected one of raw"):
        done(file, tmp_path / "other.npy", image_column="raw", label_column="none")
    with pytest.raises(InputError, match="fine: has no bytes"):
        done(file, tmp_path / "other.npy", image_column="fine")
    parquet(file, {"image": [1], "label": [3]}, ["a", "b"])
    with pytest.raises(InputError, match="label: 3 is not allowed; expected 0 to 1"):
        done(file, tmp_path / "other.npy")


def test_an_lmdb_is_read_in_the_order_of_its_keys(tmp_path):
    lmdb, source = pytest.importorskip("lmdb"), tmp_path / "church"
    written = lmdb.open(str(source), map_size=2**20)
    with written, written.begin(write=True) as writing:
        for key, value in ((b"bb", 3), (b"aa", 2), (b"cc", 4)):
            writing.put(key, encoded(picture(9, 6, value)))
    before = {path: path.stat().st_mtime_ns for path in source.iterdir()}
    assert done(source, tmp_path / "train.npy").tolist() == [2, 3, 4]
    assert {path: path.stat().st_mtime_ns for path in source.iterdir()} == before
    assert load_images(DataConfig("prepared", str(tmp_path), 4)).classes == ("all",)


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow"), ("church/data.mdb", "lmdb")]
)
def test_a_package_that_is_missing_is_named(name, package, tmp_path, monkeypatch):
    for module in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    source = file.parent if package == "lmdb" else file
    with pytest.raises(InputError, match=f"{source}: needs {package}.*: pip install {package}$"):
        source_at(source, "image", "label")


def test_a_source_of_no_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"SOURCE: .*: not found: a folder of images"):
        source_at(tmp_path / "none", "", "")
    (tmp_path / "x.zip").touch()
    with pytest.raises(InputError, match=r"SOURCE: .*: is none of these"):
        source_at(tmp_path / "x.zip", "", "")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "test").mkdir()
    with pytest.raises(InputError, match="has splits, expected the one that is wanted"):
        source_at(tmp_path / "data", "", "")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train-0-of-1.parquet", "test-0-of-1.parquet"), "holds files of test and train; expec"),
        (("set-train-0000.tar", "set-val-0000.tar"), "holds files of train and validation; expec"),
        (("a.tar", "b.tar.gz"), r"b\.tar\.gz: stands beside \.tar files; expected these alone"),
        (("a.tar", "b.parquet"), r"b\.parquet: stands beside \.tar files"),
        (("a.parquet", "stray.png"), r"stray\.png: stands beside \.parquet files"),
        (("a.tar", "more/b.tar"), "more: stands beside"),
    ],
)
def test_shards_of_two_splits_or_of_two_kinds_are_not_mixed(names, message, tmp_path):
    """Test images would be trained on, or a part of the images be left out without a word."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"SOURCE: .*{message}"):
        source_at(tmp_path, "image", None)


# ---------------------------------------------------------------------- damage, kills, second calls


def test_a_damaged_image_is_named_and_left_out_by_a_flag_alone(tmp_path, capsys):
    source, out = folder(tmp_path / "source", 6), tmp_path / "train.npy"
    bad = source / "class0" / "0002.png"
    bad.write_bytes(bad.read_bytes()[:45])
    with pytest.raises(InputError, match=rf"{bad}: not a readable image .*--skip_damaged"):
        done(source, out)
    assert not out.exists()
    values = done(source, out, skip_damaged=True)
    assert values.tolist() == [0, 4, 1, 3, 5]
    assert f"left out: {bad}" in capsys.readouterr().err
    images = load_images(DataConfig("prepared", str(out), 4))
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    assert "1 damaged left out" in images.found


def test_a_row_without_an_image_is_left_out_by_the_flag_too(tmp_path, capsys):
    file, out = tmp_path / "a.parquet", tmp_path / "train.npy"
    parquet(file, {"image": [1, None, 3]})
    with pytest.raises(InputError, match=r"row 1 of group 0: image: has no bytes.*--skip_damaged"):
        done(file, out)
    assert done(file, out, skip_damaged=True).tolist() == [1, 3]
    assert "left out: " in capsys.readouterr().err


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    source = folder(tmp_path / "source", 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="decompression bomb"):
        done(source, tmp_path / "train.npy")


@pytest.mark.parametrize("cut", [3, PER_PART - 5, PER_PART + 5])
def test_what_was_cut_goes_on_and_ends_the_same(cut, tmp_path, monkeypatch):
    source = folder(tmp_path / "source", PER_PART + 20, classes=1)
    bad = source / "class0" / "0001.png"
    bad.write_bytes(b"")
    options = {"skip_damaged": True}
    done(source, tmp_path / "whole.npy", **options)
    add, count = Building.add, []

    def failing(self, *args):
        if len(count) == cut:
            raise KeyboardInterrupt
        count.append(args)
        add(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Building, "add", failing)
        with pytest.raises(KeyboardInterrupt):
            done(source, tmp_path / "cut.npy", **options)
    monkeypatch.setattr(Building, "add", lambda *args: count.append(args) or add(*args))
    done(source, tmp_path / "cut.npy", **options)
    assert len(count) == PER_PART + 19
    assert (tmp_path / "cut.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


class Deadly:
    """A part that kills who reads it, as a system without memory does."""

    def __len__(self) -> int:
        return 1

    def contents(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told_in_one_line(tmp_path):
    parts = [*source_at(folder(tmp_path / "images", 2), "image", "label").parts, Deadly()]
    source = Source(parts, np.zeros(3, np.int64), ("one",), "", "")
    with pytest.raises(InputError, match=r"^--workers: one of 2 processes was killed"):
        prepare(source, tmp_path / "out.npy", 4, workers=2, skip_damaged=False)
    assert not (tmp_path / "out.npy").exists()


def test_a_second_call_does_nothing_and_another_source_is_not_written_over_it(tmp_path):
    source, out = folder(tmp_path / "source", 4), tmp_path / "train.npy"
    done(source, out)
    before = out.read_bytes(), out.stat().st_mtime_ns
    done(source, out)
    with pytest.raises(InputError, match=r"holds other images, .* expected a new file"):
        done(source, out, size=5)
    (source / "class0" / "new.png").write_bytes(encoded(picture(4, 4)))
    with pytest.raises(InputError, match=r"holds other images, .* expected a new file"):
        done(source, out)
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before


def test_a_full_disk_is_told_and_a_size_that_cannot_fit_before_the_work(tmp_path, monkeypatch):
    source = folder(tmp_path / "source", 4)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Building, "add", full)
        with pytest.raises(InputError, match="No space left on device"):
            done(source, tmp_path / "train.npy")
    usage = types.SimpleNamespace(free=10)
    monkeypatch.setattr("convnorm.experiment.data.storing.shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"4 images of 4x4 pixels take up to .* free"):
        done(source, tmp_path / "other.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# ------------------------------------------------------------------------------------ the script


def test_the_script_prepares_what_a_run_can_read(tmp_path, monkeypatch, capsys):
    source = folder(tmp_path / "source", 4)
    out = tmp_path / "train.npy"
    with pytest.raises(SystemExit) as ended:
        script("prepare_data.py", str(source), str(out), "--size", "4", "--workers", "1")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    sha256 = load_images(DataConfig("prepared", str(out), 4)).sha256()
    assert said.startswith(f"{out}: 4 images of 3x4x4 in 2 classes (center crop")
    assert said.endswith(f"SHA-256 {sha256}\n")
    wide = str(tmp_path / "wide.npy")
    with pytest.raises(SystemExit):
        script("prepare_data.py", str(source), wide, "--size=[3,4]", "--workers=1")
    assert load_images(DataConfig("prepared", wide, (3, 4))).found.endswith(" to 4x3), 4x3")
    capsys.readouterr()
    for argv, message in (
        ([str(source), str(tmp_path / "x.npy"), "--size=4x3"], "--size: '4x3' is not allowed"),
        ([str(source), str(tmp_path / "x.npy"), "--size=[4,0]"], "--size: '0' is not allowed"),
        ([str(source), str(tmp_path / "x.bin"), "--size=4"], "expected a name that ends in .npy"),
        ([str(source), str(tmp_path / "no" / "x.npy"), "--size=4"], "OUT: .* cannot be written"),
        ([str(source), str(tmp_path / "x.npy")], "--size: missing"),
    ):
        with pytest.raises(SystemExit) as ended:
            script("prepare_data.py", *argv)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message.split(".*")[-1] in error


def slow_script(source: Path, out: Path) -> None:
    add = Building.add
    Building.add = lambda *args: (time.sleep(0.1), print("added", flush=True), add(*args))

    def main() -> None:
        done(source, out)

    sys.exit(exit_code(main))


def test_ctrl_c_leaves_no_file_and_says_so(tmp_path):
    child = Child(
        tmp_path / "out.txt", slow_script, folder(tmp_path / "source", 100), tmp_path / "train.npy"
    )
    deadline = time.monotonic() + 60
    while "added" not in child.file.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.process.pid, signal.SIGINT)
    code, output = child.end()
    assert code == 130
    assert output.endswith("interrupted; what was saved before is intact\n")
    assert not (tmp_path / "train.npy").exists()
    assert (tmp_path / ".train.npy.part").exists()
