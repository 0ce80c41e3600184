"""The records that runs, benchmarks and reports hand to each other."""

from dataclasses import dataclass
from typing import Literal

When = Literal["final", "selected"]


@dataclass(frozen=True)
class Measure:
    """A number that runs are compared by; `percent`: a share in [0, 1], shown in percent."""

    better: Literal["lower", "higher"]
    percent: bool = False


@dataclass(frozen=True)
class Cost:
    """What a run took.

    network: the one with the normalizer. parameters: how many it has. macs: multiply-adds of its
        forward pass, an image of the run's batch. seconds: of training, without scores and
        pictures. peak_memory: bytes, of the GPU's memory or, on a CPU, of the process; None where
        it was not recorded.
    """

    network: str
    parameters: int
    macs: int
    steps: int
    seconds: float
    peak_memory: int | None
