"""An update as a CUDA graph against the same update run eagerly: equal bits, and how much faster.

Adam of a captured update rounds otherwise than that of a plain one. So bits are compared with the
captured one's own update, launch by launch, and times with the plain one.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from convnorm.experiment.run.capture import WARM_UP, placed
from convnorm.experiment.run.loop import take_step
from device_checks.part import Finding, Setup, Skip
from device_checks.runs import SHOWN, differing
from device_checks.workloads import gan_config, make_trainer
from gan.config import GanConfig
from gan.trainer import Trainer
from speed.clock import timed


def configs(setup: Setup) -> dict[str, GanConfig]:
    """Name -> a config without capture, of networks that wait for their launches."""
    averaged = partial(gan_config, setup, ema_decay=0.999)
    found = {"none": averaged("none"), "convnorm": averaged("convnorm")}
    if setup.tiny:
        return found
    return {
        **found,
        "spectral": averaged("spectral"),
        "convnorm native": averaged("convnorm", grid="native"),
        "convnorm, bfloat16": averaged("convnorm", precision="bfloat16"),
        "sngan_resnet, convnorm": averaged("convnorm", arch="sngan_resnet"),
        "spectral_convnorm": averaged("spectral_convnorm"),
    }


def compared(config: GanConfig, setup: Setup) -> Finding:
    """What differs after some steps, and times of a step by graph and without."""
    if not setup.on_gpu:
        raise Skip("a CPU has no CUDA graphs")
    captured = replace(config, train=replace(config.train, capture="graph"))
    steps = WARM_UP + 5
    with _deterministic():
        graph, eager = (_trained(captured, setup, steps, launched) for launched in (False, True))
        different = differing(graph.state.state_dict(), eager.state.state_dict())
    del graph, eager
    trainers = [_trained(each, setup, WARM_UP + 1, False) for each in (captured, config)]
    calls, rounds = (1, 2) if setup.tiny else (8, 5)
    pairs = [
        [timed(partial(take_step, trainer), calls, setup.device) for trainer in trainers]
        for _ in range(rounds)
    ]
    ratio = statistics.median(own.device / plain.device for own, plain in pairs)
    own, plain = (statistics.median(pair[side].device for pair in pairs) for side in (0, 1))
    numbers = {"steps": steps, "different": different, "ratio": ratio, "ms": own, "plain_ms": plain}
    line = f"by graph {ratio:.2f} of the plain time, {own:.2f} of {plain:.2f} ms on {setup.card}"
    failures = []
    if different:
        failures.append(f"{len(different)} entries differ from eager: {different[:SHOWN]}")
    return Finding(line, numbers, tuple(failures))


def _trained(config: GanConfig, setup: Setup, steps: int, launched: bool) -> Trainer:
    """A trainer after some steps; launched: with the update that is captured, but eagerly."""
    trainer = make_trainer(config, setup)
    if launched:
        trainer.update = lambda draws: Trainer.update(trainer, placed(draws, setup.device))
    torch.manual_seed(0)  # for layers that draw
    for _ in range(steps):
        take_step(trainer)
    return trainer


@contextmanager
def _deterministic() -> Iterator[None]:
    """Context in which sums have an order, as far as PyTorch has such algorithms."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = before[1]
