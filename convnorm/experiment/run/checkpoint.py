"""Run folders and checkpoints: one file that holds everything, replaced as a whole."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import yaml

from convnorm.experiment.config import differences, from_dict, to_yaml, yaml_text
from convnorm.experiment.config.fields import meant_before, places_of
from convnorm.experiment.errors import InputError
from convnorm.experiment.files import read, write
from convnorm.experiment.run.locking import locked
from convnorm.experiment.run.overwriting import bring_back, is_aside, let_go, set_aside

CHECKPOINT = "last.pt"
BEST = "best.pt"  # selected on data held out from the scores that are reported
KEPT = "checkpoints"  # weights of single steps
NOISY_LABELS = "noisy_labels.npz"
EVALUATION = "evaluation"
# The last one is in every run, see `overwriting.set_aside`.
OWN_FILES = (
    CHECKPOINT,
    BEST,
    KEPT,
    EVALUATION,
    NOISY_LABELS,
    "summary.json",
    "metrics.jsonl",
    "log.jsonl",
    "samples",
    "tensorboard",
    "config.yaml",
)
FOLDERS = (KEPT, EVALUATION, "samples", "tensorboard")  # those of OWN_FILES that are no files
DIGITS = 64  # of a SHA-256 in hexadecimal


class Config(Protocol):
    """What a pipeline's config of a run brings."""

    def extends(self, there: dict[str, Any]) -> str | None:
        """The key of the length, where this is a longer run of the config `there`, else None."""


@contextmanager
def open_run(run_dir: Path, config: Config, overwrite: bool) -> Iterator[None]:
    """Hold `run_dir` as the folder of a run with this config, against any other process.

    Makes the folder and writes config.yaml before anything else, unless a run is there. Where an
    error comes before the training has written anything, what was made is removed again. A run that
    is there stays as it is until the training begins (`begin`), and where an error comes before.
    overwrite: it goes then, and another one begins.
    Raises InputError, and changes nothing, for a folder that cannot be written, that holds other
    files or a run of another config (the error names the keys that differ), or that another
    process uses.
    """
    if _holds_other_files(run_dir):
        raise InputError(f"run_dir: {run_dir} holds other files; expected a run or nothing")
    with locked(run_dir, "run_dir"):
        bring_back(run_dir, OWN_FILES)  # what a kill has left aside
        saved = run_dir / "config.yaml"
        is_new = not os.path.lexists(saved)
        try:
            if overwrite and not is_new:
                set_aside(run_dir, OWN_FILES)
            _claim(run_dir, config)
            yield
        except BaseException:
            if is_new and not _has_begun(run_dir):
                saved.unlink(missing_ok=True)
            bring_back(run_dir, OWN_FILES)
            raise
        begin(run_dir, config)


def _holds_other_files(run_dir: Path) -> bool:
    try:
        there = [path.name for path in run_dir.iterdir() if not path.name.startswith(".")]
    except OSError:
        return False  # there is no folder yet, or `locked` says why it cannot be used
    return bool(there) and "config.yaml" not in there and not is_aside(run_dir)


def _check_kinds(run_dir: Path) -> None:
    """Raise InputError where something else has the name of a file or a folder of the run.

    To read from a pipe would wait for ever, and a link to nothing would pass for no file at all.
    """
    for name in OWN_FILES:
        path, expected = run_dir / name, "folder" if name in FOLDERS else "file"
        fits = path.is_dir() if expected == "folder" else path.is_file()
        if not fits and os.path.lexists(path):
            raise InputError(
                f"{path}: not a {expected}; expected the run's own (--overwrite starts anew)"
            )


def _claim(run_dir: Path, config: Config) -> None:
    """Write config.yaml or, where training has begun, check that it is of the same run."""
    there = config_of(run_dir)
    if there is None:
        _write_config(run_dir, config)
    else:
        there = completed(there, config)
        if differing := other_keys(there, config, config.extends(there)):
            raise InputError(
                f"run_dir: {run_dir} holds a run of another config ({'; '.join(differing)}); "
                "expected another --run_dir, or --overwrite to delete it"
            )
    for name in OWN_FILES:  # what a kill in the middle of `files.write` has left
        for temporary in run_dir.glob(f".{name}.*"):
            temporary.unlink()


def begin(run_dir: Path, config: Config) -> None:
    """Change what a start changes of a run that was there: from here on, it is this one.

    The run that was set aside goes. Of a run that goes on, summary.json goes where it becomes
    longer, and config.yaml says so, or where its data are now.
    """
    let_go(run_dir)
    there = config_of(run_dir)
    if there is None or there == plain(config):
        return
    if config.extends(completed(there, config)):
        (run_dir / "summary.json").unlink(missing_ok=True)  # it is not finished any more
    _write_config(run_dir, config)


