"""Divides this machine among runs, and carries them out on its parts."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from convnorm.experiment.benchmark.attempt import Attempt, AttemptRecord, Ended, lost
from convnorm.experiment.benchmark.deadline import Deadline
from convnorm.experiment.benchmark.sharing import Sharing
from convnorm.experiment.config import require

GPUS = "CUDA_VISIBLE_DEVICES"


def available_cores() -> int:
    """Return how many cores this process may use; the machine can have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get(GPUS)
    count = torch.cuda.device_count()
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count]


def threads(cores: int, processes: int) -> int:
    """Return how many threads each process gets; no more than OMP_NUM_THREADS asks for."""
    share = max(1, cores // processes)
    set_before = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, max(1, int(set_before))) if set_before.isdecimal() else share


def divided_machine(
    workers: int | None, processes: int, device: str, runs_per_gpu: int | None = 1
) -> list[dict[str, str]]:
    """Divide the machine among workers, and return the environment that each gives to its runs.

    Args:
        workers: How many runs go on side by side; None for as many as there is room for. A process
            of a run takes a GPU or, without GPUs, a core.
        processes: How many processes train one run together.
        runs_per_gpu: How many runs share a GPU; a small network leaves most of it idle. None for
            as many as there are cores for, which drive it.

    Raises:
        InputError: The machine has no room for so many workers or processes.
    """
    gpus = [] if device == "cpu" else available_gpus()
    cores = available_cores()
    if runs_per_gpu != 1:
        asked = "auto" if runs_per_gpu is None else runs_per_gpu
        require(bool(gpus), "runs_per_gpu", asked, "1, as no GPU is used")
        require(processes == 1, "runs_per_gpu", asked, "1 with several processes a run")
        runs_per_gpu = runs_per_gpu or max(1, cores // len(gpus))
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
            found[-1][GPUS] = ",".join(own)
    return found


def gpu_memory() -> int:
    """Return the bytes of memory of the smallest GPU that this process may use."""
    count = torch.cuda.device_count()
    return min(torch.cuda.get_device_properties(index).total_memory for index in range(count))


def local_executor(
    workers: int | None,
    runs_per_gpu: int | None,
    processes: int,
    device: str,
    deadline: Deadline,
) -> "LocalExecutor":
    """Return what carries out runs on this machine, see `divided_machine`.

    runs_per_gpu: None for as many as fit into a GPU's memory, from what runs say they take.
    """
    machine = divided_machine(workers, processes, device, runs_per_gpu)
    if runs_per_gpu == 1:
        return LocalExecutor(machine, deadline)
    most = max(1, available_cores() // len({part[GPUS] for part in machine}))
    return LocalExecutor(machine, deadline, Sharing(runs_per_gpu, gpu_memory(), most))


class LocalExecutor:
    """Carries out an attempt on each part of the machine.

    machine: the environment of each part, see `divided_machine`. deadline: of the attempts.
    sharing: how many of the parts on a GPU may be used; None for all.
    """

    def __init__(
        self,
        machine: list[dict[str, str]],
        deadline: Deadline | None = None,
        sharing: Sharing | None = None,
    ):
        self._machine, self._sharing = machine, sharing
        self._deadline = deadline or Deadline()
        self._free = list(machine)
        self._pool = ThreadPoolExecutor(len(machine))
        self._going: list[_Going] = []

    @property
    def workers(self) -> int:
        """How many attempts can go on at a time, as far as is known."""
        if self._sharing is None:
            return len(self._machine)
        on_gpu = Counter(part[GPUS] for part in self._machine)
        return sum(min(self._sharing.limit, parts) for parts in on_gpu.values())

    @property
    def seconds_left(self) -> float:
        """The seconds until its deadline."""
        return self._deadline.seconds_left

    def _part(self) -> dict[str, str] | None:
        """The part that is to be used next: on the GPU that has the fewest runs."""
        if self._sharing is None:
            return self._free[0] if self._free else None
        going = Counter(each.part[GPUS] for each in self._going)
        usable = [part for part in self._free if going[part[GPUS]] < self._sharing.limit]
        return min(usable, key=lambda part: going[part[GPUS]], default=None)

    def has_room(self) -> bool:
        """Whether a part is free."""
        return self._part() is not None

    def submit(self, attempt: Attempt) -> None:
        """Carry out the attempt on a free part."""
        if self._sharing is not None:
            self._sharing.begin(attempt.benchmark)
        part = self._part()
        self._free.remove(part)
        attempt.environment = {**attempt.environment, **part}
        if self._sharing is not None:
            share = threads(available_cores(), self.workers)
            attempt.environment["OMP_NUM_THREADS"] = str(share)
        self._going.append(_Going(attempt, part, self._pool.submit(attempt)))

    def wait(self, seconds: float) -> None:
        """Wait until an attempt ends, at most so long."""
        wait([going.future for going in self._going], seconds, FIRST_COMPLETED)

    def ended(self) -> Iterator[Ended]:
        """Yield what has ended since."""
        if self._sharing is not None:
            self._sharing.note(going.attempt.run for going in self._going)
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
