"""Finds the runs of GANs, and the weights that are in their folders."""

from pathlib import Path
from typing import Literal

from convnorm.experiment.run.checkpoint import KEPT

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
