"""How adversarial training perturbs its images, and the losses that it climbs.

Everywhere x and x_adv: (N, C, H, W) in [0, 1], and |x_adv - x| <= eps in every value (l_inf).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from classification.adversary_config import AdversaryConfig
from classification.attacks import frozen, project

# The published length of a step in units of eps, by kind of adversary.
STEP_SIZES = {
    "free": 1.0,  # Shafahi et al., 2019
    "fast": 1.25,  # Wong et al., 2020: 10/255 for 8/255
    "pgd": 0.25,  # Rice et al., 2020: 2/255 for 8/255
    "trades": 0.007 / 0.031,  # Zhang et al., 2019
}


def step_size_of(adversary: AdversaryConfig) -> float:
    """The length of a step for pixels in [0, 1]; the published one where the config has none.

    0 for `standard`, which takes no step.
    """
    if adversary.step_size is None:
        return adversary.eps / 255 * STEP_SIZES.get(adversary.kind, 0)
    return adversary.step_size / 255


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
    """Return x_adv after `steps` steps up `loss`, from x + start, in the ball and in [0, 1].

    The network is in evaluation mode meanwhile, and is left as it was found. In training mode, its
    running statistics would take in those of the perturbed images (TRADES uses evaluation mode
    too; Pang et al., "Bag of Tricks for Adversarial Training", 2021, find it better for PGD).
    """
    with frozen(network):
        x_adv = project(x + start, x, "linf", eps)
        return climbed(network, loss, x, x_adv, eps=eps, step_size=step_size, steps=steps)


def climbed(
    network: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    x_adv: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """Return where `steps` steps up `loss`, a function of the logits, lead from x_adv.

    x_adv is taken as it is, in the ball or not; the point after each step lies in the ball and in
    [0, 1]. The network is used in the mode that it is in. The last point is returned, whether it
    fools the network or not, as in the papers.
    """
    for _ in range(steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(network(x_adv)), x_adv)
        x_adv = project(x_adv.detach() + step_size * gradient.sign(), x, "linf", eps)
    return x_adv


def cross_entropy_of(labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the loss that FGSM and PGD climb, a function of the logits.

    It is summed over images, so that no image's gradient depends on how many there are.
    """
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
    """Return Free's perturbation after one step, clipped to [-eps, eps].

    Shafahi et al., "Adversarial Training for Free!", 2019, algorithm 1. The perturbation belongs
    to a place in the minibatch and not to an image, so it is not clipped to an image's range.
    """
    return (perturbation + step_size * gradient.sign()).clamp(-eps, eps)
