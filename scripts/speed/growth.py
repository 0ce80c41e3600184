"""Part `growth`: time and memory as batch, map, channels and processes double."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from queue import SimpleQueue
from typing import Any

import torch

from convnorm.experiment.run.cost import peak_memory
from convnorm.experiment.run.loop import take_step
from device_checks.workloads import make_trainer
from speed import gan
from speed.bench import Bench, compared, inputs, spread, tell
from speed.clock import timed
from speed.layer import training, variants
from speed.memory import peak_bytes

VARIANTS = ("conv_bn", "full", "native")
BASE = {"batch": 16, "map": 16, "channels": 64}
SWEEPS = {"batch": (8, 16, 32, 64), "map": (8, 16, 32, 64), "channels": (32, 64, 128, 256)}
MIB = 2**20
WAIT = 300.0  # seconds in which all processes come to a round


def measure(bench: Bench) -> dict[str, Any]:
    """Single layers in each sweep, then processes side by side."""
    found: dict[str, Any] = {}
    for name, values in {} if bench.goals else SWEEPS.items():
        values = values[:2] if bench.tiny else values
        found[name] = {str(value): _layer(name, value, bench) for value in values}
    return {**found, "processes": side_by_side(bench)}


def _layer(name: str, value: int, bench: Bench) -> dict[str, Any]:
    """A training step of a 3x3 layer whose size is `BASE`, but for one number."""
    base = {"batch": 2, "map": 8, "channels": 4} if bench.tiny else BASE
    size = {**base, name: value}
    channels, pixels = size["channels"], size["map"]
    made = variants(channels, channels, 3, 1, 1)
    shape = (size["batch"], channels, pixels, pixels)
    maps = inputs(lambda: torch.randn(shape, device=bench.device).requires_grad_(), bench)
    runs = {each: training(made[each].to(bench.device), maps) for each in VARIANTS}
    comparison = compared(bench.in_turn(runs))
    tell(f"{name} {value}", comparison)
    memory = {each: peak_bytes(run, bench.device) for each, run in runs.items()}
    line = ", ".join(f"{each} {most / MIB:.1f}" for each, most in memory.items())
    print(f"{name} {value}: at most {line} MiB", flush=True)
    return {**comparison, "peak_bytes": memory}


@dataclass(frozen=True)
class Finding:
    """What a process found: milliseconds of an update in each round, and its peak memory."""

    milliseconds: tuple[float, ...]
    peak_bytes: int


def numbers_of_processes(bench: Bench) -> Iterator[int]:
    """1, 2, 4, ... up to 8 on a GPU, and to the number of threads on a CPU."""
    number = 1
    while number <= (8 if bench.on_gpu else max(2, torch.get_num_threads())):
        yield number
        number *= 2


def side_by_side(bench: Bench) -> dict[str, Any]:
    """Updates a second of processes that each train a GAN, all together, and to one process.

    The threads of a CPU are divided among them.
    """
    found: dict[str, Any] = {}
    alone: list[float] = []
    for number in numbers_of_processes(bench):
        each = _processes(number, bench)
        slowest = [max(times) for times in zip(*(one.milliseconds for one in each), strict=True)]
        rates = [1e3 * number / milliseconds for milliseconds in slowest]
        alone = alone or rates
        gain = spread(rate / single for rate, single in zip(rates, alone, strict=True))
        memory = sum(one.peak_bytes for one in each)
        found[str(number)] = {
            "updates_per_second": asdict(spread(rates)),
            "ratio": asdict(gain),
            "peak_bytes": memory,
        }
        print(
            f"processes {number}: {spread(rates)} updates/s, {gain} times one process, at most "
            f"{memory / MIB:.0f} MiB",
            flush=True,
        )
    return found


def _processes(number: int, bench: Bench) -> list[Finding]:
    # A process that has computed, on a GPU or with threads, cannot be forked; its server can.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["speed.growth"])
    barrier, answers = context.Barrier(number), context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // number)
    processes = [
        context.Process(target=_train, args=(bench, threads, barrier, answers))
        for _ in range(number)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"growth: one of {number} processes failed, see its message above")
    return [answers.get() for _ in processes]


def _train(bench: Bench, threads: int, barrier: Barrier, answers: "SimpleQueue[Finding]") -> None:
    """Train beside others, all of which begin each round together."""
    torch.set_num_threads(threads)
    config = gan.config_of("convnorm", "sngan_cnn", 64 if bench.on_gpu else 8, bench)
    step = partial(take_step, make_trainer(config, bench.setup))
    step()
    milliseconds = []
    for _ in range(min(bench.rounds, 3)):
        barrier.wait(WAIT)
        calls = 8 if bench.on_gpu and not bench.tiny else 1
        milliseconds.append(timed(step, calls, bench.device).device)
    answers.put(Finding(tuple(milliseconds), peak_memory(bench.device)))
