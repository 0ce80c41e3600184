"""Images that stay on disk: the same runs as from memory, and what becomes of files that are not
whole."""

import fcntl
import gc
import os
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import (
    ALONE,
    SELECTED,
    Child,
    Crash,
    classifier_run,
    crash_before,
    differing,
    log_of,
    run,
    state_of,
    tiny,
)

from classification.trainer import Trainer as ClassifierTrainer
from convnorm.experiment.data import DataConfig, Images, load_images, stream
from convnorm.experiment.data import storing as storing_module
from convnorm.experiment.data.stored import HEADER, StoredImages, open_file
from convnorm.experiment.data.storing import Building, stored
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.batches import Batches
from convnorm.experiment.run.batches import sha256_of as sha256_of_run
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.reading_ahead import AHEAD
from gan.feature_cache import sha256_of
from gan.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The digits as files: root/digits_train.npz, root/digits_test.npz and the folder root/png."""
    root = tmp_path_factory.mktemp("digits")
    for split in ("train", "test"):
        images = load_images(DataConfig("digits", image_size=8), split)
        pixels = images.images.numpy().transpose(0, 2, 3, 1)
        labels = images.labels.numpy()
        np.savez_compressed(
            root / f"digits_{split}.npz", images=pixels, labels=labels, classes=images.classes
        )
        for number in range(0, len(pixels), 5):
            folder = root / "png" / split / images.classes[labels[number]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number, ..., 0]).save(folder / f"{number:04}.png")
    return root


def roots(digits: Path, name: str) -> str:
    return str(digits / {"npz": "digits_train.npz", "folder": "png"}[name])


def loaded(digits: Path, name: str, where: str, split: str = "train", size: int = 12) -> Images:
    return load_images(DataConfig(name, roots(digits, name), size, where), split)


def equal(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------ the images


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("name", ["npz", "folder"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_on_disk_are_those_in_memory(name, split, size, digits):
    """Strides too, by which PyTorch chooses how a convolution rounds."""
    in_memory, on_disk = (loaded(digits, name, where, split, size) for where in ("memory", "disk"))
    assert on_disk.images[:].stride() == in_memory.images.stride()
    some = torch.tensor([5, 2])
    assert on_disk.images[some].stride() == in_memory.images[some].stride()
    assert isinstance(in_memory.images, torch.Tensor)
    assert isinstance(on_disk.images, StoredImages)
    assert torch.equal(on_disk.images[:], in_memory.images)
    assert on_disk.images.shape == in_memory.images.shape
    assert torch.equal(on_disk.labels, in_memory.labels)
    rest = ("classes", "found", "native_sizes")
    assert all(getattr(on_disk, key) == getattr(in_memory, key) for key in rest)
    assert on_disk.place.startswith("disk (")
    assert in_memory.place.startswith("memory (")


@pytest.mark.parametrize("name", ["npz", "folder"])
def test_images_that_are_not_square_are_kept_in_their_shape(name, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 8, 3), np.uint8)
    root = {"npz": tmp_path / "my.npz", "folder": tmp_path / "png"}[name]
    np.savez(tmp_path / "my.npz", images=pixels)
    (tmp_path / "png").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "png" / f"{number}.png")
    config = DataConfig(name, str(root), (6, 4))
    in_memory, on_disk = (load_images(replace(config, stream=w)) for w in ("memory", "disk"))
    assert on_disk.images.shape == (5, 3, 6, 4)
    assert on_disk.images.file.path.name.endswith(".4x6.npy")
    assert torch.equal(on_disk.images[:], in_memory.images)
    assert (on_disk.found, on_disk.native_sizes) == (in_memory.found, ((12, 8), (12, 8)))
    with pytest.raises(InputError, match="8 wide and 12 high, expected a square"):
        load_images(replace(config, image_size=6, stream="disk"))


def test_hashes_are_the_same_both_ways_of_all_and_of_some(digits, monkeypatch):
    """Another hash for the same images would refuse a checkpoint, or miss a cached feature."""
    in_memory, on_disk = (loaded(digits, "npz", where) for where in ("memory", "disk"))
    assert on_disk.images.known_sha256 == in_memory.sha256()
    assert sha256_of_run(on_disk) == sha256_of_run(in_memory)
    some = torch.tensor([7, 3, 1000, 4])
    whole = in_memory.take(some).sha256()
    monkeypatch.setattr("convnorm.experiment.data.stored.READ", 300)  # two images at a time
    assert on_disk.take(some).sha256() == in_memory.take(some).sha256() == whole
    assert sha256_of(on_disk.images) == in_memory.sha256()


def test_a_part_of_a_part_is_what_it_is_in_memory(digits):
    in_memory, on_disk = (loaded(digits, "npz", where) for where in ("memory", "disk"))
    for positions in (torch.tensor([9, 2, 3, 4, 77, 2]), torch.arange(5, 9), torch.arange(0)):
        in_memory, on_disk = in_memory.take(positions), on_disk.take(positions)
        assert torch.equal(on_disk.images[:], in_memory.images)
        assert torch.equal(on_disk.labels, in_memory.labels)
        in_memory, on_disk = (loaded(digits, "npz", where) for where in ("memory", "disk"))
    twice = on_disk.take(torch.arange(10, 20)).take(torch.tensor([3, 1]))
    assert torch.equal(twice.images[:], in_memory.images[[13, 11]])


def test_numpy_maps_the_file(digits):
    images = loaded(digits, "npz", "disk")
    mapped = np.load(images.images.file.path, mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, images.images[:].numpy())


def test_the_file_is_made_once_and_again_for_another_source(tmp_path, digits, capsys):
    file = tmp_path / "my_train.npz"
    file.write_bytes((digits / "digits_train.npz").read_bytes())
    config = DataConfig("npz", str(file), 8, "disk")
    first = load_images(config)
    assert first.images.file.path == tmp_path / ".my_train.npz.8x8.npy"
    assert capsys.readouterr().err == f"{first.images.file.path}: 1437 images are written to it\n"
    load_images(config)
    assert capsys.readouterr().err == ""
    assert load_images(replace(config, image_size=9)).images.file.path.name.endswith("9x9.npy")
    capsys.readouterr()
    pixels = np.zeros((20, 8, 8), np.uint8)
    np.savez(file, images=pixels)
    again = load_images(config)
    assert "written to it again: it is damaged, or of other images" in capsys.readouterr().err
    assert torch.equal(again.images[:], torch.zeros(20, 1, 8, 8, dtype=torch.uint8))
    assert sha256_of_run(again) != sha256_of_run(first)
    assert first.images[:1].sum() > 0  # who has it open keeps the old one
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".my_train.npz.8x8.npy",
        ".my_train.npz.9x9.npy",
        "my_train.npz",
    ]


def test_gray_images_before_coloured_ones_become_coloured(tmp_path):
    for number, mode in enumerate(["L", "L", "RGB", "L"]):
        image = Image.new(mode, (6, 6), 40 * number if mode == "L" else (1, 2, 3))
        image.save(tmp_path / f"{number}.png")
    config = DataConfig("folder", str(tmp_path), 6)
    in_memory, on_disk = (load_images(replace(config, stream=w)) for w in ("memory", "disk"))
    assert on_disk.images.shape == (4, 3, 6, 6)
    assert torch.equal(on_disk.images[:], in_memory.images)
    assert on_disk.sha256() == in_memory.sha256()


@pytest.mark.parametrize("name", ["npz", "folder"])
def test_a_file_whose_making_was_cut_goes_on(name, digits, tmp_path, monkeypatch):
    """What was done must not be read anew, nor anything else than it be in the file."""
    monkeypatch.setattr(
        "convnorm.experiment.data.stream.file_beside", lambda *_: tmp_path / "it.npy"
    )
    monkeypatch.setattr("convnorm.experiment.data.stored.READ", 300)
    add, added = Building.add, []

    def failing(self, image, native):
        if len(added) == 100:
            raise KeyboardInterrupt
        added.append(image)
        add(self, image, native)

    with monkeypatch.context() as patch:
        patch.setattr(Building, "add", failing)
        with pytest.raises(KeyboardInterrupt):
            loaded(digits, name, "disk")
    assert not (tmp_path / "it.npy").exists()
    counted = []
    monkeypatch.setattr(Building, "add", lambda *a: counted.append(1) or add(*a))
    images = loaded(digits, name, "disk")
    in_memory = loaded(digits, name, "memory")
    assert len(counted) == len(in_memory.images) - 100
    assert images.sha256() == in_memory.sha256()
    assert torch.equal(images.images[:], in_memory.images)
    assert [path.name for path in tmp_path.iterdir()] == ["it.npy"]


def test_an_archive_that_is_damaged_is_refused_however_often_it_is_tried(tmp_path, monkeypatch):
    """Its CRC-32 is checked at its end, when most images are in the file."""
    monkeypatch.setattr("convnorm.experiment.data.stored.READ", 300)
    file = tmp_path / "my.npz"
    np.savez(file, images=np.zeros((400, 8, 8), np.uint8))
    content = bytearray(file.read_bytes())
    content[20_000] = 1  # behind what is read for the header
    file.write_bytes(content)
    for _ in range(2):
        with pytest.raises(InputError, match=r"images: cannot be read \(Bad CRC-32"):
            load_images(DataConfig("npz", str(file), 8, "disk"))


def make(
    path: Path,
    num: int,
    shape: tuple[int, int, int] = (1, 4, 4),
    source: str = "",
    first: int = 0,
) -> None:
    """A file of images with the value of their number, from `first` on."""

    def build(building: Building) -> None:
        for number in range(building.done, num):
            building.add(np.full(shape, (first + number) % 251, np.uint8), shape[1:])
        building.finish(np.arange(num), tuple(map(str, range(num))), "a test")

    stored(path, source, num, shape[1:], build)


def test_bytes_that_no_progress_speaks_of_are_written_anew(tmp_path, monkeypatch):
    """After a kill, what was written since the last save may be there, or half of it."""
    path, add = tmp_path / "it.npy", Building.add
    (tmp_path / ".it.npy.json").write_text("[1, 2")

    def killed(self, image, native):
        add(self, image, native)
        if self.progress.images == 3:
            self.save()
        if self.progress.images == 5:
            self._file.write(b"half")
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Building, "add", killed)
        with pytest.raises(MemoryError):
            make(path, 8)
    make(path, 8)
    assert StoredImages(open_file(path))[:][:, 0, 0, 0].tolist() == list(range(8))


def test_what_was_done_of_another_source_is_done_anew(tmp_path, monkeypatch):
    path, add = tmp_path / "it.npy", Building.add

    def cut(self, image, native):
        if self.done == 3:
            raise KeyboardInterrupt
        add(self, image, native)

    with monkeypatch.context() as patch:
        patch.setattr(Building, "add", cut)
        with pytest.raises(KeyboardInterrupt):
            make(path, 8, source="before")
    make(path, 8, source="after", first=100)
    assert StoredImages(open_file(path))[:][:, 0, 0, 0].tolist() == list(range(100, 108))


def test_of_two_that_want_a_file_one_makes_it_and_the_other_waits(tmp_path, monkeypatch, capsys):
    """A lock is of an open file: two threads exclude each other as two processes do."""
    path, add, added = tmp_path / "it.npy", Building.add, []
    flock, waits = fcntl.flock, threading.Event()

    def slow(*args):
        waits.wait(10)  # until the other has found that it cannot begin
        waits.set()
        added.append(args)
        add(*args)

    def locked(file, how):
        try:
            flock(file, how)
        except BlockingIOError:
            waits.set()
            raise

    monkeypatch.setattr(Building, "add", slow)
    monkeypatch.setattr(storing_module.fcntl, "flock", locked)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, [path] * 2, [20] * 2))
    assert len(added) == 20
    assert capsys.readouterr().err.count("waiting for the process that makes it") == 1
    assert StoredImages(open_file(path))[:][:, 0, 0, 0].tolist() == list(range(20))
    assert [each.name for each in tmp_path.iterdir()] == ["it.npy"]


def test_a_file_that_is_damaged_is_refused_by_what_is_wrong(tmp_path):
    path = tmp_path / "train.npy"
    make(path, 500)
    content = path.read_bytes()

    def refused(changed: bytes, why: str) -> None:
        path.write_bytes(changed)
        with pytest.raises(InputError, match=why):
            load_images(DataConfig("prepared", str(path), 4))

    refused(content[:-40], "it goes on|Expecting|cannot|EOF|array")
    refused(content[: HEADER + 300], "expected a file of scripts/prepare_data")
    refused(content + b"x", "goes on behind")
    refused(b"no numpy", "expected a file of scripts/prepare_data")
    labels = HEADER + 500 * 16 + 200
    refused(content[:labels] + b"\1" + content[labels + 1 :], "its labels are damaged")
    refused(b"\x93NUMPY\1\0v\0" + content[10:].replace(b"u1", b"i1", 1), "its first array is int8")
    np.save(path, np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError, match="first array is uint8"):
        open_file(path)
    # An image between the probes: as it is read.
    hole = HEADER + 16 * 5
    path.write_bytes(content[:hole] + b"\xff" + content[hole + 1 :])
    images = load_images(DataConfig("prepared", str(path), 4, "disk"))
    assert images.images[torch.tensor([4, 6])].shape == (2, 1, 4, 4)
    with pytest.raises(InputError, match="image 5 is damaged"):
        images.images[torch.tensor([4, 5])]
    with pytest.raises(InputError, match="image 5 is damaged"):
        images.images[:]
    os.truncate(path, hole)
    with pytest.raises(InputError, match="ends early"):
        images.images[torch.tensor([499])]


def test_what_was_prepared_is_read_both_ways(tmp_path):
    for split, num in (("train", 9), ("test", 9)):
        make(tmp_path / f"{split}.npy", num, (3, 4, 4))
    config = DataConfig("prepared", str(tmp_path), 4)
    in_memory, on_disk = (load_images(replace(config, stream=w)) for w in ("memory", "disk"))
    assert torch.equal(on_disk.images[:], in_memory.images)
    assert torch.equal(in_memory.images[:, 0, 0, 0], torch.arange(9).byte())
    assert in_memory.labels.tolist() == list(range(9))
    assert in_memory.found == f"9 images in 9 classes from {tmp_path / 'train.npy'} (a test), 4x4"
    assert len(load_images(config, "test").images) == 9
    with pytest.raises(InputError, match=r"expected data\.image_size 4"):
        load_images(replace(config, image_size=8))
    make(tmp_path / "test.npy", 8, (3, 4, 4), source="other")
    with pytest.raises(InputError, match=r"other classes than in train\.npy"):
        load_images(config, "test")


def test_auto_is_disk_for_what_takes_more_than_half_of_the_free_memory(digits, monkeypatch):
    size = 1437 * 12 * 12
    monkeypatch.setattr(stream, "available_bytes", lambda: 2 * size)
    assert isinstance(loaded(digits, "npz", "auto").images, torch.Tensor)
    monkeypatch.setattr(stream, "available_bytes", lambda: 2 * size - 1)
    assert isinstance(loaded(digits, "npz", "auto").images, StoredImages)
    assert isinstance(loaded(digits, "npz", "memory").images, torch.Tensor)


def test_auto_leaves_half_of_what_is_free_on_a_gpu(monkeypatch):
    """Other processes, as the runs of a benchmark side by side, may hold most of the card."""
    free, whole = 2**20, 2**30
    monkeypatch.setattr(stream, "available_bytes", lambda: whole)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, whole))
    cuda = torch.device("cuda")
    assert [stream.is_large("auto", cuda, n) for n in (free // 2, free // 2 + 1)] == [False, True]
    assert not stream.is_large("auto", torch.device("cpu"), free)


def test_a_small_data_set_is_not_read_from_disk():
    with pytest.raises(InputError, match=r"data\.stream: 'disk' is not allowed with digits"):
        DataConfig("digits", stream="disk")
    with pytest.raises(InputError, match=r"data\.stream: got 'tape', expected one of auto"):
        DataConfig("folder", stream="tape")


# -------------------------------------------------------------------------------- reading ahead


@pytest.mark.parametrize("options", [{}, {"flip": True, "crop": 1}])
def test_batches_from_disk_are_those_from_memory(options, digits):
    pair = [loaded(digits, "npz", where) for where in ("memory", "disk")]
    for process in (ALONE, Process(CPU, 1, 2)):
        ways = [Batches(images, 300, 0, process, **options) for images in pair]
        for index in (*range(12), 3, 40, 8):  # over the ends of epochs, back and ahead
            both = [batches(index) for batches in ways]
            assert equal(*both), index
            assert both[0][0].stride() == both[1][0].stride()


def test_batches_are_read_before_they_are_asked_for_and_each_once(digits, monkeypatch):
    images = loaded(digits, "npz", "disk")
    read, threads = [], set()
    original = StoredImages.read

    def noted(self, positions, into):
        read.append(positions.tolist())
        threads.add(threading.current_thread().name)
        original(self, positions, into)

    monkeypatch.setattr(StoredImages, "read", noted)
    batches = Batches(images, 100, 0, ALONE)
    for index in range(20):
        batches(index)
        deadline = time.monotonic() + 20
        while len(read) < index + 1 + AHEAD and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(read) == index + 1 + AHEAD
    assert threads == {"read_ahead_0"}
    order = Batches(loaded(digits, "npz", "memory"), 100, 0, ALONE)._order
    assert read == [order(index).tolist() for index in range(20 + AHEAD)]


def readers() -> int:
    return sum(thread.name.startswith("read_ahead") for thread in threading.enumerate())


def test_the_thread_ends_with_the_batches_and_after_an_error(tmp_path):
    path = tmp_path / "train.npy"
    make(path, 40)
    images = load_images(DataConfig("prepared", str(path), 4, "disk"))
    batches = Batches(images, 10, 0, ALONE)
    batches(0)
    assert readers() == 1
    os.truncate(path, HEADER)
    with pytest.raises(InputError, match="ends early"):
        batches(20)
    del batches
    gc.collect()
    deadline = time.monotonic() + 20
    while readers() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert readers() == 0


def interrupted(path: Path) -> None:
    batches = Batches(load_images(DataConfig("prepared", str(path), 4, "disk")), 10, 0, ALONE)
    batches(0)
    print("begun", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    for index in range(10**9):
        batches(index)


def test_ctrl_c_ends_the_process(tmp_path):
    make(tmp_path / "train.npy", 40)
    child = Child(tmp_path / "out.txt", interrupted, tmp_path / "train.npy")
    code, output = child.end(30)
    assert code != 0
    assert output.startswith("begun")
    assert "KeyboardInterrupt" in output


def in_little_memory(root: Path) -> None:
    """Make a file of 96 MiB of images, train on it and hash it, in 32 MiB of memory."""
    config = DataConfig("npz", str(root / "small.npz"), 128, "disk")
    Batches(load_images(config), 20, 0, ALONE, flip=True)(0)  # what is loaded and begun but once
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) * 2**10 for line in status.splitlines() if "VmData" in line)
    resource.setrlimit(resource.RLIMIT_DATA, (now + 2**25, resource.RLIM_INFINITY))
    images = load_images(replace(config, root=str(root / "large.npz")))
    batches = Batches(images, 20, 0, ALONE, flip=True)
    for index in range(batches.per_epoch):
        batches(index)
    images.take(torch.arange(len(images.images) - 1)).sha256()
    print(images.images.shape.numel() / 2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no private memory")
def test_memory_does_not_grow_with_the_data(tmp_path):
    """All that holds what was read counts, and pages of files do not."""
    for name, num in (("small", 40), ("large", 6144)):
        np.savez_compressed(tmp_path / f"{name}.npz", images=np.zeros((num, 128, 128), np.uint8))
    code, output = Child(tmp_path / "out.txt", in_little_memory, tmp_path).end()
    assert code == 0, output
    assert output.endswith("\n96.0\n")


# ------------------------------------------------------------------------------------------ runs


CHANGES = {"data.image_size": 16, "train.flip": True, "train.ema_decay": 0.9, "steps": 6}


def ways(digits: Path, name: str = "npz") -> list[dict[str, str]]:
    here = {"data.name": name, "data.root": roots(digits, name)}
    return [{**here, "data.stream": where} for where in ("memory", "disk")]


def states(folder: Path) -> dict:
    """The content of last.pt without where the data are."""
    state = state_of(folder)
    for name in DataConfig.PLACE:
        del state["config"]["data"][name]
    return state


def test_a_gan_from_disk_is_the_one_from_memory(digits, tmp_path, monkeypatch):
    """Killed and gone on with, too; scores and gains have the same numbers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    in_memory, on_disk = ways(digits)
    changes = {**CHANGES, **SELECTED, "train.fraction": 0.5, "checkpoints.every": 3, "log.every": 2}
    run(tmp_path / "memory", {**changes, **in_memory})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))  # features are made again
    with monkeypatch.context() as patch:
        crash_before(4, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path / "disk", {**changes, **on_disk}, checkpoint_every=3)
    assert states(tmp_path / "disk")["step"] == 3
    run(tmp_path / "disk", {**changes, **on_disk})
    assert differing(states(tmp_path / "disk"), states(tmp_path / "memory")) == []
    for name in ("log.jsonl", "metrics.jsonl"):
        assert log_of(tmp_path / "disk", name) == log_of(tmp_path / "memory", name)
    kept = sorted((tmp_path / "memory" / checkpoint.KEPT).glob("*"))
    assert len(kept) == 2
    for file in kept:
        there, here = (
            torch.load(tmp_path / way / checkpoint.KEPT / file.name, weights_only=True)
            for way in ("disk", "memory")
        )
        assert differing(there["generator"], here["generator"]) == []


