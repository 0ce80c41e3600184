"""Run folders and checkpoints: one file that holds everything, replaced as a whole."""

import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from convnorm.experiment.config import differences, to_yaml
from convnorm.experiment.errors import InputError

CHECKPOINT = "last.pt"
OWN_FILES = (
    "config.yaml",
    "log.jsonl",
    "metrics.jsonl",
    "summary.json",
    CHECKPOINT,
    "samples",
    "tensorboard",
)


def open_run(run_dir: Path, config: object, overwrite: bool) -> None:
    """Make `run_dir` the folder of a run with this config, or find that it already is.

    Writes config.yaml first. Raises InputError, and changes nothing, for a folder that holds
    something else, another config (the keys that differ are named), or cannot be written.
    """
    try:
        if overwrite:
            _delete_run(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        saved = run_dir / "config.yaml"
        if saved.is_file():
            _check_same(saved, config)
        elif any(path for path in run_dir.iterdir() if not path.name.startswith(".")):
            raise InputError(f"run_dir: {run_dir} holds other files; expected a run or nothing")
        else:
            write(saved, lambda file: file.write(to_yaml(config).encode()))
        if not os.access(run_dir, os.W_OK):
            raise PermissionError("no write permission")
        for name in OWN_FILES:  # what a kill in the middle of `write` has left
            for temporary in run_dir.glob(f".{name}.*"):
                temporary.unlink()
    except OSError as error:
        raise InputError(f"run_dir: {run_dir} cannot be used ({error.strerror or error})") from None


def _check_same(saved: Path, config: object) -> None:
    try:
        there = yaml.safe_load(saved.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        there = None
    if not isinstance(there, dict):
        raise InputError(f"{saved}: damaged; expected the run's config (--overwrite starts anew)")
    differing = differences(there, yaml.safe_load(to_yaml(config)))
    if differing:
        raise InputError(
            f"run_dir: {saved.parent} holds a run of another config ({'; '.join(differing)}); "
            "expected another --run_dir, or --overwrite to delete it"
        )


def _delete_run(run_dir: Path) -> None:
    if run_dir.is_dir() and any(run_dir.iterdir()) and not (run_dir / "config.yaml").is_file():
        raise InputError(f"overwrite: {run_dir} is not a run folder, nothing was deleted")
    for name in OWN_FILES:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a temporary name and rename it: the old one stays until then.

    fill: is called with the open file. Raises InputError when the disk is full or refuses.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(
            f"{path}: cannot be written ({reason}); what was there before is untouched"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint that `load` reads: tensors and plain Python values only."""
    write(path, lambda file: torch.save(state, file))


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint whose state["format"] is `kind`, onto the CPU.

    Raises InputError for a file that is missing, cut, or of another kind.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ):
        raise InputError(
            f"{path}: damaged or not a checkpoint; expected one of this suite"
        ) from None
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != kind:
        raise InputError(f"{path}: holds {found!r}; expected a checkpoint of format {kind!r}")
    return state
