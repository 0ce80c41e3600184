"""How many runs share a GPU: as many as its memory has room for, from what runs say they take."""

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tqdm import tqdm

from convnorm.experiment.benchmark.attempt import is_trained
from convnorm.experiment.benchmark.grid import Benchmark, Run
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.memory import GIB
from convnorm.experiment.run.tracking import last_line, read_lines

SHARE = 0.8  # of a GPU's memory that auto fills
CONTEXT = GIB // 2  # about what CUDA takes for a process beside its tensors


@dataclass(frozen=True)
class Need:
    """The bytes that a run takes of a GPU, of the cell that takes most; and how they are known."""

    bytes: int
    cell: str
    known: str

    def __str__(self) -> str:
        return f"{_gib(self.bytes)} ({self.cell}, {self.known})"


def most_needed(estimates: Mapping[str, int], told: Mapping[str, int]) -> Need:
    """Return what the cell takes that takes most.

    A cell that was not measured is taken to need more than its estimate, which is a lower bound, by
    as much as the worst of those that were.

    estimates: cell -> bytes at least, of one cell or more. told: cell -> bytes, as measured.
    """
    worst = max((told[cell] / estimates[cell] for cell in told if cell in estimates), default=1.0)
    takes = {
        cell: told.get(cell, round(max(1.0, worst) * estimate))
        for cell, estimate in estimates.items()
    }
    cell = max(takes, key=takes.__getitem__)
    known = "measured" if cell in told else "reckoned" if told else "estimated, at least"
    return Need(takes[cell] + CONTEXT, cell, known)


def fitting(
    card: int, most: int, estimates: Mapping[str, int], told: Mapping[str, int]
) -> tuple[int, str]:
    """Return how many runs fit on a GPU, and why in a line.

    One alone as long as none has told what it takes: the estimate has no scores in it.

    card: bytes of the GPU. most: runs that there are cores for. estimates, told: see `most_needed`.
    """
    need = most_needed(estimates, told)
    if not told:
        return 1, f"runs per GPU: 1 until one has been scored and tells what it takes: {need}"
    room = int(SHARE * card)
    found = max(1, min(most, room // need.bytes))
    why = f"a run takes up to {need} and {SHARE:.0%} of the GPU's memory are {_gib(room)}"
    if found < room // need.bytes:
        why += f"; there are cores for {most}"
    return found, f"runs per GPU: {found}, as {why}"


def checked(wanted: int, card: int, estimates: Mapping[str, int], told: Mapping[str, int]) -> str:
    """Return a line on so many runs that share a GPU, with a warning where they may not fit.

    Raises InputError where they cannot: even what they need at least is more than the GPU has.
    """
    least, need = most_needed(estimates, {}), most_needed(estimates, told)
    if wanted * least.bytes > card:
        raise InputError(
            f"--runs_per_gpu: {wanted} is not allowed; expected {max(1, card // least.bytes)} or "
            f"fewer, as a run takes {least} and the GPU has {_gib(card)}"
        )
    line = f"runs per GPU: {wanted}, each of which takes up to {need} of {_gib(card)}"
    if wanted * need.bytes > card:
        return f"warning: {line}: {_gib(wanted * need.bytes)} do not fit, and runs may fail"
    return line


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def told_by(run: Run) -> int | None:
    """Return how many bytes of a GPU a run took; None as long as it does not tell.

    It tells once it has been scored, which can take more memory than the training, or is done.
    """
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        if is_trained(run):
            summary = json.loads((run.folder / "summary.json").read_bytes())
            if any(part["world_size"] > 1 for part in summary["segments"]):
                return None  # each process had a GPU, and a part of the batch
            return max(summary["device_memory"], summary["log"]["device_memory"])
        last = last_line(run.folder / "log.jsonl")
        if last["step"] > read_lines(run.folder / "metrics.jsonl")[0]["step"]:
            return last["device_memory"]
    return None  # not yet, on a CPU, of an older version, or damaged


class Sharing:
    """How many runs may share a GPU now: `limit`.

    wanted: so many; None for as many as fit. card: bytes of the smallest GPU. most: runs for each
    GPU that there are cores for.
    """

    def __init__(self, wanted: int | None, card: int, most: int):
        self._wanted, self._card, self._most = wanted, card, most
        self._benchmark: Benchmark | None = None
        self._estimates: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._line = ""
        self.limit = wanted or 1

    def begin(self, benchmark: Benchmark) -> None:
        """Estimate what its runs take; InputError where as many as wanted cannot fit."""
        if benchmark is self._benchmark:
            return
        self._benchmark, self._told = benchmark, {}
        left = {run.cell.name: run for run in benchmark.runs if not is_trained(run)}
        self._estimates = {}
        for cell, run in left.items():
            with suppress(InputError):  # of a network that cannot be built: the run says so
                estimate = benchmark.pipeline.memory(run.config)
                self._estimates[cell] = estimate.weights + estimate.batch
        self.note(benchmark.runs)

    def note(self, runs: Iterable[Run]) -> None:
        """Note what runs tell by now, and say what follows from it."""
        for run in runs:
            if (told := told_by(run)) is not None:
                self._told[run.cell.name] = max(told, self._told.get(run.cell.name, 0))
        if not self._estimates:
            return
        if self._wanted is None:
            known = self._card, self._most, self._estimates, self._told
            self.limit, line = fitting(*known)
        else:
            line = checked(self._wanted, self._card, self._estimates, self._told)
        if line != self._line:
            tqdm.write(line, file=sys.stderr)
        self._line = line
