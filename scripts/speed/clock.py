"""Times of work that a device may do while the process goes on, taken in turn."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Run = Callable[[], object]


class Timing(NamedTuple):
    """Milliseconds of one call: until the device is done, and until the process has asked it."""

    device: float
    host: float


def timed(run: Run, calls: int, device: torch.device) -> Timing:
    """The mean over `calls` calls in a row; on a CPU, which computes as it is asked, once."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            run()
        elapsed = (time.perf_counter() - start) * 1e3 / calls
        return Timing(elapsed, elapsed)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    host = (time.perf_counter() - start) * 1e3 / calls
    end.synchronize()
    return Timing(begin.elapsed_time(end) / calls, host)


def in_turn(
    runs: Mapping[str, Run],
    device: torch.device,
    *,
    rounds: int,
    calls: int = 1,
    warm_up: int = 1,
    least: int = 1,
    until: float = math.inf,
) -> dict[str, list[Timing]]:
    """Time all runs in every round, so that a disturbance of the machine meets all of them.

    calls: in a row, of which a timing is the mean. warm_up: calls of each that are not timed.
    After `least` rounds none begins later than the `time.monotonic()` of `until`.
    """
    for run in runs.values():
        for _ in range(warm_up):
            run()
    found: dict[str, list[Timing]] = {name: [] for name in runs}
    for turn in range(rounds):
        if turn >= least and time.monotonic() > until:
            break
        for name, run in runs.items():
            found[name].append(timed(run, calls, device))
    return found


def median_milliseconds(run: Run, calls: int, device: torch.device) -> float:
    """The median of three timings on the device, after one call that is not timed."""
    found = in_turn({"run": run}, device, rounds=3, calls=calls)
    return statistics.median(timing.device for timing in found["run"])


def replayed(run: Run, device: torch.device) -> Run:
    """`run` as a CUDA graph, which leaves out what the process does; on a CPU `run` itself."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # plans and tables are made before the capture, not in it
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
