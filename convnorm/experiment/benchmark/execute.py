"""Carries out the runs that are left of a benchmark and shows how far they are."""

import json
import os
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.benchmark.attempt import Attempt, share_done
from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.plan import ATTEMPTS, GRID, about, seconds_left, survey
from convnorm.experiment.config import require, to_yaml
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.interrupts import Interrupts

POLL = 0.5  # seconds


class Job(Protocol):
    """A future of an attempt's line."""

    def done(self) -> bool: ...

    def result(self) -> dict[str, Any]: ...


class Executor(Protocol):
    """Where attempts are carried out, `workers` at a time: a `LocalExecutor` or a `Cluster`."""

    workers: int

    def submit(self, attempt: Attempt) -> Job: ...

    def stop(self) -> None: ...


def execute(benchmark: Benchmark, executor: Executor, processes: int, device: str) -> None:
    """Carry out all runs that are not done, each by `processes` on a `device`.

    Keeps a line of each in attempts.jsonl, if it was not stopped; one that fails does not stop the
    others.

    Raises:
        InputError: Another process is carrying them out.
        Stopped: At the first Ctrl-C or SIGTERM, when the runs that were going on have saved.
    """
    left = [item.run for item in survey(benchmark) if item.state != "done"]
    if left:
        with checkpoint.locked(benchmark.folder, "folder"):
            _register(benchmark)
            _execute(benchmark, executor, [Attempt(benchmark, r, processes, device) for r in left])


def _register(benchmark: Benchmark) -> None:
    """Keep the grid as it is before the first run: what is asked is not chosen by the answers."""
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
                    line = _line(attempt, job, stopping)
                    if line["outcome"] != "stopped":
                        _append(benchmark.folder / ATTEMPTS, line)
                        bar.write(_told(line), file=sys.stderr)
                if ended and left and not stopping:
                    seconds = seconds_left(benchmark, survey(benchmark), executor.workers)
                    told = f"{len(left)} of {total} runs left: {about(seconds)}"
                    bar.write(told, file=sys.stderr)
                going = sum(share_done(attempt.run, benchmark.pipeline) for attempt, _ in left)
                bar.n = total - len(left) + going
                bar.refresh()
                if interrupts.signal is not None and not stopping:
                    stopping = True
                    bar.write("stopping: the runs save what they have", file=sys.stderr)
                    executor.stop()
                if left:
                    time.sleep(POLL)
        except BaseException:  # a full disk, a second Ctrl-C: no run goes on without us
            executor.stop()
            raise
    if stopping:
        code = 128 + (interrupts.signal or 15)
        raise Stopped("stopped and saved; the same command again goes on", code)


def _bar(total: int) -> tqdm:
    shape = "{l_bar}{bar}| {n:.2f} of {total} runs [{elapsed}]"
    return tqdm(total=total, bar_format=shape, disable=None, file=sys.stderr)


def _line(attempt: Attempt, job: Job, stopping: bool) -> dict[str, Any]:
    """The attempt's line, also where the job that it was has been lost."""
    try:
        return job.result()
    except Exception as error:  # submitit's: the job was killed, or its result cannot be read
        said = str(error).strip().splitlines()
        line = {"run": attempt.run.name, "from": 0.0, "to": 0.0}
        line |= {"seconds": 0.0, "measuring": 0.0}
        if stopping:
            return line | {"outcome": "stopped", "reason": ""}
        return line | {"outcome": "failed", "reason": said[-1] if said else repr(error)}


def _told(line: dict[str, Any]) -> str:
    if line["outcome"] == "failed":
        return f"{line['run']}: FAILED: {line['reason']}"
    return f"{line['run']}: done in {line['seconds']:.0f} s"


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with path.open("a+b") as file:
            file.seek(-min(1, file.tell()), os.SEEK_END)
            cut = file.read() not in (b"", b"\n")  # by a kill
            file.write((b"\n" if cut else b"") + json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


# ------------------------------------------------------------------ on this machine


def available_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count]


def divided_machine(workers: int | None, processes: int, device: str) -> list[dict[str, str]]:
    """Divide the machine: for each worker, the environment of the runs that it carries out.

    Args:
        workers: Runs side by side; None for as many as the GPUs, or else the cores, allow.
        processes: That train one run together.

    Raises:
        InputError: There are fewer GPUs, or without any fewer cores, than processes.
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
    """As many attempts at once as there are shares; the others wait."""

    def __init__(self, machine: list[dict[str, str]]):
        self.workers = len(machine)
        self._free = deque(machine)
        self._pool = ThreadPoolExecutor(len(machine))
        self._attempts: list[Attempt] = []

    def submit(self, attempt: Attempt) -> Future:
        """Return the future of the attempt's line."""
        self._attempts.append(attempt)
        return self._pool.submit(self._with_share, attempt)

    def _with_share(self, attempt: Attempt) -> dict[str, Any]:
        share = self._free.popleft()
        attempt.environment = {**attempt.environment, **share}
        try:
            return attempt()
        finally:
            self._free.append(share)

    def stop(self) -> None:
        """Let every attempt save and end."""
        for attempt in self._attempts:
            attempt.stop()
