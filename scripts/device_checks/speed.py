"""Part `speed`: whole training steps of normalizers in turn, as ratios to the plain one.

In turn, so that a disturbance of the machine meets all of them; a ratio is the median over the
rounds of the ratios within a round.
"""

import statistics
from collections.abc import Iterator
from functools import partial

from convnorm.experiment.run.loop import take_step
from device_checks.clock import Timing, timed
from device_checks.part import Case, Finding, Setup
from device_checks.workloads import Config, comparisons, make_trainer


def cases(setup: Setup) -> Iterator[tuple[str, Case]]:
    """Every group of `comparisons`."""
    for group, configs in comparisons(setup).items():
        yield group, partial(in_turn, configs, setup)


def in_turn(configs: dict[str, Config], setup: Setup) -> Finding:
    """Medians of a step's time, and of its ratio to that of the first config."""
    warm_up, calls, rounds = (1, 1, 2) if setup.tiny else (4, 8, 5)
    trainers = {name: make_trainer(config, setup) for name, config in configs.items()}
    for trainer in trainers.values():
        for _ in range(warm_up):
            take_step(trainer)
    timings: dict[str, list[Timing]] = {name: [] for name in trainers}
    for turn in range(rounds):
        if turn > 0 and setup.seconds_left() < 0:
            break
        for name, trainer in trainers.items():
            timings[name].append(timed(partial(take_step, trainer), calls, setup))
    reference, *others = configs
    numbers = {}
    for name, found in timings.items():
        pairs = zip(found, timings[reference], strict=True)
        numbers[name] = {
            "ratio": statistics.median(own.device / plain.device for own, plain in pairs),
            "ms": statistics.median(timing.device for timing in found),
            "host_ms": statistics.median(timing.host for timing in found),
            "all_ms": [timing.device for timing in found],
        }
    ratios = ", ".join(f"{name} {numbers[name]['ratio']:.2f}" for name in others)
    plain = f"{reference} takes {numbers[reference]['ms']:.2f} ms on {setup.card}"
    return Finding(f"times {reference}: {ratios}; {plain}", {"reference": reference, **numbers})
