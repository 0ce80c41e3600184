"""One process per device: torchrun's environment, parts of a batch, averages over processes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from convnorm.experiment import streams
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run.interrupts import end_with_parent

PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what gives a process its place
TORCHRUN = "TORCHELASTIC_RUN_ID"  # is set by torchrun alone
MEETING = 300  # seconds in which all processes have to start


@dataclass(frozen=True)
class Process:
    """This process, one of `world_size` that train the same run."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and computes the scores."""
        return self.rank == 0

    @property
    def turns(self) -> slice:
        """Which of a sequence are this process's, where all take one in turn."""
        return slice(self.rank, None, self.world_size)

    def local_slice(self, size: int, key: str) -> slice:
        """Where this process's part of a batch of `size` lies; `key` names it in the error."""
        if size % self.world_size:
            raise InputError(f"{key}: {size} does not divide by {self.world_size} processes")
        part = size // self.world_size
        return slice(self.rank * part, (self.rank + 1) * part)

    def random(self, draw: Callable, size: tuple[int, ...], *key: int | str) -> torch.Tensor:
        """This process's part of what `draw` (torch.randn, torch.rand) gives a whole batch."""
        numbers = draw(*size, device=self.device, generator=streams.generator(self.device, *key))
        return numbers[self.local_slice(size[0], "batch")]

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Put the parts of all processes together again, along the first dimension."""
        if self.world_size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.world_size)]
        _together(dist.all_gather, parts, part.contiguous())
        return torch.cat(parts)

    def gather_objects(self, own: Any) -> list[Any]:
        """Return what each process has, in the main one; nothing in the others.

        own: anything that can be pickled, with its tensors on the CPU if there are other processes.
        """
        if self.world_size == 1:
            return [own]
        found = [None] * self.world_size if self.is_main else None
        _together(dist.gather_object, own, found)
        return found or []

    def average_(self, tensors: list[torch.Tensor]) -> None:
        """Replace floating-point tensors by their mean over the processes, in one message.

        This is what DistributedDataParallel does to gradients. Its wrapper cannot be used here:
        a discriminator runs forward twice before each backward pass.
        """
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten().float() for tensor in tensors])
        _together(dist.all_reduce, flat)
        flat /= self.world_size
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in at least one process."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        _together(dist.all_reduce, votes)
        return votes.item() > 0

    def agree(self, number: int) -> bool:
        """Return whether every process has the same number."""
        if self.world_size == 1:
            return True
        extremes = torch.tensor([float(number), -float(number)], device=self.device)
        _together(partial(dist.all_reduce, op=dist.ReduceOp.MAX), extremes)
        return extremes.sum().item() == 0

    def barrier(self) -> None:
        """Wait until every process has come to this line."""
        if self.world_size > 1:
            _together(dist.barrier)


ALONE = Process(torch.device("cpu"))  # without others to share work with


def _together(operation: Callable, *args: Any) -> None:
    """Carry out an operation of all processes; raise Stopped if another one is gone."""
    try:
        operation(*args)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        message = (
            f"process {dist.get_rank()}: cannot reach the others, see their messages ({reason})"
        )
        raise Stopped(message, code=1) from None


def pick_device(device: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` stands for on this machine."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' is not available; expected cpu, or auto")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index = _number("LOCAL_RANK", 0, 2**16) if os.environ.get("LOCAL_RANK") else 0
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"device: process {index} of this machine has no GPU of its own ({count})")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def start(device: str) -> Process:
    """Join the other processes of torchrun; without it, the process is alone.

    Raises InputError where the environment names no place among processes, or half of one, and
    Stopped where the others do not come.
    """
    is_one_of_many = _has_place()
    picked = pick_device(device)
    if not is_one_of_many:
        return Process(picked)
    if TORCHRUN in os.environ:
        end_with_parent()
    if not dist.is_initialized():
        _join("nccl" if picked.type == "cuda" else "gloo")
    return Process(picked, dist.get_rank(), dist.get_world_size())


def _has_place() -> bool:
    """Whether the environment gives this process a place among others, as torchrun does."""
    if not (given := [name for name in PLACE if os.environ.get(name)]):
        return False
    if missing := [name for name in PLACE if name not in given]:
        raise InputError(
            f"{', '.join(given)}: set, and {', '.join(missing)} not; expected all of them, as "
            "torchrun sets them, or none (unset them to train in one process)"
        )
    world_size = _number("WORLD_SIZE", 1, 2**31 - 1)
    _number("RANK", 0, world_size - 1)
    _number("MASTER_PORT", 1, 2**16 - 1)
    if os.environ.get("LOCAL_RANK"):
        _number("LOCAL_RANK", 0, world_size - 1)
    return True


def _number(name: str, least: int, most: int) -> int:
    """A variable of the environment that is a number of this range."""
    value = os.environ[name]
    number = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else -1
    if not least <= number <= most:
        raise InputError(f"{name}: {value!r} is not allowed; expected {least} to {most}")
    return number


def _join(backend: str) -> None:
    """Meet the other processes."""
    try:
        place = dist.rendezvous("env://", timeout=timedelta(seconds=MEETING))
        store, rank, world_size = next(place)
        # The others wait while the main process computes scores of features, which can take long.
        hours = timedelta(hours=4)
        store.set_timeout(hours)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=hours
        )
    except (RuntimeError, ValueError) as error:
        address, port, rank = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
        raise Stopped(
            f"process {rank}: cannot meet the others at {address}, port {port} "
            f"({str(error).splitlines()[0]})",
            code=1,
        ) from None


def stop() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
