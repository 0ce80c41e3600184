"""An upper bound of a layer's operator norm, by Gram iteration."""

import math

import torch

from convnorm.composite import Composite
from convnorm.symbols import enclosing_symbol, matrices
from convnorm.tables import Pair

ITERATIONS = 8  # a matrix of rank r is bounded within a factor r^(1 / 512): 1.2 % for 512


def norm_bound(composite: Composite, size: Pair, iterations: int = ITERATIONS) -> float:
    """Return a number that the layer's operator norm on (H, W) maps does not exceed.

    The norm of the layer on a ring that it is a part of (`enclosing_symbol`), bounded from above at
    every frequency (Delattre et al., ICML 2023, arXiv 2305.16173). What rounding may take away is
    added: nothing much in float64, up to a percent in float32. With Lanczos' value from below
    (`convnorm.spectrum.operator_norm`) it encloses the norm. It is looser where a filter does not
    see the map's surroundings: the affine of ConvNorm, and the gain of its native grid, then count
    with the largest factor of each channel. NaN if the layer is not finite. Raises NoSymbol for
    what is not a part of a ring.
    """
    symbol = enclosing_symbol(composite, size)
    largest, last = 0.0, len(symbol.factors)
    for stage, A, _ in matrices(symbol):
        if stage == last:
            bound = gram_bounds(A, iterations).max().item()
            largest = math.nan if math.isnan(bound) else max(largest, bound)
            if math.isnan(largest):
                return largest
    return largest


def gram_bounds(A: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
    """Upper bounds of the largest singular values of matrices (..., rows, columns): (...).

    |A|_2^(2^t) = |G_t|_2 <= |G_t|_F for G_0 = A, G_t+1 = G_t G_t^*. Each G is divided by its
    Frobenius norm first, as powers of 2^t overflow, and the divisors are counted in logarithms.
    """
    rows, columns = A.shape[-2:]
    tiny = torch.finfo(A.real.dtype).tiny
    largest = A.abs().amax((-2, -1)).clamp(min=tiny)  # whose square may overflow, too
    G = (A.mH if rows > columns else A) / largest[..., None, None]
    taken = largest.log()
    for _ in range(iterations):
        norm = torch.linalg.matrix_norm(G).clamp(min=tiny)
        taken = 2 * (taken + norm.log())
        G = G / norm[..., None, None]
        G = G @ G.mH
    bounds = ((taken + torch.linalg.matrix_norm(G).log()) / 2**iterations).exp()
    # A product of n x n matrices of Frobenius norm 1 is off by n eps, and has a norm of n^-1/2 or
    # more; the root of order 2^t leaves the first of these errors alone. 4: products are complex.
    # 100: the matrices themselves, exp and log.
    rounding = 4 * max(rows, columns) ** 1.5 + 100
    return bounds * (1 + rounding * torch.finfo(taken.dtype).eps)
