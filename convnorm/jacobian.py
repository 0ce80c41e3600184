"""How much a network stretches a small change of an image: the norm of its Jacobian there."""

import torch
from torch import nn

from convnorm.maps import in_evaluation

STEPS = 100
TOLERANCE = 1e-4  # relative change of the norms in a step, at which they are taken


def jacobian_norms(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the largest singular value of the Jacobian at each of (N, C, H, W) images: (N,).

    Of the outputs (N, ...) of a network in evaluation mode, where no image depends on another. By a
    power iteration on J^T J, from below: each value is at most the norm at its image, which is at
    most the network's Lipschitz constant. NaN where a value is not finite.
    """
    with in_evaluation(network), torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        outputs = network(x).reshape(len(x), -1)
        u = torch.zeros_like(outputs, requires_grad=True)
        # Linear in u: what it becomes by u, at v, is J v.
        (back,) = torch.autograd.grad(outputs, x, u, create_graph=True)
        random = torch.Generator(x.device).manual_seed(0)
        v = torch.empty_like(images).normal_(generator=random)
        norms = v.new_zeros(len(v))
        for _ in range(STEPS):
            v = v / _lengths(v).clamp(min=torch.finfo(v.dtype).tiny)
            (Jv,) = torch.autograd.grad(back, u, v, retain_graph=True)
            before, norms = norms, Jv.detach().norm(dim=1)
            if ((norms - before).abs() <= TOLERANCE * norms).all() or not norms.isfinite().all():
                break
            (v,) = torch.autograd.grad(outputs, x, Jv.detach(), retain_graph=True)
    return norms


def _lengths(v: torch.Tensor) -> torch.Tensor:
    return v.flatten(1).norm(dim=1)[:, None, None, None]
