"""Carries out the runs that are left of a benchmark and shows how far they are."""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.benchmark.attempt import (
    Attempt,
    AttemptRecord,
    Ended,
    fraction_done,
    lost,
)
from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.plan import ATTEMPTS, GRID, about, seconds_left, survey
from convnorm.experiment.codec import to_json
from convnorm.experiment.config import require, to_yaml
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.interrupts import Interrupts

POLL = 0.5  # seconds


class Executor(Protocol):
    """Where attempts are carried out, `workers` at a time: a `LocalExecutor` or a `Cluster`."""

    workers: int

    def submit(self, attempt: Attempt) -> None: ...

    def ended(self) -> Iterator[Ended]:
        """Yield what has ended since; it is noted by the time that the next one is asked for."""
        ...

    def stop(self) -> None: ...


def execute(benchmark: Benchmark, executor: Executor, processes: int, device: str) -> None:
    """Carry out all runs that are not done, each by `processes` on a `device`.

    Adds a line to attempts.jsonl for each run that ends on its own. A run that fails does not stop
    the others.

    Raises:
        InputError: Another process is carrying them out, or a cluster refuses them.
        Stopped: After a Ctrl-C or SIGTERM, as soon as the runs that were going on have saved.
    """
    with checkpoint.locked(benchmark.folder, "folder"):
        for ended in executor.ended():  # on a cluster, while nobody waited for it
            print(_noted(benchmark, ended), file=sys.stderr)
        left = [item.run for item in survey(benchmark) if item.state != "done"]
        if left:
            _register(benchmark)
            _execute(benchmark, executor, [Attempt(benchmark, r, processes, device) for r in left])


def _register(benchmark: Benchmark) -> None:
    """Keep the grid of the first start: a report tells whether it was changed since then."""
    file = benchmark.folder / GRID
    if not file.exists():
        content = to_yaml(benchmark.grid).encode()
        files.write(file, lambda opened: opened.write(content))


def _execute(benchmark: Benchmark, executor: Executor, attempts: list[Attempt]) -> None:
    total, stopping = len(attempts), False
    left: dict[str, Attempt] = {}
    with Interrupts() as interrupts, _bar(total) as bar:
        try:
            for attempt in attempts:
                if interrupts.signal is None:
                    executor.submit(attempt)
                    left[attempt.run.name] = attempt
            cut = len(left) < total
            while left:
                before = len(left)
                for ended in executor.ended():
                    left.pop(ended.record.run, None)  # none: of a run that the grid has no more
                    told = _noted(benchmark, ended)
                    if not (stopping and ended.record.outcome == "stopped"):
                        bar.write(told, file=sys.stderr)
                if left and len(left) < before and not stopping:
                    seconds = seconds_left(benchmark, survey(benchmark), executor.workers)
                    told = f"{len(left)} of {total} runs left: {about(seconds)}"
                    bar.write(told, file=sys.stderr)
                going = sum(fraction_done(a.run, benchmark.pipeline) for a in left.values())
                bar.n = total - len(left) + going
                bar.refresh()
                if interrupts.signal is not None and not stopping:
                    stopping = True
                    bar.write("stopping: the runs save and end", file=sys.stderr)
                    executor.stop()
                if left:
                    time.sleep(POLL)
        except BaseException:  # a full disk, a second Ctrl-C: no run goes on without us
            executor.stop()
            raise
    if stopping or cut:
        code = 128 + (interrupts.signal or 15)
        raise Stopped("stopped; the same command again goes on", code)


def _bar(total: int) -> tqdm:
    shape = "{l_bar}{bar}| {n:.2f} of {total} runs [{elapsed}]"
    return tqdm(total=total, bar_format=shape, disable=None, file=sys.stderr)


def _noted(benchmark: Benchmark, ended: Ended) -> str:
    """Add an attempt to attempts.jsonl unless it was stopped; return what to tell."""
    record = ended.record
    if record.outcome == "stopped":
        return f"{record.run}: stopped: {record.reason}; the next start goes on"
    _append(benchmark.folder / ATTEMPTS, record)
    if record.outcome == "failed":
        return f"{record.run}: FAILED: {record.reason} ({ended.where})"
    return f"{record.run}: done in {record.seconds:.0f} s"


