"""Gradient normalization of a whole discriminator (Wu et al., ICCV 2021, arXiv 2109.02235)."""

from collections.abc import Callable

import torch
from torch import Tensor

from gan.networks.layers import Labelled

# Under the root of |grad f|^2: one of less than 1e-10 counts as nothing. Where f and its gradient
# are both 0, as of a discriminator that is dead, the published 0 / 0 is 0 here, and the gradient
# of the root, which is infinite there, is finite.
EPS = 1e-20


class GradientNormalized(Labelled):
    """A discriminator as the function f / (|grad f| + |f|), with the names of its own layers.

    Its logits lie in (-1, 1), a factor on f changes nothing, and where f is piecewise linear the
    norm of its gradient is at most 1. No layer may mix the images of a batch.
    """

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (N, C, H, W), labels: (N,) -> (N,); see `normalized`."""
        f = super().forward
        attached = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        return normalized(lambda images: f(images, labels), x, attached=attached)


def normalized(f: Callable[[Tensor], Tensor], x: Tensor, *, attached: bool) -> Tensor:
    """Return f(x) / (|grad f(x)| + |f(x)|) of each image, (N,), in float32 or wider.

    f: images (N, C, H, W) -> (N,), each of its own image alone.
    attached: keep the graph for what f has learned. It is also kept for x where x has one, so that
        a generator gets the gradient through the norm too.

    Gradients with respect to x are taken under no_grad as well. The norm and the division are in
    float32 under autocast.
    """
    follows_x = torch.is_grad_enabled() and x.requires_grad
    keep = attached or follows_x
    with torch.enable_grad():
        images = x if follows_x else x.detach().requires_grad_()
        logits = f(images)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=keep)
        wide = torch.promote_types(logits.dtype, torch.float32)
        logits, gradient = logits.to(wide), gradient.flatten(1).to(wide)
        norm = (gradient.square().sum(1) + EPS).sqrt()
        found = logits / (norm + logits.abs())
    return found if keep else found.detach()
