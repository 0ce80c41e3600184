"""Run folders and checkpoints: one file that holds everything, replaced as a whole."""

import fcntl
import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from convnorm.experiment.config import differences, to_yaml
from convnorm.experiment.errors import InputError
from convnorm.experiment.files import write

CHECKPOINT = "last.pt"
BEST = "best.pt"  # selected on a validation split
NOISY_LABELS = "noisy_labels.npz"
EVALUATION = "evaluation"
# Deleted in this order: after a kill in between, the folder is still that of a run.
OWN_FILES = (
    CHECKPOINT,
    BEST,
    EVALUATION,
    NOISY_LABELS,
    "summary.json",
    "metrics.jsonl",
    "log.jsonl",
    "samples",
    "tensorboard",
    "config.yaml",
)


@contextmanager
def open_run(run_dir: Path, config: object, overwrite: bool) -> Iterator[None]:
    """Hold `run_dir` as the folder of a run with this config, against any other process.

    Makes the folder and writes config.yaml before anything else, unless the same one is there.
    Raises InputError, and changes nothing, for a folder that cannot be written, that holds other
    files or a run of another config (the error names the keys that differ), or that another
    process uses.
    """
    if _holds_other_files(run_dir):
        raise InputError(f"run_dir: {run_dir} holds other files; expected a run or nothing")
    with locked(run_dir, "run_dir"):
        if overwrite:
            _delete_run(run_dir)
        _claim(run_dir, config)
        yield


def _holds_other_files(run_dir: Path) -> bool:
    try:
        there = [path.name for path in run_dir.iterdir() if not path.name.startswith(".")]
    except OSError:
        return False  # there is no folder yet, or `locked` says why it cannot be used
    return bool(there) and "config.yaml" not in there


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Make `folder` and keep every other process out of it.

    option: the name of the option that gave the folder, for the error. Raises InputError if the
    folder cannot be used or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{option}: {folder} cannot be used ({error.strerror})") from None
    with lock:  # the folder is free again when the file is closed, at the latest by a kill
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{option}: {folder} is in use by another process; expected another --{option}"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def is_held(folder: Path) -> bool:
    """Whether another process holds `folder` now."""
    try:
        with (folder / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # no folder yet, or a file system without locks
    return False


def _claim(run_dir: Path, config: object) -> None:
    """Write config.yaml; where training has begun, check that it is the same instead."""
    saved = run_dir / "config.yaml"
    if differing := in_the_way(run_dir, config):
        raise InputError(
            f"run_dir: {run_dir} holds a run of another config ({'; '.join(differing)}); "
            "expected another --run_dir, or --overwrite to delete it"
        )
    if not _has_begun(run_dir):
        write(saved, lambda file: file.write(to_yaml(config).encode()))
    for name in OWN_FILES:  # what a kill in the middle of `files.write` has left
        for temporary in run_dir.glob(f".{name}.*"):
            temporary.unlink()


def _has_begun(run_dir: Path) -> bool:
    return any((run_dir / name).exists() for name in OWN_FILES if name != "config.yaml")


def in_the_way(run_dir: Path, config: object) -> list[str]:
    """Return in which keys the run in `run_dir` differs from `config`; empty if in none.

    Raises InputError if its config.yaml cannot be read.
    """
    if not _has_begun(run_dir):
        return []
    saved = run_dir / "config.yaml"
    try:
        there = yaml.safe_load(saved.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        there = None
    if not isinstance(there, dict):
        raise InputError(f"{saved}: damaged; expected the run's config (--overwrite starts anew)")
    return differences(there, yaml.safe_load(to_yaml(config)))


def _delete_run(run_dir: Path) -> None:
    for name in OWN_FILES:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint that `load` reads: tensors and plain Python values only."""
    buffer = io.BytesIO()  # torch.save hides why a file could not be written
    torch.save(state, buffer)
    write(path, lambda file: file.write(buffer.getbuffer()))


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint whose state["format"] is `kind`, onto the CPU.

    Raises InputError for a file that is missing, cut, or of another kind.
    """
    return load_with_hash(path, kind)[0]


def load_with_hash(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """As `load`, with the SHA-256 of the bytes that were read; a run may replace the file later."""
    try:
        content = path.read_bytes()
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except Exception:  # what the unpickler raises depends on the damage
        raise InputError(
            f"{path}: damaged or not a checkpoint; expected one of this suite"
        ) from None
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != kind:
        raise InputError(f"{path}: holds {found!r}; expected a checkpoint of format {kind!r}")
    return state, hashlib.sha256(content).hexdigest()
