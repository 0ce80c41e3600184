"""Runs attempts on this machine, side by side, each with its share of the cores or GPUs."""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from convnorm.experiment.benchmark.attempt import Attempt
from convnorm.experiment.config import require


def available_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count]


def shares(workers: int | None, processes: int, device: str) -> list[dict[str, str]]:
    """Divide the machine: for each worker, the environment of the runs that it carries out.

    Args:
        workers: Runs side by side; None for as many as there are GPUs, or else cores, for.
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


class Here:
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
