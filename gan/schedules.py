"""What changes over the steps of a GAN without being random, as functions of the step."""

import math
from dataclasses import dataclass

from gan.config import GanConfig


@dataclass(frozen=True)
class Rates:
    """The learning rates of both networks and the beta2 of their optimizers."""

    generator: float
    discriminator: float
    beta2: float


def rates(config: GanConfig, step: int) -> Rates:
    """Those of step `step`, counted from 0."""
    optim = config.optim
    factor = _scheduled(config, step, 1.0, optim.final_lr_factor)
    lr_d = optim.lr if optim.lr_d is None else optim.lr_d
    last_beta2 = optim.beta2 if optim.final_beta2 is None else optim.final_beta2
    beta2 = _scheduled(config, step, optim.beta2, last_beta2)
    return Rates(optim.lr * factor, lr_d * factor, beta2)


def penalty_factor(config: GanConfig, step: int) -> float:
    """What the weights of penalties that decay are multiplied by at step `step`, from 0 on."""
    return _scheduled(config, step, 1.0, config.loss.final_penalty_factor)


def _scheduled(config: GanConfig, step: int, first: float, last: float) -> float:
    """The value at a step of what goes from `first`, at step 0, to `last`, from decay_steps on.

    Linear decay to 0 reaches it after the last step, which still learns.
    """
    optim = config.optim
    if optim.decay == "none" or first == last:
        return first
    done = min(1.0, step / (config.steps if optim.decay_steps is None else optim.decay_steps))
    left = 1 - done if optim.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return first * left + last * (1 - left)
