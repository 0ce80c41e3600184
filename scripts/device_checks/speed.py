"""Part `speed`: whole training steps of normalizers in turn, as ratios to the plain one.

In turn, so that a disturbance of the machine meets all of them; a ratio is the median over the
rounds of the ratios within a round.
"""

import statistics
from collections.abc import Iterator
from functools import partial

from convnorm.experiment.run.loop import take_step
from device_checks.part import Case, Finding, Setup
from device_checks.workloads import Config, comparisons, make_trainer
from speed import clock


def cases(setup: Setup) -> Iterator[tuple[str, Case]]:
    """Every group of `comparisons`."""
    for group, configs in comparisons(setup).items():
        yield group, partial(in_turn, configs, setup)


def in_turn(configs: dict[str, Config], setup: Setup) -> Finding:
    """Medians of a step's time, and of its ratio to that of the first config."""
    warm_up, calls, rounds = (1, 1, 2) if setup.tiny else (4, 8, 5)
    trainers = {name: make_trainer(config, setup) for name, config in configs.items()}
    timings = clock.in_turn(
        {name: partial(take_step, trainer) for name, trainer in trainers.items()},
        setup.device,
        rounds=rounds,
        calls=calls,
        warm_up=warm_up,
        until=setup.deadline,
    )
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
