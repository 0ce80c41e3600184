"""Times of work that a device does while the process goes on."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from device_checks.part import Setup

Run = Callable[[], object]


class Timing(NamedTuple):
    """Milliseconds of one call: until the device is done, and until the process has asked it."""

    device: float
    host: float


def timed(run: Run, calls: int, setup: Setup) -> Timing:
    """The mean over `calls` calls in a row; on a CPU, which computes as it is asked, once."""
    if not setup.on_gpu:
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


def median_milliseconds(run: Run, setup: Setup) -> float:
    """The median of three timings on the device, after one call that is not timed."""
    run()
    calls = 1 if setup.tiny else 10
    return statistics.median(timed(run, calls, setup).device for _ in range(3))


def replayed(run: Run, setup: Setup) -> Run:
    """`run` as a CUDA graph, which leaves out what the process does; on a CPU `run` itself."""
    if not setup.on_gpu:
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
