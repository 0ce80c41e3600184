"""Run folders and checkpoints: nothing is lost, nothing foreign is touched."""

import hashlib
import os
import random
import shutil
import socket
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from runs import tiny

from convnorm.experiment import files
from convnorm.experiment.errors import InputError
from convnorm.experiment.files import write, write_json
from convnorm.experiment.run import checkpoint, locking
from convnorm.experiment.run.checkpoint import (
    FOLDERS,
    OWN_FILES,
    in_the_way,
    load,
    load_with_hash,
    open_run,
    save,
)
from convnorm.experiment.run.locking import is_held
from convnorm.experiment.run.overwriting import let_go

CONFIG = tiny()
STATE = {"format": "test/1", "weights": torch.arange(2000.0), "step": 3, "none": None}


def start(run_dir: Path, changes: dict | None = None, overwrite: bool = False) -> None:
    """Open and close a run that has trained."""
    with open_run(run_dir, tiny(changes) if changes else CONFIG, overwrite):
        (run_dir / "log.jsonl").touch()


def content(folder: Path, without: set[str] = frozenset()) -> dict[str, bytes]:
    ignored = {".lock", *without}
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ignored}


def test_a_checkpoint_comes_back(tmp_path):
    save(tmp_path / "last.pt", STATE)
    loaded = load(tmp_path / "last.pt", "test/1")
    assert torch.equal(loaded["weights"], STATE["weights"])
    assert {**loaded, "weights": 0} == {**STATE, "weights": 0}


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    """Cut anywhere, or any bytes: what the unpickler raises differs from case to case."""
    path = tmp_path / "last.pt"
    save(path, STATE)
    whole = path.read_bytes()
    random = torch.Generator().manual_seed(0)
    cases = [whole[: len(whole) * part // 40] for part in range(40)]
    for _ in range(300):
        length = int(torch.randint(1, 200, (), generator=random))
        cases.append(bytes(torch.randint(0, 256, (length,), generator=random).tolist()))
    cases += [b"\x80\x02" + case for case in cases[40:]]  # the start of a pickle
    for case in cases:
        path.write_bytes(case)
        with pytest.raises(InputError, match=r"last.pt: damaged or not a checkpoint") as raised:
            load(path, "test/1")
        assert "\n" not in str(raised.value)
        assert path.read_bytes() == case


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    """PyTorch checks no sums: most flips used to go on with other weights, without a word."""
    path = tmp_path / "last.pt"
    save(path, STATE)
    whole, random_ = path.read_bytes(), random.Random(0)
    ends = [*range(60), *range(len(whole) - 120, len(whole))]
    for position in ends + random_.sample(range(len(whole)), 300):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << random_.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"last.pt: damaged or not .* 'test/1'$"):
            load(path, "test/1")


def test_others_read_a_checkpoint_and_its_digest_without_the_suite(tmp_path):
    path = tmp_path / "last.pt"
    save(path, STATE)
    for how in ({}, {"mmap": True}):
        assert torch.equal(torch.load(path, weights_only=True, **how)["weights"], STATE["weights"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        digest = archive.comment.decode()
    content = path.read_bytes()
    assert hashlib.sha256(content[: -len(digest)]).hexdigest() == digest
    assert load_with_hash(path, "test/1")[1] == hashlib.sha256(content).hexdigest()


def test_a_checkpoint_of_before_digests_is_refused_with_the_format_that_is_expected(tmp_path):
    torch.save(STATE, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"last.pt: .* not a checkpoint of this version; .*test/1"):
        load(tmp_path / "last.pt", "test/1")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # a path of a socket may have 107 letters


OTHER_THINGS = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "socket": make_socket,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
}
each_other_thing = pytest.mark.parametrize("make", OTHER_THINGS.values(), ids=OTHER_THINGS)


@each_other_thing
def test_what_is_no_file_is_no_checkpoint(make, tmp_path):
    """To read from a pipe is to wait for ever."""
    make(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x.pt: (not a file|cannot be read|no such)"):
        load(tmp_path / "x.pt", "test/1")


@pytest.mark.parametrize("name", OWN_FILES)
@each_other_thing
def test_what_has_the_name_of_a_runs_file_and_is_none_is_one_line(make, name, tmp_path):
    start(tmp_path)
    before, path = content(tmp_path), tmp_path / name
    path.unlink(missing_ok=True)
    if is_folder := name in FOLDERS:
        make = Path.touch if make is Path.mkdir else make
    make(path)
    expected = f"{name}: not a {'folder' if is_folder else 'file'}; expected the run's own"
    for refused in (lambda: start(tmp_path), lambda: in_the_way(tmp_path, CONFIG)):
        with pytest.raises(InputError, match=expected):
            refused()
    assert content(tmp_path, {name}) == {n: c for n, c in before.items() if n != name}
    start(tmp_path, overwrite=True)
    assert sorted(content(tmp_path)) == ["config.yaml", "log.jsonl"]


@pytest.mark.parametrize(
    "text",
    ["a: [", "[" * 5000, "a: " + "1" * 5000, "a: !!binary x", "7", "a: &x [1]\nb: *x"],
)
def test_a_config_that_cannot_be_read_is_named(text, tmp_path):
    start(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config.yaml: damaged"):
        start(tmp_path)


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path):
    """Opened for writing, the target was cut to nothing."""
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / ".lock").symlink_to(thesis)
    with pytest.raises(InputError, match=r"run_dir: .*run cannot be used \(its .lock is a link\)"):
        start(run_dir)
    assert not is_held(run_dir)
    assert thesis.read_text() == "years of work"


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    """Unpickling anything but tensors and plain values would execute what a file says."""
    save(tmp_path / "last.pt", {"format": "test/1", "path": Path("/")})
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load(tmp_path / "last.pt", "test/1")


@pytest.mark.parametrize(
    ("state", "found"), [({"format": "b"}, "'b'"), ({}, "None"), ([1], "'list'")]
)
def test_a_checkpoint_of_another_format_is_named(state, found, tmp_path):
    save(tmp_path / "x.pt", state)
    with pytest.raises(InputError, match=f"x.pt: holds {found}; expected .*'test/1'"):
        load(tmp_path / "x.pt", "test/1")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x.pt: no such checkpoint"):
        load(tmp_path / "x.pt", "test/1")


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save(path, STATE)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"last.pt: cannot be written \(No space left on device\)"):
        save(path, {**STATE, "step": 4})
    assert content(tmp_path) == {"last.pt": before}


def test_a_kill_while_writing_keeps_the_previous_file(tmp_path):
    """The file is filled under another name; that name is swept up by the next start."""
    start(tmp_path)
    path = tmp_path / "last.pt"
    save(path, STATE)
    before = path.read_bytes()

    class Kill(BaseException):
        pass

    def killed(file):
        file.write(b"half")
        raise Kill

    with pytest.raises(Kill):
        write(path, killed)
    assert path.read_bytes() == before
    assert len(content(tmp_path)) == 4
    start(tmp_path)
    assert sorted(content(tmp_path)) == ["config.yaml", "last.pt", "log.jsonl"]


def test_a_reader_never_sees_a_file_that_is_half_new(tmp_path):
    """Whoever has the old checkpoint open, or dies with it, keeps the old one as it was."""
    path = tmp_path / "last.pt"
    save(path, STATE)
    before = path.read_bytes()
    with path.open("rb") as reader:
        save(path, {**STATE, "step": 4})
        assert reader.read() == before
    assert load(path, "test/1")["step"] == 4


def test_others_may_read_what_is_written(tmp_path):
    """A temporary file is private to its owner; a shared run folder needs more."""
    write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o644


def test_the_config_is_written_first(tmp_path):
    with open_run(tmp_path / "a" / "b", CONFIG, False):
        assert list(content(tmp_path / "a" / "b")) == ["config.yaml"]


class Wrong(Exception):
    """What ends a run."""


def goes_wrong(run_dir: Path, after: str) -> None:
    """Open a run that ends in an error as soon as it has this file."""

    def go() -> None:
        with open_run(run_dir, CONFIG, False):
            assert (run_dir / "config.yaml").exists()
            (run_dir / after).touch()
            raise Wrong

    with pytest.raises(Wrong):
        go()


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("there", ["", "a", "a/b", "a/b/config.yaml", "a/notes.txt"])
def test_an_error_before_the_training_leaves_nothing_new_behind(there, tmp_path):
    """And takes nothing away that was there before."""
    path = tmp_path / there
    (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.write_text("old")
    before = tree(tmp_path)
    goes_wrong(tmp_path / "a" / "b", "config.yaml")
    hidden = {"a/b/.lock"} if there.startswith("a/b") else set()  # the folder itself was there
    assert set(tree(tmp_path)) - hidden == set(before)


def test_an_error_after_the_training_has_begun_leaves_the_run(tmp_path):
    goes_wrong(tmp_path / "run", "log.jsonl")
    assert sorted(content(tmp_path / "run")) == ["config.yaml", "log.jsonl"]


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "x" * 300])
def test_a_folder_that_cannot_be_made_leaves_no_other_behind(name, tmp_path):
    with pytest.raises(InputError, match="cannot be used"):
        start(tmp_path / "new" / name)
    assert tree(tmp_path) == []


