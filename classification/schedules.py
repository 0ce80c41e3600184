"""Learning rates, and lengths of the weights' perturbation, as functions of the step."""

import math

from classification.adversary_config import AdversaryConfig
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


def awp_at(adversary: AdversaryConfig, step: int, steps_per_epoch: int) -> float:
    """Return how far the weights move at step `step`, relative to them: 0 or `adversary.awp`."""
    perturbs = adversary.kind in ("pgd", "trades")
    return adversary.awp if perturbs and step >= adversary.awp_warmup * steps_per_epoch else 0.0
