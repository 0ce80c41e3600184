"""Part `steps`: what an update waits for, how many kernels a step launches, and steps as graphs.

The process should run ahead of the GPU, so an update must never ask for what the GPU has not
computed yet. `own` does: its eigenvalues are computed in part by the process.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from convnorm.experiment.run.loop import Trainer, take_step
from device_checks import captured
from device_checks.part import Case, Finding, Setup, Skip
from device_checks.workloads import Config, comparisons, make_trainer

CLONE = Path(__file__).parents[2]
WARM_UP = 2  # steps: the first copies tables to the device and waits for that
TOP = 12  # kernels that take longest, in the record


def cases(setup: Setup) -> Iterator[tuple[str, Case]]:
    """Every config of `comparisons`, and some as CUDA graphs."""
    for name, config in captured.configs(setup).items():
        yield f"graph: {name}", partial(captured.compared, config, setup)
    for group, configs in comparisons(setup).items():
        for name, config in configs.items():
            yield f"{group}: {name}", partial(watched, config, setup)


def watched(config: Config, setup: Setup) -> Finding:
    """Places of an update that wait, and the kernels, copies and fills of a step."""
    if not setup.on_gpu:
        raise Skip("a CPU computes as it is asked: nothing waits and nothing is launched")
    trainer = make_trainer(config, setup)
    for _ in range(WARM_UP):
        take_step(trainer)
    waits = _waits(trainer)
    launched, milliseconds = _launched(trainer)
    failures = []
    if waits and not config.normalizer.definition.waits:
        failures.append(f"an update waits for the device in {', '.join(waits)}")
    numbers = {
        "waits": waits,
        "kernels": launched.total(),
        "kernel_ms": milliseconds.total(),
        "longest": [
            {"kernel": name, "launches": launched[name], "ms": time}
            for name, time in milliseconds.most_common(TOP)
        ],
    }
    line = (
        f"{launched.total()} kernels that take {milliseconds.total():.2f} ms on {setup.card}, "
        f"{len(waits)} places wait"
    )
    return Finding(line, numbers, tuple(failures))


def _waits(trainer: Trainer) -> list[str]:
    """FILE:LINE of all that waits for the device in an update; draws may."""
    draws = trainer.draw(trainer.state.step)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.update(draws)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    trainer.state.step += 1
    # PyTorch also warns once that this mode is a prototype.
    waiting = [one for one in caught if "called a synchronizing" in str(one.message)]
    return sorted({f"{os.path.relpath(one.filename, CLONE)}:{one.lineno}" for one in waiting})


def _launched(trainer: Trainer) -> tuple[Counter[str], Counter[str]]:
    """Of one step: name of a kernel -> launches, and -> milliseconds on the device."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        take_step(trainer)
        torch.cuda.synchronize()
    launched, milliseconds = Counter(), Counter()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            launched[event.name] += 1
            milliseconds[event.name] += event.device_time / 1e3
    return launched, milliseconds