def test_a_lock_that_its_holder_has_removed_holds_nothing(tmp_path):
    """Whoever opened it before would hold a folder that is not there any more."""
    opened = locking._open_lock

    def late(folder, flags=0):
        lock = opened(folder, flags)
        (folder / ".lock").unlink()
        return lock

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locking, "_open_lock", late)
        with pytest.raises(InputError, match="in use by another process"):
            start(tmp_path / "run")
    start(tmp_path / "run")


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    start(tmp_path)
    before = content(tmp_path)
    with pytest.raises(InputError) as raised:
        start(tmp_path, {"seed": 3, "optim.lr": 1e-3})
    message = str(raised.value)
    assert "seed: 0 there, 3 here" in message
    assert "optim.lr: 0.0002 there, 0.001 here" in message
    assert "steps" not in message
    assert content(tmp_path) == before


def test_a_run_of_before_an_option_has_its_default(tmp_path):
    """Else no run could go on after the suite has got an option more."""
    config = asdict(tiny())
    del config["train"]["capture"], config["optim"]["fused"]

    def found(changes):
        return checkpoint.other_keys(config, tiny(changes))

    assert found({}) == []
    changed = found({"optim.fused": True, "seed": 3})
    assert changed == ["optim.fused: False there, True here", "seed: 0 there, 3 here"]
    del config["optim"]  # what lacks a group is another file
    told = found({})
    assert told
    assert all(line.startswith("optim") for line in told)


