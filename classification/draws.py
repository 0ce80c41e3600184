"""Everything random in a training step, and its real images: a function of the step alone."""

from dataclasses import dataclass

import torch

from classification.config import ClassifierConfig
from classification.schedules import awp_at, learning_rate
from convnorm.experiment.run.averaging import decay_at
from convnorm.experiment.run.batches import Batches


@dataclass(frozen=True)
class Draws:
    """One process's part of a training step.

    images: (N, C, H, W) float32 in [0, 1], real ones, augmented.
    labels: (N,) int64, the classes that training sees.
    start: (N, C, H, W) float32, added to the images where the attack on them begins: uniform in
        [-eps, eps] for fast and pgd, normal with a standard deviation of 1e-3 for trades; None
        for the other adversaries, which need none.
    ema_decay: of the average over steps at this step, in [0, 1).
    awp: length of the weights' perturbation at this step, relative to them; 0 for none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    start: torch.Tensor | None
    learning_rate: float
    ema_decay: float
    awp: float


def draw_step(config: ClassifierConfig, batches: Batches, step: int) -> Draws:
    """Return the draws of step `step`, counted from 0; the same whatever was drawn before."""
    images, labels = batches(step)
    steps = config.train.epochs * batches.per_epoch
    return Draws(
        images.float() / 255,
        labels,
        _start(config, batches, step, images.shape[1:]),
        learning_rate(config.optim, step, steps, batches.per_epoch),
        decay_at(config.train.ema_decay, step),
        awp_at(config.adversary, step, batches.per_epoch),
    )


def _start(
    config: ClassifierConfig, batches: Batches, step: int, image_shape: torch.Size
) -> torch.Tensor | None:
    """The random start of the attack, drawn for the whole batch and cut into processes' parts."""
    size = (config.train.batch_size, *image_shape)
    key = (config.seed, "perturbation", step)
    match config.adversary.kind:
        case "fast" | "pgd":
            uniform = batches.process.random(torch.rand, size, *key)
            return config.adversary.eps / 255 * (2 * uniform - 1)
        case "trades":
            return 1e-3 * batches.process.random(torch.randn, size, *key)
    return None
