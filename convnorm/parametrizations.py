"""Weights with orthonormal or unit rows, as modules for torch.nn.utils.parametrize.

A weight (O, I / G, k_h, k_w) of a convolution with G groups, or (O, I) of a linear layer, is read
as G matrices (O / G, I / G * k_h * k_w), one after another: rows of different groups see
different inputs, so they are orthogonal whatever they are. What holds for the matrix does not
hold for the convolution: with a matrix of norm 1 its norm lies between 1 and sqrt(k_h * k_w).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.fixed import computed_once, computed_once_a_step
from convnorm.precision import in_float64, outside_autocast, products_are_rounded
from convnorm.square_root import SquareRoot

WARM_UP = 15  # power iterations before the first use, as in torch's spectral_norm


class UnitRows(nn.Module):
    """Every row of the reshaped weight (O, I * k_h * k_w) has norm 1."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return F.normalize(weight.flatten(1), dim=1).view_as(weight)


class StandardizedRows(nn.Module):
    """Every row of the reshaped weight (O, I * k_h * k_w) has mean 0 and standard deviation 1.

    Weight standardization (Qiao et al., 2019, arXiv 1903.10520), with the published code's
    standard deviation: over n - 1 of the n numbers of a row, and 1e-5 added to it. So a row has
    norm sqrt(n - 1), and a layer multiplies independent inputs of mean 0 by about sqrt(n): 5 for
    3x3 kernels of 3 channels, 48 for those of 256. It is meant to stand before a normalizer of the
    map, which takes that gain away. A row of one number has no deviation and stays as it is.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        rows = weight.flatten(1)
        if rows.shape[1] == 1:
            return weight
        deviation = rows.std(dim=1, keepdim=True) + 1e-5
        return (centred(rows, 1) / deviation).view_as(weight)


class LargestSingularValue(nn.Module):
    """Of a matrix that changes little from call to call, by a power iteration.

    Each call in training does one iteration, in evaluation none. Gradients flow through the
    matrix, with the singular vectors constant.
    """

    def __init__(self, matrix: torch.Tensor):
        super().__init__()
        u = torch.randn(len(matrix), dtype=matrix.dtype, device=matrix.device)
        self.register_buffer("u", F.normalize(u, dim=0))  # the left one
        for _ in range(WARM_UP):
            self._iterate(matrix)

    @torch.no_grad()
    def _iterate(self, matrix: torch.Tensor) -> None:
        v = F.normalize(torch.mv(matrix.mT, self.u), dim=0)
        self.u.copy_(F.normalize(torch.mv(matrix, v), dim=0))

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._iterate(matrix)
        # A copy: the next call moves u, and a backward pass may still need it as it is.
        return torch.mv(matrix.mT, self.u.clone()).norm()


class Bidirectional(nn.Module):
    """The weight of a convolution over the mean of the norms of its two reshapings.

    Bidirectional spectral normalization (Lin, Sekar & Fanti, NeurIPS 2021, arXiv 2009.02773):
    W / ((s1 + s2) / 2) with s1 of the matrix (O, I / G * k_h * k_w), which spectral norm takes,
    and s2 of (I, O / G * k_h * k_w), that of the transposed convolution. In the paper gradients
    also flow through the power iteration; here, as in torch's spectral norm, they do not.

    conv_groups: `groups` of the convolution, G.
    """

    def __init__(self, weight: torch.Tensor, conv_groups: int = 1):
        super().__init__()
        self.conv_groups = conv_groups
        with torch.no_grad():
            self.forward_norm = LargestSingularValue(weight.flatten(1))
            self.backward_norm = LargestSingularValue(self._transposed(weight))

    def _transposed(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix whose rows are the inputs: each meets the outputs of its own group."""
        return swapped(weight, self.conv_groups).flatten(1)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        s1 = self.forward_norm(weight.flatten(1))
        s2 = self.backward_norm(self._transposed(weight))
        return weight / ((s1 + s2) / 2).clamp(min=1e-12)


class OutputsFirst(nn.Module):
    """A parametrization of convolutions for the weight (I, O / G, k_h, k_w) of a transposed one.

    `parametrization` sees (O, I / G, k_h, k_w), whose rows belong to outputs.
    """

    def __init__(self, parametrization: nn.Module, conv_groups: int = 1):
        super().__init__()
        self.parametrization = parametrization
        self.conv_groups = conv_groups

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        seen = self.parametrization(swapped(weight, self.conv_groups))
        return swapped(seen, self.conv_groups)


def swapped(weight: torch.Tensor, conv_groups: int) -> torch.Tensor:
    """A weight (A, B / G, k_h, k_w) of G groups as (B, A / G, k_h, k_w)."""
    return weight.unflatten(0, (conv_groups, -1)).transpose(1, 2).flatten(0, 1)


class Scale(nn.Module):
    """Every row of the weight times `scale`; with `learned_rows` a parameter for each of them."""

    def __init__(self, scale: float, learned_rows: int = 0, like: torch.Tensor | None = None):
        """like: what a learned scale has the device and the dtype of."""
        super().__init__()
        self.scale = scale
        if learned_rows:
            factory = {} if like is None else {"device": like.device, "dtype": like.dtype}
            self.scale = nn.Parameter(torch.full((learned_rows,), float(scale), **factory))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if isinstance(self.scale, nn.Parameter):
            return self.scale.view(-1, *[1] * (weight.ndim - 1)) * weight
        return self.scale * weight


