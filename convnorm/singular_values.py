"""All singular values of a layer on a ring, and what a table says of them."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from convnorm.composite import composite_of
from convnorm.symbols import Symbol, circular_symbol, matrices
from convnorm.tables import Pair


@torch.no_grad()
def singular_values(symbol: Symbol) -> list[torch.Tensor]:
    """Return those of the convolution alone, then with each part: (K,) each, the largest first.

    K = min(inputs, outputs) of the layer on the ring, zeros included, as a dense matrix has them.
    By torch.linalg.svdvals and not from Gram matrices: these square the condition number, and in
    float32 their smallest values are off by a tenth and more. In float32 a value is off by about
    1e-7 of the largest; take float64 where the smallest matter (`Summary.resolution`). NaN if the
    layer is not finite.
    """
    found: list[list[torch.Tensor]] = [[] for _ in range(1 + len(symbol.factors))]
    for stage, A, times in matrices(symbol):
        if A.isfinite().all():
            values = torch.linalg.svdvals(A).flatten(1)
        else:
            values = A.real.new_full((len(A), A.shape[1] * min(A.shape[2:])), math.nan)
        found[stage].append(values.repeat_interleave(times, 0).flatten())
    return [torch.cat(parts).sort(descending=True).values for parts in found]


def layer_spectra(
    layer: nn.Module, size: Pair, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Return stage -> all singular values of a layer in evaluation mode on (H, W) maps.

    Stages are "conv", the convolution alone, then with each part that follows: see `composite_of`.
    Values are those of the layer on a ring, see `circular_symbol`. Raises NoSymbol where it has
    none.
    """
    composite = composite_of(layer, dtype=dtype)
    found = singular_values(circular_symbol(composite, size))
    return dict(zip(composite.stages, found, strict=True))


@dataclass(frozen=True)
class Summary:
    """What singular values come to.

    count: how many there are. p1, p50, p99: percentiles.
    stable_rank: |A|_F^2 / |A|_2^2; 0 for A = 0.
    resolution: what rounding may make of a zero; a smallest value below it is known no better.
    """

    count: int
    largest: float
    smallest: float
    p1: float
    p50: float
    p99: float
    stable_rank: float
    resolution: float

    @property
    def condition(self) -> float:
        """The largest over the smallest value; infinite where that is lost in rounding."""
        return self.largest / self.smallest if self.smallest > self.resolution else math.inf

    @property
    def spread(self) -> float:
        """The 99th over the 1st percentile: a condition number that no single value decides."""
        return self.p99 / self.p1 if self.p1 > self.resolution else math.inf


def summary_of(values: torch.Tensor, symbol: Symbol) -> Summary:
    """Sum up what `singular_values` found at one stage of a symbol."""
    largest, smallest = values[0].item(), values[-1].item()
    squared = values.double().square().sum().item()
    rows, columns = symbol.weight.shape[:2]
    side = max(rows // symbol.groups, columns * math.prod(symbol.stride))
    if math.isnan(largest):
        squared = largest
    return Summary(
        count=len(values),
        largest=largest,
        smallest=smallest,
        **{f"p{p}": _percentile(values, p) for p in (1, 50, 99)},
        stable_rank=0.0 if largest == 0 else squared / largest**2,
        resolution=torch.finfo(values.dtype).eps * side * largest,
    )


def _percentile(values: torch.Tensor, percent: float) -> float:
    """Of values in descending order, linear between two of them."""
    place = (1 - percent / 100) * (len(values) - 1)  # torch.quantile takes 2^24 numbers at most
    lower = min(math.floor(place), len(values) - 1)
    upper = min(lower + 1, len(values) - 1)
    a, b = values[lower].item(), values[upper].item()
    return a + (place - lower) * (b - a)
