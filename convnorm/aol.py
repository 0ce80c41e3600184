"""Almost-orthogonal layers: a weight whose layer has an operator norm of at most 1."""

from collections.abc import Iterator
from math import gcd

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6  # as published, inside the root; it only makes the layer smaller

Pair = tuple[int, int]


class AOL(nn.Module):
    """Almost-orthogonal parametrization (Prach & Lampert, ECCV 2022, arXiv 2208.03160).

    A matrix P becomes P diag(d) with d_j = (sum_i |P^T P|_ij + eps)^(-1/2): its columns, which
    belong to inputs, are rescaled until the matrix has an operator norm of at most 1. Of a
    convolution the columns are pixels of the input. Their products are the correlations of the
    kernel with itself, equal for all pixels of a channel, so that there is one d for each input
    channel. The bound holds for every dilation and size of map with zeros around it. It holds on a
    ring that the stride divides, with a padding of dilation * (k - 1) at most in all: more of it
    repeats pixels, as "reflect" and "replicate" do. It is loose on random kernels, whose norm
    becomes about 0.4; those of an isometry stay as they are, up to eps.

    The published layer has a stride of 1, and its code refuses others. Here a stride s is taken
    apart: the strided layer is one of stride 1 on a map of I * s * s channels, one for each phase
    of each channel (pixel_unshuffle), and has a d for each of them. The bound is tighter than that
    of the kernel without its stride, which also holds. In taps the stride is s / gcd(s, dilation).

    The weight is (O, I / groups, k_h, k_w), or (O, I) of a linear layer; the result has its shape.
    Kernels of different groups see different inputs and are rescaled by themselves.

    stride, dilation, groups: of the convolution.
    """

    def __init__(self, stride: Pair = (1, 1), dilation: Pair = (1, 1), groups: int = 1):
        super().__init__()
        self.step = tuple(s // gcd(s, d) for s, d in zip(stride, dilation, strict=True))
        self.groups = groups

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        kernel = weight if weight.ndim == 4 else weight[..., None, None]
        K = self._phases(kernel)
        K = K * (_products(K) + EPS).rsqrt()[:, None, :, :, None, None]
        return self._kernel(K, kernel.shape).reshape(weight.shape)

    def _phases(self, kernel: torch.Tensor) -> torch.Tensor:
        """(O, I / G, k_h, k_w) -> (G, O / G, I / G, phases, blocks_h, blocks_w)."""
        (height, width), (s, t) = kernel.shape[2:], self.step
        K = F.pad(kernel, (0, -width % t, 0, -height % s))
        K = K.unflatten(3, (-1, t)).unflatten(2, (-1, s)).unflatten(0, (self.groups, -1))
        return K.permute(0, 1, 2, 4, 6, 3, 5).flatten(3, 4)

    def _kernel(self, K: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Put a kernel of this shape together again from its phases."""
        K = K.unflatten(3, self.step).permute(0, 1, 2, 5, 3, 6, 4)
        return K.flatten(5, 6).flatten(3, 4).flatten(0, 1)[..., : shape[2], : shape[3]]


def _products(K: torch.Tensor) -> torch.Tensor:
    """Sum over all inputs j and shifts of |correlation of i and j|: (G, I / G, phases)."""
    inputs = K.shape[2:4]
    K = K.flatten(2, 3).transpose(1, 2)  # (G, inputs, O / G, blocks_h, blocks_w)
    if K[0, 0].numel() == 1:
        # Of a row, such as the head of a discriminator: |p_i| |p|_1, without the matrix.
        row = K.flatten(1).abs()
        return (row * row.sum(1, keepdim=True)).unflatten(1, inputs)
    total = 0
    for one, other, opposite in _shifts(K):
        products = (one.flatten(2) @ other.flatten(2).mT).abs()
        total = total + products.sum(2)
        if opposite:  # the same products, transposed
            total = total + products.sum(1)
    return total.unflatten(1, inputs)


def _shifts(K: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
    """Where a kernel (..., h, w) meets itself shifted: both parts, for half of all shifts.

    With whether the opposite shift is left out, which it is but for none at all.
    """
    height, width = K.shape[-2:]
    for y in range(height):
        for x in range(-(width - 1) if y else 0, width):
            one = K[..., y:, max(x, 0) : width + min(x, 0)]
            yield one, K[..., : height - y, max(-x, 0) : width + min(-x, 0)], (y, x) != (0, 0)
