"""Carries out the runs that are left of a benchmark and shows how far they are."""

import json
import os
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.benchmark.attempt import Attempt, AttemptRecord, fraction_done
from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.plan import ATTEMPTS, GRID, about, seconds_left, survey
from convnorm.experiment.codec import to_json
from convnorm.experiment.config import require, to_yaml
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.interrupts import Interrupts

POLL = 0.5  # seconds


class Job(Protocol):
    """A future of an attempt's record."""

    def done(self) -> bool: ...

    def result(self) -> AttemptRecord: ...


class Executor(Protocol):
    """Where attempts are carried out, `workers` at a time: a `LocalExecutor` or a `Cluster`."""

    workers: int

    def submit(self, attempt: Attempt) -> Job: ...

    def stop(self) -> None: ...


def execute(benchmark: Benchmark, executor: Executor, processes: int, device: str) -> None:
    """Carry out all runs that are not done, each by `processes` on a `device`.

    Adds a line to attempts.jsonl for each run that ends on its own. A run that fails does not stop
    the others.

    Raises:
        InputError: Another process is carrying them out.
        Stopped: After a Ctrl-C or SIGTERM, as soon as the runs that were going on have saved.
    """
    left = [item.run for item in survey(benchmark) if item.state != "done"]
    if left:
        with checkpoint.locked(benchmark.folder, "folder"):
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
    with Interrupts() as interrupts, _bar(total) as bar:
        try:
            left = [(attempt, executor.submit(attempt)) for attempt in attempts]
            while left:
                ended = [pair for pair in left if pair[1].done()]
                left = [pair for pair in left if pair not in ended]
                for attempt, job in ended:
                    record = _record(attempt, job, stopping)
                    if record.outcome != "stopped":
                        _append(benchmark.folder / ATTEMPTS, record)
                        bar.write(_told(record), file=sys.stderr)
                if ended and left and not stopping:
                    seconds = seconds_left(benchmark, survey(benchmark), executor.workers)
                    told = f"{len(left)} of {total} runs left: {about(seconds)}"
                    bar.write(told, file=sys.stderr)
                going = sum(fraction_done(attempt.run, benchmark.pipeline) for attempt, _ in left)
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
    if stopping:
        code = 128 + (interrupts.signal or 15)
        raise Stopped("stopped; the same command again goes on", code)


def _bar(total: int) -> tqdm:
    shape = "{l_bar}{bar}| {n:.2f} of {total} runs [{elapsed}]"
    return tqdm(total=total, bar_format=shape, disable=None, file=sys.stderr)


def _record(attempt: Attempt, job: Job, stopping: bool) -> AttemptRecord:
    """Return the attempt's record, also where its job was lost."""
    try:
        return job.result()
    except Exception as error:  # submitit's: the job was killed, or its result cannot be read
        said = str(error).strip().splitlines() or [repr(error)]
        outcome, reason = ("stopped", "") if stopping else ("failed", said[-1])
        return AttemptRecord(attempt.run.name, outcome, reason, 0.0, 0.0, 0.0, 0.0)


def _told(record: AttemptRecord) -> str:
    if record.outcome == "failed":
        return f"{record.run}: FAILED: {record.reason}"
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


def divided_machine(workers: int | None, processes: int, device: str) -> list[dict[str, str]]:
    """Divide the machine among workers, and return the environment that each gives to its runs.

    Args:
        workers: How many runs go on side by side; None for as many as there is room for. A process
            of a run takes a GPU or, without GPUs, a core.
        processes: How many processes train one run together.

    Raises:
        InputError: The machine has no room for so many workers or processes.
    """
    gpus = [] if device == "cpu" else available_gpus()
    cores = available_cores()
    most, units = (len(gpus), "GPUs") if gpus else (cores, "cores")
    fits = 1 <= processes <= most
    require(fits, "processes_per_run", processes, f"1 to {most}, the {units} of this machine")
    side_by_side = most // processes
    workers = side_by_side if workers is None else workers
    fits = 1 <= workers <= side_by_side
    require(fits, "workers", workers, f"1 to {side_by_side}, as {most} {units} are divided")
    threads = max(1, cores // (workers * processes))
    if (set_before := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        threads = min(threads, max(1, int(set_before)))
    found = []
    for worker in range(workers):
        found.append({"OMP_NUM_THREADS": str(threads)})
        if gpus:
            own = gpus[worker * processes : (worker + 1) * processes]
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
        self._attempts: list[Attempt] = []

    def submit(self, attempt: Attempt) -> Future:
        """Return the future of the attempt's record."""
        self._attempts.append(attempt)
        return self._pool.submit(self._on_free_part, attempt)

    def _on_free_part(self, attempt: Attempt) -> AttemptRecord:
        part = self._free.popleft()
        attempt.environment = {**attempt.environment, **part}
        try:
            return attempt()
        finally:
            self._free.append(part)

    def stop(self) -> None:
        """Let every attempt save and end."""
        for attempt in self._attempts:
            attempt.stop()