def test_a_config_that_never_trained_can_be_corrected(tmp_path):
    """A wrong data.root is found after config.yaml is written, and must not block the folder."""
    with open_run(tmp_path, tiny({"data.root": "typo"}), False):
        pass
    start(tmp_path, {"data.root": "right"})
    assert "root: right" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_left_alone(overwrite, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "last.pt").write_text("of another program")
    with pytest.raises(InputError, match="holds other files"):
        start(tmp_path, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "thesis.tex"]


def test_overwriting_deletes_a_run_and_nothing_else(tmp_path):
    start(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "x.png").touch()
    save(tmp_path / "last.pt", STATE)
    with open_run(tmp_path, tiny({"seed": 1}), True):
        let_go(tmp_path)
        assert sorted(content(tmp_path)) == ["config.yaml", "notes.txt"]


def test_an_error_before_the_training_brings_an_overwritten_run_back(tmp_path):
    """A slip in the path of the images cost a finished run."""

    def overwrite(has_begun: bool) -> None:
        with open_run(tmp_path, tiny({"seed": 1}), True):
            (tmp_path / "metrics.jsonl").touch()
            if has_begun:
                let_go(tmp_path)
            raise InputError("data.root: no such folder")

    start(tmp_path)
    save(tmp_path / "last.pt", STATE)
    before = content(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        overwrite(has_begun=False)
    assert content(tmp_path) == before
    with pytest.raises(InputError, match="no such folder"):
        overwrite(has_begun=True)
    assert sorted(content(tmp_path)) == ["config.yaml", "metrics.jsonl"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_kill_while_overwriting_leaves_one_of_the_two_runs(fails, tmp_path, monkeypatch):
    """Whenever it comes; the next start finds the old run whole, or nothing of it."""
    whole = set()
    for moves in range(60):
        folder = tmp_path / str(moves)
        start(folder)
        (folder / "notes.txt").write_text("mine")
        (folder / "samples").mkdir()
        (folder / "samples" / "x.png").touch()
        save(folder / "last.pt", STATE)
        done = []

        def counted(move, done=done, moves=moves):
            def moved(*args, **options):
                if len(done) == moves:
                    raise SystemExit("killed")  # and so is whatever it does next
                done.append(move)
                return move(*args, **options)

            return moved

        with monkeypatch.context() as patch:
            for module, name in ((Path, "rename"), (Path, "unlink"), (shutil, "rmtree")):
                patch.setattr(module, name, counted(getattr(module, name)))
            with suppress(SystemExit, KeyError), open_run(folder, CONFIG, True):
                if fails:
                    raise KeyError
        with open_run(folder, CONFIG, False):
            found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        old = {"last.pt", "log.jsonl", "samples", "samples/x.png"}
        assert found - old == {".lock", "config.yaml", "notes.txt"}, moves
        assert found & old in (old, set()), moves
        whole.add(old <= found)
        if len(done) < moves:
            break
    assert len(done) < moves
    assert whole == ({True} if fails else {True, False})


def test_a_folder_is_for_one_process_at_a_time(tmp_path):
    """Two processes would mix their log lines and overwrite each other's checkpoint."""
    with open_run(tmp_path, CONFIG, False):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="in use by another process"):
                start(tmp_path, overwrite=overwrite)
        assert (tmp_path / "config.yaml").is_file()
    start(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"run_dir: .*file/run cannot be used"):
        start(tmp_path / "file" / "run")
    with pytest.raises(InputError, match=r"run_dir: .*file cannot be used"):
        start(tmp_path / "file")


def test_a_folder_without_write_permission_is_named(tmp_path, monkeypatch):
    """Patched, as root, who may run the tests, is allowed to write everywhere."""
    start(tmp_path)
    original = os.open

    def denied(path, flags, *args, **kwargs):
        if Path(path).parent == tmp_path and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return original(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match=r"run_dir: .* cannot be used \(Permission denied\)"):
        start(tmp_path)