def test_a_run_that_began_in_memory_goes_on_from_disk(digits, tmp_path, monkeypatch):
    in_memory, on_disk = ways(digits, "folder")
    run(tmp_path / "memory", {**CHANGES, **in_memory})
    with monkeypatch.context() as patch:
        crash_before(4, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path / "cut", {**CHANGES, **in_memory}, checkpoint_every=3)
    run(tmp_path / "cut", {**CHANGES, **on_disk})
    assert differing(states(tmp_path / "cut"), states(tmp_path / "memory")) == []


def test_other_data_behind_the_same_name_are_noticed(tmp_path):
    root = tmp_path / "my.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (200, 16, 16), np.uint8)
    np.savez(root, images=pixels)
    changes = {"data.name": "npz", "data.root": str(root), "data.stream": "disk", "steps": 2}
    run(tmp_path / "run", changes)
    np.savez(root, images=pixels[::-1])
    with pytest.raises(InputError, match="the run began with other training data"):
        run(tmp_path / "run", changes)


def test_a_classifier_from_disk_is_the_one_from_memory(digits, tmp_path, monkeypatch):
    in_memory, on_disk = ways(digits)
    changes = {
        "noise.kind": "symmetric",
        "noise.rate": 0.2,
        "train.ema_decay": 0.9,
        "train.ema_statistics": "own",
        "normalizer.kind": "batch",
    }
    run_dirs = tmp_path / "memory", tmp_path / "disk"
    classifier_run(run_dirs[0], {**changes, **in_memory})
    with monkeypatch.context() as patch:
        crash_before(5, ClassifierTrainer, patch)
        with pytest.raises(Crash):
            classifier_run(run_dirs[1], {**changes, **on_disk}, checkpoint_every=2)
    classifier_run(run_dirs[1], {**changes, **on_disk})
    assert differing(*map(states, run_dirs)) == []
    for name in ("log.jsonl", "metrics.jsonl"):
        assert log_of(run_dirs[0], name) == log_of(run_dirs[1], name)


def test_a_training_says_where_its_images_are(digits, tmp_path, capsys):
    _, on_disk = ways(digits)
    run(tmp_path, {**CHANGES, **on_disk, "steps": 1})
    said = capsys.readouterr().err
    file = digits / ".digits_train.npz.16x16.npy"
    assert f"data.stream: disk (0.351 MiB in {file})" in said
    assert tiny(on_disk).data.stream == "disk"
