"""Divides this machine among runs, and carries them out on its parts."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from convnorm.experiment.benchmark.attempt import Attempt, AttemptRecord, Ended, lost
from convnorm.experiment.benchmark.deadline import Deadline
from convnorm.experiment.config import require


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
    """Carries out an attempt on each part of the machine.

    machine: the environment of each part, see `divided_machine`. deadline: of the attempts.
    """

    def __init__(self, machine: list[dict[str, str]], deadline: Deadline | None = None):
        self.workers = len(machine)
        self._deadline = deadline or Deadline()
        self._free = deque(machine)
        self._pool = ThreadPoolExecutor(len(machine))
        self._going: list[_Going] = []

    @property
    def seconds_left(self) -> float:
        """The seconds until its deadline."""
        return self._deadline.seconds_left

    def has_room(self) -> bool:
        """Whether a part is free."""
        return bool(self._free)

    def submit(self, attempt: Attempt) -> None:
        """Carry out the attempt on a free part."""
        part = self._free.popleft()
        attempt.environment = {**attempt.environment, **part}
        self._going.append(_Going(attempt, part, self._pool.submit(attempt)))

    def wait(self, seconds: float) -> None:
        """Wait until an attempt ends, at most so long."""
        wait([going.future for going in self._going], seconds, FIRST_COMPLETED)

    def ended(self) -> Iterator[Ended]:
        """Yield what has ended since."""
        for going in [going for going in self._going if going.future.done()]:
            self._going.remove(going)
            self._free.append(going.part)
            yield Ended(going.record, str(going.attempt.log))

    def stop(self) -> None:
        """Let every attempt save and end."""
        for going in self._going:
            going.attempt.stop()


@dataclass(frozen=True)
class _Going:
    """An attempt that is carried out on a part of the machine."""

    attempt: Attempt
    part: dict[str, str]
    future: Future[AttemptRecord]

    @property
    def record(self) -> AttemptRecord:
        """How it went, once it has ended."""
        try:
            return self.future.result()
        except Exception as error:  # a full disk, no process left: it stops no other run
            reason = " ".join(str(error).split()) or repr(error)
            return lost(self.attempt.run.name, "failed", reason)
