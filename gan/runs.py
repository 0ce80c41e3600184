"""Finds the runs of GANs, and the weights that are in their folders."""

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Literal, get_args

from convnorm.experiment.benchmark.targets import is_result
from convnorm.experiment.config import read as read_config
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.checkpoint import BEST, CHECKPOINT, KEPT
from gan.config import GanConfig
from gan.published import MODEL, is_published

Which = Literal["last", "best"]
RUNS = (Path("runs/gan"), Path("runs/benchmark"))


def step_file(run_dir: Path, step: int) -> Path:
    """Return the file that keeps the weights of a step."""
    return run_dir / KEPT / f"step_{step:07d}.pt"


def kept(run_dir: Path) -> dict[int, Path]:
    """Return step -> the file that keeps its weights, in the order of the steps."""
    found = {}
    for file in (run_dir / KEPT).glob("step_*.pt"):
        number = file.stem.removeprefix("step_")
        if number.isdecimal() and file == step_file(run_dir, int(number)):
            found[int(number)] = file
    return dict(sorted(found.items()))


def is_run(path: Path) -> bool:
    """Whether a path is that of a checkpoint, of the folder of a run, or of published weights."""
    files = (CHECKPOINT, BEST, "config.yaml", MODEL)
    return path.suffix == ".pt" or any((path / file).exists() for file in files)


def add_checkpoint(parser: ArgumentParser, role: str = "") -> None:
    """Add --checkpoint, for `checkpoint_of`. role: which argument is the run, where it has one."""
    parser.add_argument(
        "--checkpoint",
        choices=get_args(Which),
        help=f"of a run folder{role}: last.pt, or best.pt, which score.select chose (last)",
    )


def checkpoint_of(run: Path, which: Which | None) -> Path:
    """Return a checkpoint of a run folder, last.pt where `which` is None.

    A file is itself, and so is a folder of published weights, which are of one checkpoint.

    Raises InputError where there is no best.pt, and for `which` of a file.
    """
    if not run.is_dir() or is_published(run):
        if which is not None:
            raise InputError(
                f"--checkpoint: {which} is not allowed with {run}; expected it with a run folder"
            )
        return run
    file = run / (BEST if which == "best" else CHECKPOINT)
    if which == "best" and not file.is_file():
        raise InputError(
            f"{file}: no such checkpoint; expected a run whose score.select has chosen a step, or "
            "--checkpoint last"
        )
    return file


def checkpoints_of(run: Path) -> list[Path]:
    """Return all checkpoints of a run folder: those that were kept in their order, best, last.

    Raises InputError where there is none.
    """
    named = [file for file in (run / BEST, run / CHECKPOINT) if file.is_file()]
    if found := [*kept(run).values(), *named]:
        return found
    raise InputError(f"--all: {run} holds no checkpoint; expected the folder of a GAN's run")


def newest_run() -> Path:
    """Return the folder of a GAN's run below `RUNS` whose last.pt was written last.

    Neither a pilot run nor one that --overwrite replaces. Raises InputError where there is none.
    """
    below = [file for folder in RUNS for file in folder.rglob(CHECKPOINT) if file.is_file()]
    found = [file for file in below if is_result(file)]
    for file in sorted(found, key=os.path.getmtime, reverse=True):
        if _is_gan(file.parent):
            return file.parent
    places = " or ".join(map(str, RUNS))
    raise InputError(f"FAKE: missing, and no run of a GAN is in {places}")


def _is_gan(run: Path) -> bool:
    try:
        read_config(GanConfig, run / "config.yaml")
    except InputError:  # of a classifier, for instance
        return False
    return True
