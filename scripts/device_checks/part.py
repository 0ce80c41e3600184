"""What a part of the check is: named cases, each of which finds something out about the device."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Setup:
    """Where the check runs, and how large it is.

    card: the name of the GPU or the processor, without which no time means anything.
    tiny: as small as it goes, to test the check and not the device.
    folder: for the images and the runs that the check makes.
    deadline: the `time.monotonic()` at which the time of the part ends.
    """

    device: torch.device
    card: str
    tiny: bool
    folder: Path
    deadline: float

    @property
    def on_gpu(self) -> bool:
        """Whether the device computes apart from the process that asks it to."""
        return self.device.type == "cuda"

    @property
    def calls(self) -> int:
        """In a row, of which the timing of something short is the mean."""
        return 1 if self.tiny else 10

    def seconds_left(self) -> float:
        """Of the part's time; negative when it is used up."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Finding:
    """What a case found: a line to read, JSON-able numbers to keep, and all that is wrong."""

    line: str
    numbers: dict[str, Any]
    failures: tuple[str, ...] = ()


class Skip(Exception):
    """A case cannot be checked; the message says why."""


Case = Callable[[], Finding]
# A part: its cases by name, in the order in which they are carried out. Work belongs into the
# cases: naming them takes no time and cannot fail.
Part = Callable[[Setup], Iterator[tuple[str, Case]]]
