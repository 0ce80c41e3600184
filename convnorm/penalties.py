"""Penalties on weights: how far the convolutions of a network are from orthogonal."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.scale import unscaled_weight


def ocnn(conv: nn.Conv2d, as_published: bool = False) -> torch.Tensor:
    """The penalty of orthogonal convolutions (Wang et al., CVPR 2020, arXiv 1911.12207): a scalar.

    |Conv(K, K) - I|_F^2: the products of all kernels with all kernels, shifted by all multiples
    of the stride, against 1 for a kernel with itself unshifted and 0 for the rest. With A the
    matrix of the layer on a circular map that is wide enough, it is |A A^T - I|_F^2 divided by
    the number of output positions; for any stride, dilation, kernel and groups.

    It is 0 if and only if the rows of A are orthonormal. With more outputs than inputs they
    cannot be, and the least value is O - I * s_h * s_w at orthonormal columns, if those are
    possible: |A A^T - I|_F^2 and |A^T A - I|_F^2 differ by a constant (their lemma 1), so this
    form has the gradient of both.

    as_published: the value in the published code. A norm, not its square; the padding is 1, so
    shifts beyond 1 are left out and with a stride of 2 the kernel unshifted too, whose 1 is
    expected at another shift; 1 x 1 kernels are compared with orthogonal matrices.

    K is without the constant factor of a Normalizer's `scale`: it is K that has to be orthogonal.
    """
    with torch.autocast(conv.weight.device.type, enabled=False):
        return _published(conv) if as_published else _squared_distance(conv)


def orthogonality(network: nn.Module, as_published: bool = False) -> torch.Tensor:
    """The sum of `ocnn` over every nn.Conv2d of a network: a scalar.

    The published code reaches the first convolution of each residual block and the shortcuts, by
    their names in its own ResNet; here `as_published` changes the value alone.
    """
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return sum((ocnn(conv, as_published) for conv in convs), torch.zeros(()))


def _squared_distance(conv: nn.Conv2d) -> torch.Tensor:
    # Kernels of different groups see different inputs: products within a group only.
    K = unscaled_weight(conv).unflatten(0, (conv.groups, -1))  # (G, O / G, I / G, k_h, k_w)
    height, width = conv.kernel_size
    # Taps d apart meet at shifts that d divides: in units of taps the stride is this.
    step_y, step_x = (s // math.gcd(s, d) for s, d in zip(conv.stride, conv.dilation, strict=True))
    total = torch.zeros((), dtype=K.dtype, device=K.device)
    for y in range(0, height, step_y):
        for x in range(-((width - 1) // step_x) * step_x, width, step_x):
            if y == 0 and x < 0:
                continue  # the opposite of a shift has the same products, transposed
            one = K[..., y:, max(x, 0) : width + min(x, 0)]
            other = K[..., : height - y, max(-x, 0) : width + min(-x, 0)]
            products = one.flatten(2) @ other.flatten(2).mT  # (G, O / G, O / G)
            if y == x == 0:
                total = total + (products - _identity_like(products)).square().sum()
            else:
                total = total + 2 * products.square().sum()
    return total


def _published(conv: nn.Conv2d) -> torch.Tensor:
    K = unscaled_weight(conv)
    if K.shape[2:] == (1, 1):
        matrix = K.flatten(1)
        gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
        return (gram - _identity_like(gram)).norm()
    products = F.conv2d(K, K, stride=conv.stride, padding=1)
    target = torch.zeros_like(products)
    row, column = (size // 2 for size in products.shape[2:])
    target[:, :, row, column] = _identity_like(target[:, :, 0, 0])
    return (products - target).norm()


def _identity_like(matrix: torch.Tensor) -> torch.Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
