"""Learning rates as functions of the step."""

import math

from classification.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step `step`, counted from 0, of a run of `steps` steps."""
    done = step / steps
    match optim.schedule:
        case "constant":
            return optim.lr
        case "multistep":
            drops = sum(step >= epoch * steps_per_epoch for epoch in optim.milestones)
            return optim.lr * optim.gamma**drops
        case "onecycle":
            return optim.lr * min(done / optim.warmup, (1 - done) / (1 - optim.warmup))
        case "cosine":
            return optim.lr * (1 + math.cos(math.pi * done)) / 2
