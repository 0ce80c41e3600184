"""How a part of the bench measures, and what becomes of its times."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from device_checks.part import Setup
from speed.clock import Run, Timing, in_turn

CACHE = 2**26  # bytes; the largest cache of an H100 holds 50 MB
MOST_INPUTS = 16


@dataclass(frozen=True)
class Bench:
    """Where a part measures, how often, and how much of it.

    tiny: as small as it goes, to test the bench and not the device.
    goals: only what the table of goals shows.
    batch_size: images at a time, of the parts that read it.
    rounds: of a comparison, at most. seconds: after which a comparison begins no further round,
        once it has enough.
    folder: for the images that the bench makes.
    """

    device: torch.device
    card: str
    tiny: bool
    goals: bool
    batch_size: int
    rounds: int
    seconds: float
    folder: Path

    @cached_property
    def setup(self) -> Setup:
        """What the workloads ask for."""
        return Setup(self.device, self.card, self.tiny, self.folder, math.inf)

    @property
    def on_gpu(self) -> bool:
        """Whether the device computes apart from the process that asks it to."""
        return self.device.type == "cuda"

    def in_turn(
        self, runs: Mapping[str, Run], *, slow: bool = False, calls: int = 8
    ) -> dict[str, list[Timing]]:
        """Time runs in turn.

        slow: a call takes seconds on a CPU. There the first of three rounds is the warm-up, as the
            median does not see it.
        calls: in a row on a GPU, of which a timing is the mean.
        """
        on_gpu = self.on_gpu and not self.tiny
        return in_turn(
            runs,
            self.device,
            rounds=min(self.rounds, 3) if slow and not on_gpu else self.rounds,
            calls=calls if on_gpu else 1,
            warm_up=min(calls, 4) if on_gpu else int(not slow),
            least=3 if slow else 2,
            until=time.monotonic() + self.seconds,
        )


@dataclass(frozen=True)
class Spread:
    """The median of n rounds, and the least and the most of them."""

    median: float
    least: float
    most: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def spread(values: Iterable[float]) -> Spread:
    """Return the spread of what was found in each round."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(above: Sequence[Timing], below: Sequence[Timing]) -> Spread:
    """Return the spread of the ratios of two runs' times on the device, each within a round."""
    return spread(a.device / b.device for a, b in zip(above, below, strict=True))


def compared(found: Mapping[str, Sequence[Timing]]) -> dict[str, Any]:
    """Return, ready for JSON, the times of runs and their ratios to those of the first."""
    reference = next(iter(found))
    runs = {
        name: {
            "ms": asdict(spread(timing.device for timing in times)),
            "host_ms": asdict(spread(timing.host for timing in times)),
            "ratio": asdict(ratio(times, found[reference])),
        }
        for name, times in found.items()
    }
    return {"reference": reference, "runs": runs}


def tell(group: str, comparison: Mapping[str, Any]) -> None:
    """Print a comparison, a line a run."""
    reference = comparison["reference"]
    for name, numbers in comparison["runs"].items():
        milliseconds, to_first = Spread(**numbers["ms"]), Spread(**numbers["ratio"])
        against = f", {to_first} times {reference}" if name != reference else ""
        print(f"{group}: {name}: {milliseconds.median:.1f} ms{against}", flush=True)


def inputs(make: Callable[[], Tensor], bench: Bench) -> list[Tensor]:
    """Return so many tensors of a kind that the device's cache does not hold them all.

    Whoever times a small layer takes another one in each call.
    """
    first = make()
    wanted = 2 if bench.tiny else math.ceil(CACHE / first.nbytes)
    return [first, *(make() for _ in range(min(max(wanted, 2), MOST_INPUTS) - 1))]
