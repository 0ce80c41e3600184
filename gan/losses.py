"""GAN losses and penalties, on logits of shape (N,)."""

import torch
import torch.nn.functional as F
from torch import nn

Losses = tuple[torch.Tensor, torch.Tensor]


def hinge(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Lim & Ye (2017), Miyato et al. (2018), equation 16."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def non_saturating(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Goodfellow et al. (2014): cross entropy with real = 1, fake = 0."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def least_squares(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Mao et al. (2017) with targets 1 and 0."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def wasserstein(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Arjovsky et al. (2017): the critic's difference, to be minimized."""
    return fake.mean() - real.mean()


DISCRIMINATOR_LOSSES = {
    "hinge": hinge,
    "non_saturating": non_saturating,
    "least_squares": least_squares,
    "wasserstein": wasserstein,
}

GENERATOR_LOSSES = {
    "hinge": lambda fake: -fake.mean(),
    "non_saturating": lambda fake: F.softplus(-fake).mean(),
    "least_squares": lambda fake: (fake - 1).square().mean() / 2,
    "wasserstein": lambda fake: -fake.mean(),
}


def _input_gradient(discriminator: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """d D(x) / d x for each image, flattened to (N, C * H * W), differentiable once more."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.flatten(1).float()


def gradient_penalty(
    discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor, mix: torch.Tensor
) -> torch.Tensor:
    """Mean of (|grad D(x)| - 1)^2 at x = real + mix * (fake - real) (Gulrajani et al., 2017).

    mix: (N, 1, 1, 1) in [0, 1).
    """
    gradient = _input_gradient(discriminator, real + mix * (fake - real))
    # The norm's own gradient is not finite at zero, where a dead discriminator would be.
    return ((gradient.square().sum(1) + 1e-12).sqrt() - 1).square().mean()


def r1(discriminator: nn.Module, real: torch.Tensor) -> torch.Tensor:
    """Mean of |grad D(x)|^2 / 2 on real images (Mescheder et al., 2018)."""
    return _input_gradient(discriminator, real).square().sum(1).mean() / 2