def _append(path: Path, record: AttemptRecord) -> None:
    line = json.dumps(to_json(record)).encode()
    try:
        with path.open("a+b") as file:
            file.seek(-min(1, file.tell()), os.SEEK_END)
            cut = file.read() not in (b"", b"\n")  # by a kill
            file.write((b"\n" if cut else b"") + line + b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


# ------------------------------------------------------------------ on this machine


def available_cores() -> int:
    """Return how many cores this process may use; the machine can have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count]


def threads(cores: int, processes: int) -> int:
    """Return how many threads each process gets; no more than OMP_NUM_THREADS asks for."""
    share = max(1, cores // processes)
    set_before = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, max(1, int(set_before))) if set_before.isdecimal() else share


def divided_machine(
    workers: int | None, processes: int, device: str, runs_per_gpu: int = 1
) -> list[dict[str, str]]:
    """Divide the machine among workers, and return the environment that each gives to its runs.

    Args:
        workers: How many runs go on side by side; None for as many as there is room for. A process
            of a run takes a GPU or, without GPUs, a core.
        processes: How many processes train one run together.
        runs_per_gpu: How many runs share a GPU; a small network leaves most of it idle.

    Raises:
        InputError: The machine has no room for so many workers or processes.
    """
    gpus = [] if device == "cpu" else available_gpus()
    cores = available_cores()
    if runs_per_gpu > 1:
        require(bool(gpus), "runs_per_gpu", runs_per_gpu, "1, as no GPU is used")
        require(processes == 1, "runs_per_gpu", runs_per_gpu, "1 with several processes a run")
    seats = [gpu for _ in range(runs_per_gpu) for gpu in gpus]
    most, units = (len(seats), "GPUs") if gpus else (cores, "cores")
    if runs_per_gpu > 1:
        units = f"places on {len(gpus)} GPUs"
    fits = 1 <= processes <= most
    require(fits, "processes_per_run", processes, f"1 to {most}, the {units} of this machine")
    side_by_side = most // processes
    workers = side_by_side if workers is None else workers
    fits = 1 <= workers <= side_by_side
    require(fits, "workers", workers, f"1 to {side_by_side}, as {most} {units} are divided")
    found = []
    for worker in range(workers):
        found.append({"OMP_NUM_THREADS": str(threads(cores, workers * processes))})
        if gpus:
            own = seats[worker * processes : (worker + 1) * processes]
            found[-1]["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return found


class LocalExecutor:
    """Carries out an attempt on each part of the machine; the others wait.

    machine: the environment of each part, see `divided_machine`.
    """

    def __init__(self, machine: list[dict[str, str]]):
        self.workers = len(machine)
        self._free = deque(machine)
        self._pool = ThreadPoolExecutor(len(machine))
        self._going: list[tuple[Attempt, Future]] = []

    def submit(self, attempt: Attempt) -> None:
        """Carry out the attempt as soon as a part is free."""
        self._going.append((attempt, self._pool.submit(self._on_free_part, attempt)))

    def ended(self) -> Iterator[Ended]:
        """Yield what has ended since."""
        for attempt, future in [pair for pair in self._going if pair[1].done()]:
            self._going.remove((attempt, future))
            yield Ended(_record(attempt, future), str(attempt.log))

    def _on_free_part(self, attempt: Attempt) -> AttemptRecord:
        part = self._free.popleft()
        attempt.environment = {**attempt.environment, **part}
        try:
            return attempt()
        finally:
            self._free.append(part)

    def stop(self) -> None:
        """Let every attempt save and end."""
        for attempt, _ in self._going:
            attempt.stop()


def _record(attempt: Attempt, future: Future) -> AttemptRecord:
    try:
        return future.result()
    except Exception as error:  # a full disk, no process left: it stops no other run
        return lost(attempt.run.name, "failed", " ".join(str(error).split()) or repr(error))