class OutsideAutocast(nn.Module):
    """A parametrization in full precision, computed once inside `fixed_weights`.

    Without buffers it follows from the weight alone, and `shared_weights` shares it.

    Autocast would run its matrix products, and those of a power iteration, in half precision;
    and where float32 products may be rounded (TF32, bfloat16), it is computed in float64. `rounded`
    says where; the default speaks of matrix products.
    """

    def __init__(
        self,
        parametrization: nn.Module,
        rounded: Callable[[str], bool] = products_are_rounded,
    ):
        super().__init__()
        self.parametrization = parametrization
        self.rounded = rounded

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with outside_autocast(weight.device.type):
            if any(True for _ in self.buffers()):  # moves in every pass
                return computed_once(self._compute, weight)
            return computed_once_a_step(self._compute, weight)

    def _compute(self, weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype == torch.float32 and self.rounded(weight.device.type):
            return in_float64(self.parametrization, weight)
        return self.parametrization(weight)


class ONI(nn.Module):
    """Orthogonalization by Newton's iteration (Huang et al., CVPR 2020, arXiv 2004.00917).

    Z is centred and W_T = B_T Z / sqrt(|S|_F), S = Z Z^T, with B_0 = I and
    B_t+1 = 3/2 B_t - 1/2 B_t^3 S / |S|_F: every iteration moves the singular values of W from
    below towards 1, the largest first. The division by the Frobenius norm makes it converge,
    and the result independent of the scale of Z.

    A matrix with more rows than columns gets orthonormal columns: it is the transpose of what
    its transpose would become. So the mean is always taken along the longer side. It takes one
    dimension from that side: of a square matrix one singular value is 0.

    iterations: T, 5 in the paper for classifiers.
    groups: each of so many groups of rows is orthogonalized by itself.
    conv_groups: `groups` of the convolution.
    as_published: with more rows than columns, the form of the published code: it centres the
        rows (one singular value is 0) and leaves S undivided in the iteration. The singular
        values end at 1 / sqrt(|S|_F) for small weights; large ones make the iteration diverge.
    """

    def __init__(
        self,
        iterations: int = 5,
        groups: int = 1,
        conv_groups: int = 1,
        as_published: bool = False,
    ):
        super().__init__()
        self.iterations = iterations
        self.groups = groups
        self.conv_groups = conv_groups
        self.as_published = as_published

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        parts = row_groups(weight, self.conv_groups, self.groups)
        return torch.cat([self._orthogonal(Z) for Z in parts], 1).reshape(weight.shape)

    def _orthogonal(self, Z: torch.Tensor) -> torch.Tensor:
        """(G, rows, columns) -> the same shape."""
        if Z.shape[1] > Z.shape[2]:
            return self._orthogonal_rows(Z.mT, published=self.as_published).mT
        return self._orthogonal_rows(Z, published=False)

    def _orthogonal_rows(self, Z: torch.Tensor, published: bool) -> torch.Tensor:
        Z = centred(Z, 1 if published else 2)
        S = Z @ Z.mT
        norm = frobenius_norm(S)
        if not published:
            S = S / norm
        identity = torch.eye(S.shape[1], dtype=S.dtype, device=S.device)
        B, BS = identity, S
        for _ in range(self.iterations):
            # Computed as B^3 S, it would amplify rounding errors once it has converged: 1 % in 10
            # iterations and all in 15. B and B S side by side is the stable form.
            factor = 1.5 * identity - 0.5 * B @ BS
            B, BS = factor @ B, BS @ factor
        return B @ Z / norm.sqrt()


class OWN(nn.Module):
    """Orthogonal weight normalization (Huang et al., AAAI 2018, arXiv 1709.06079).

    W = (Z Z^T)^(-1/2) Z with centred rows: orthonormal rows, the nearest to those of Z up to
    scale. At most columns - 1 centred rows can be orthonormal, so the rows are split into
    as many groups as that takes, of sizes that differ by 1 at most; a single column is not
    centred, or nothing would be left of it. A row of zeros stays zero, up to rounding.

    Gradients of all orders are exact and bounded where singular values are equal, which is where
    this parametrization lives: those of an SVD are divided by the differences.

    groups: at least so many groups of rows, each orthogonalized by itself.
    conv_groups: `groups` of the convolution.
    """

    def __init__(self, groups: int = 1, conv_groups: int = 1):
        super().__init__()
        self.groups = groups
        self.conv_groups = conv_groups

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        rows, columns = len(weight) // self.conv_groups, weight[0].numel()
        groups = max(self.groups, math.ceil(rows / max(1, columns - 1)))
        parts = row_groups(weight, self.conv_groups, groups)
        return torch.cat([self._orthogonal(Z) for Z in parts], 1).reshape(weight.shape)

    def _orthogonal(self, Z: torch.Tensor) -> torch.Tensor:
        """(G, rows, columns) -> the same shape."""
        Z = centred(Z, 2)
        S = Z @ Z.mT
        norm = frobenius_norm(S)
        return torch.linalg.solve(SquareRoot.apply(S / norm), Z / norm.sqrt())


def row_groups(weight: torch.Tensor, conv_groups: int, groups: int) -> tuple[torch.Tensor, ...]:
    """The matrices (conv_groups, rows, columns) of a weight in `groups` parts, rows at most."""
    matrices = weight.flatten(1).unflatten(0, (conv_groups, -1))
    return matrices.tensor_split(min(groups, matrices.shape[1]), dim=1)


def centred(Z: torch.Tensor, dim: int) -> torch.Tensor:
    """Z less its mean along `dim`, if there is more than one element to take it of."""
    return Z - Z.mean(dim, keepdim=True) if Z.shape[dim] > 1 else Z


def frobenius_norm(S: torch.Tensor) -> torch.Tensor:
    """Of each matrix, (..., 1, 1), 1e-12 or more, with finite gradients of all orders."""
    return S.square().sum((-2, -1), keepdim=True).clamp(min=1e-24).sqrt()
