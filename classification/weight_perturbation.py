"""Adversarial weight perturbation: training at the weights nearby that make the loss large.

Wu, Xia & Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020 (arXiv
2004.05884; csdongxian/AWP). Each weight tensor w moves by v = gamma * |w| * g / |g|, with g the
gradient of the loss at w and Euclidean norms of the whole tensor. The gradient at w + v then
updates w (equation 12 there).

The authors take v from a step of SGD of a copy, the difference of the weights after and before;
its direction is that of g whatever the learning rate, so g itself is used here, which rounds less.
They also update w + v and take v away from the result: with weight decay, v is part of what decays
there, and w comes back rounded.

What moves are the parameters that the optimizer owns. Where a layer is a function of one (spectral
norm, weight standardization, ONI, ...) that is the raw one, before the function, as in the authors'
code, and gamma is relative to it. If the function ignores the scale of w, then g is orthogonal to
w: v is a rotation by arctan(gamma), which no change of the weight's size undoes. Where it does not,
a part of v may be along w and makes the layer louder. ConvNorm without the gradient through its
gain has a g that ignores how the gain answers: the part of v along w does nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from convnorm.experiment.run.distributed import Process

EPS = 1e-20  # beside |g|, as published: a gradient of zeros moves nothing


def perturbed_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The weights that move, as published: of more than one dimension, so no biases or scales.

    Weight norm keeps a direction and a length for each filter, in tensors of as many dimensions,
    and both move.
    """
    named = network.named_parameters()
    return [weight for name, weight in named if "weight" in name and weight.dim() > 1]


@contextmanager
def worst_weights(
    network: nn.Module, loss: Callable[[], torch.Tensor], gamma: float, process: Process
) -> Iterator[None]:
    """Context in which the weights of `network` are perturbed; they come back to the last bit.

    loss: runs the network in the mode that it is in and returns a scalar, which the perturbation
    raises: its gradients are averaged over the processes, so that all move alike. Running
    statistics and power iterations come back from this pass, as the authors' is one of a copy; what
    passes inside the context leave in them stays. gamma: of 0 or more; of 0, nothing is run at all.
    """
    if gamma == 0:
        yield
        return
    weights = perturbed_parameters(network)
    with _buffers_kept(network):
        gradients = torch.autograd.grad(loss(), weights, materialize_grads=True)
    process.average_(list(gradients))
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += gamma * weight.norm() / (gradient.norm() + EPS) * gradient
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Context after which the buffers hold what they held before."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