def _write_config(run_dir: Path, config: Config) -> None:
    content = to_yaml(config).encode()
    write(run_dir / "config.yaml", lambda file: file.write(content))


def _has_begun(run_dir: Path) -> bool:
    return any((run_dir / name).exists() for name in OWN_FILES if name != "config.yaml")


def in_the_way(run_dir: Path, config: object) -> list[str]:
    """Return in which keys the run in `run_dir` is another one than that of `config`, if in any.

    Raises InputError if its config.yaml, or another file of it, cannot be one.
    """
    there = config_of(run_dir)
    return [] if there is None else other_keys(there, config)


def other_keys(there: dict[str, Any], config: object, free: str | None = None) -> list[str]:
    """Return the keys in which `config` is another run than that of the saved config `there`.

    See `other_values`. free: a key that may differ too.
    """
    return other_values(completed(there, config), plain(config), type(config), free)


def other_values(
    there: dict[str, Any], here: dict[str, Any], kind: type, free: str | None = None
) -> list[str]:
    """Return the keys in which two whole configs, as `plain` returns them, are of other runs.

    Where the data are is no part of a run: their hash, which its checkpoint has, tells if they are
    the same. kind: of the configs. free: a key that may differ too.
    """
    ignored = {free, *places_of(kind)}
    found = differences(there, here)
    return [line for line in found if line.partition(": ")[0] not in ignored]


def completed(there: dict[str, Any], config: object) -> dict[str, Any]:
    """Return a saved config with options that are newer at the values that change nothing.

    These are their defaults, or what `fields.since` says of them. An option is a key of a group,
    such as train.flip: a config that lacks a group, or the seed or the steps, is none of ours.
    config: any of the same kind.
    """
    found, kinds = dict(there), {part.name: part.type for part in fields(type(config))}
    for group, defaults in plain(type(config)()).items():
        saved = there.get(group)
        if isinstance(defaults, dict) and isinstance(saved, dict):
            found[group] = {**defaults, **meant_before(kinds[group], saved), **saved}
    return found


def plain(config: object) -> dict[str, Any]:
    """Return a config as it comes back from its file."""
    return yaml.safe_load(to_yaml(config))


def without_places(config: object) -> dict[str, Any]:
    """Return a plain config without the places of its data, which are those of a machine."""
    found = plain(config)
    for key in places_of(type(config)):
        group, _, name = key.rpartition(".")
        del found[group][name]
    return found


Kind = TypeVar("Kind")


def config_in(state: dict[str, Any], kind: type[Kind]) -> Kind:
    """Return the config in a checkpoint, `completed`."""
    return from_dict(kind, completed(state["config"], kind()))


@contextmanager
def taken_apart(path: Path) -> Iterator[None]:
    """Raise InputError for whatever the state of the checkpoint `path` lacks in here."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a complete checkpoint ({reason})") from None


def config_of(run_dir: Path) -> dict[str, Any] | None:
    """Read config.yaml of a run; None where no training has begun.

    Raises InputError if it, or another file of the run, cannot be one.
    """
    _check_kinds(run_dir)
    if not _has_begun(run_dir):
        return None
    saved = run_dir / "config.yaml"
    try:
        there = yaml_text.read(saved)
    except InputError:
        there = None
    if not isinstance(there, dict):
        raise InputError(f"{saved}: damaged; expected the run's config (--overwrite starts anew)")
    return there


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint that `load` reads: tensors and plain Python values only.

    The file is what torch.save writes, a ZIP archive, with the SHA-256 of all bytes before it as
    the archive's comment: torch.load, which checks no sums, reads it as any other.
    """
    buffer = io.BytesIO()  # torch.save hides why a file could not be written
    torch.save(state, buffer)
    buffer.seek(-2, io.SEEK_END)  # to the length of the comment, which ends an archive without one
    buffer.write(DIGITS.to_bytes(2, "little"))
    buffer.write(hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
    write(path, lambda file: file.write(buffer.getbuffer()))


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint whose state["format"] is `kind`, onto the CPU.

    Raises InputError for a file that is missing, of another kind, or not what `save` has written
    to the last bit.
    """
    return load_with_hash(path, kind)[0]


def load_with_hash(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """As `load`, with the SHA-256 of the bytes that were read; a run may replace the file later."""
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such checkpoint")
    content = memoryview(read(path))
    digest = hashlib.sha256(content[:-DIGITS])
    try:
        if digest.hexdigest().encode() != content[-DIGITS:]:
            raise ValueError
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # what the unpickler raises for what is no checkpoint depends on the content
        raise InputError(
            f"{path}: damaged or not a checkpoint of this version; expected one of format {kind!r}"
        ) from None
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if found != kind:
        raise InputError(f"{path}: holds {found!r}; expected a checkpoint of format {kind!r}")
    digest.update(content[-DIGITS:])
    return state, digest.hexdigest()
