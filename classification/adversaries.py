"""Perturbations of training images, and the losses of adversarial training.

Everywhere x: (N, C, H, W) in [0, 1], and |x_adv - x| <= eps in every value (l_inf), x_adv in
[0, 1] too.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from classification.attacks import attacked, project

# The published length of a step as a share of eps, by kind of adversary.
STEP_SIZES = {
    "free": 1.0,  # Shafahi et al., 2019
    "fast": 1.25,  # Wong et al., 2020: 10/255 for 8/255
    "pgd": 0.25,  # Rice et al., 2020: 2/255 for 8/255
    "trades": 0.007 / 0.031,  # Zhang et al., 2019
}


def perturbed(
    network: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    start: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """Return x_adv after `steps` steps up `loss`, a function of the logits, from x + start.

    The network is in evaluation mode meanwhile and left as it was found: attacked in training
    mode, the batch statistics of perturbed images would become its own (TRADES does the same;
    Pang et al., "Bag of Tricks for Adversarial Training", 2021, find it better for PGD too). The
    last point counts, fooled or not, as in the papers.
    """
    with attacked(network):
        x_adv = project(x + start, x, "linf", eps)
        for _ in range(steps):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(network(x_adv)), x_adv)
            x_adv = project(x_adv.detach() + step_size * gradient.sign(), x, "linf", eps)
    return x_adv


def cross_entropy_of(labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loss that FGSM and PGD climb: summed, so that no image's gradient knows of the others."""
    return lambda logits: F.cross_entropy(logits.float(), labels, reduction="sum")


def divergence(logits: torch.Tensor, clean_logits: torch.Tensor) -> torch.Tensor:
    """Sum over images of KL(softmax(clean_logits) || softmax(logits)) (Zhang et al., 2019)."""
    return F.kl_div(
        logits.float().log_softmax(1),
        clean_logits.float().log_softmax(1),
        reduction="sum",
        log_target=True,
    )


def next_perturbation(
    perturbation: torch.Tensor, gradient: torch.Tensor, *, eps: float, step_size: float
) -> torch.Tensor:
    """One step of Free's perturbation, which is clipped to the ball alone.

    Shafahi et al., "Adversarial Training for Free!", 2019, algorithm 1. It belongs to the place
    in the minibatch and not to an image, so the image's range does not clip it.
    """
    return (perturbation + step_size * gradient.sign()).clamp(-eps, eps)
