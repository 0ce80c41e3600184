"""The matrices of a layer at each frequency of a ring.

Under circular padding a convolution acts on every frequency w of an n x m ring by itself, as the
matrix A(w)_oi = sum_t W_oi[t] exp(i w t) over the taps t of the (dilated) kernel: its singular
values are those of all A(w) (Sedghi, Gupta & Long, ICLR 2019, arXiv 1805.10408). A stride s that
divides the ring folds the s_h s_w frequencies w + 2 pi a / s onto one, so that their matrices stand
side by side, [A(w_1) A(w_2) ...] / sqrt(s_h s_w): equivalent to the polyphase form of Senderovich
et al. (NeurIPS 2022, arXiv 2211.13771). Groups have a matrix each.

A filter of each channel multiplies the rows of A(w): before that folding where it runs before the
stride (ConvNorm on its full grid), behind it where it runs behind.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, prod

import torch

from convnorm.composite import Composite, NoSymbol, Part, waves
from convnorm.convolution import output_size, pads_of
from convnorm.ring import everywhere
from convnorm.tables import Pair, both_halves

CHUNK = 2**21  # complex numbers of the matrices that are held at a time


@dataclass(frozen=True)
class Symbol:
    """A layer on a ring.

    ring: (n, m), which `stride` divides. factors: of each part, its place ("inputs", "ring" or
        "map") and what it multiplies by: (C, n, m // 2 + 1) of the ring, of the ring over the
        stride for "map", or (C, 1, 1).
    """

    weight: torch.Tensor  # (O, I / groups, k_h, k_w)
    ring: Pair
    stride: Pair
    dilation: Pair
    groups: int
    factors: tuple[tuple[str, torch.Tensor], ...] = ()

    @property
    def coarse(self) -> Pair:
        """The ring of the outputs."""
        return self.ring[0] // self.stride[0], self.ring[1] // self.stride[1]

    @property
    def is_flat(self) -> bool:
        """Whether the matrices are equal at all frequencies, as those of a 1x1 kernel are."""
        return tuple(self.weight.shape[2:]) == (1, 1) and all(
            factor.shape[1:] == (1, 1) for _, factor in self.factors
        )


def ring_of(composite: Composite, size: Pair) -> Pair:
    """The ring for maps of `size`: the map itself, or the next multiple of the stride."""
    rows, columns = (-(-n // s) * s for n, s in zip(size, composite.conv.stride, strict=True))
    return rows, columns


@torch.no_grad()
def circular_symbol(composite: Composite, size: Pair) -> Symbol:
    """The layer on (H, W) maps as if they were rings, whatever its padding is; see `ring_of`."""
    conv, ring = composite.conv, ring_of(composite, size)
    coarse = (ring[0] // conv.stride[0], ring[1] // conv.stride[1])
    factors = tuple(
        (part.place, part.factor(coarse if part.place == "map" else ring))
        for part in composite.parts
    )
    return Symbol(composite.weight, ring, conv.stride, conv.dilation, conv.groups, factors)


@torch.no_grad()
def enclosing_symbol(composite: Composite, size: Pair) -> Symbol:
    """A layer on a larger ring whose norm is at least that of this one on (H, W) maps.

    A map with zeros around it, on a ring that is longer by k_eff - 1, sees nothing of its other
    end: the padded layer is the ring's, restricted to some inputs and outputs. Filters behind it,
    which do not see that ring, are replaced by the largest factor that they have. Raises NoSymbol
    for what is not a restriction of a ring, as other kinds of padding are.
    """
    if composite.missing is not None:
        raise NoSymbol(composite.missing)
    conv = composite.conv
    left, right, top, bottom = pads = pads_of(conv)
    reach = tuple(d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    total = (top + bottom, left + right)
    filtered = any(part.place == "ring" for part in composite.parts)
    if conv.padding_mode == "circular":
        divides = all(n % s == 0 for n, s in zip(size, conv.stride, strict=True))
        if total == reach and divides:
            return circular_symbol(composite, size)
        if any(t > r for t, r in zip(total, reach, strict=True)):
            raise NoSymbol("circular padding of more than the kernel's reach repeats pixels")
        ring = size
    elif conv.padding_mode != "zeros":
        raise NoSymbol(f"padding {conv.padding_mode!r} repeats pixels")
    elif filtered:  # on the very ring of ConvNorm's full grid
        _, ring, _ = everywhere(size, conv.kernel_size, pads, conv.dilation, "zeros")
    else:
        ring = tuple(-(-(n + r) // s) * s for n, r, s in zip(size, reach, conv.stride, strict=True))
    # Outputs at every s-th place are among those at every gcd(s, ring)-th, around the ring too.
    stride = tuple(gcd(s, n) for s, n in zip(conv.stride, ring, strict=True))
    outputs = output_size(size, conv.kernel_size, conv.stride, pads, conv.dilation)
    factors = tuple((part.place, _largest(part, ring, outputs)) for part in composite.parts)
    return Symbol(composite.weight, ring, stride, conv.dilation, conv.groups, factors)


def _largest(part: Part, ring: Pair, outputs: Pair) -> torch.Tensor:
    """A part on the enclosing ring; of a filter of the outputs, its norm on each channel."""
    if part.place != "map":
        return part.factor(ring)
    own = (outputs[0] + part.reach[0], outputs[1] + part.reach[1])
    return part.factor(own).abs().amax((1, 2), keepdim=True)


@torch.no_grad()
def matrices(symbol: Symbol) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (stage, matrices, times), stage 0 for the convolution alone, then with each part.

    matrices: (F, groups, O / groups, s_h * s_w * I / groups), complex, of some frequencies at a
    time, few enough for CHUNK numbers. times: (F,), how often each counts: those whose opposite
    is left out, 2; where all are equal, the number of all.
    """
    rows, columns = symbol.coarse
    u, v = (torch.arange(k, device=symbol.weight.device) for k in (rows, columns // 2 + 1))
    u, v = u.repeat_interleave(len(v)), v.repeat(rows)
    times = both_halves(v, columns)
    if symbol.is_flat:
        u, v, times = u[:1], v[:1], torch.full_like(u[:1], rows * columns)
    numbers = symbol.weight.shape[:2].numel() * prod(symbol.stride)
    parts = max(1, CHUNK // numbers)
    for chunk in zip(u.split(parts), v.split(parts), times.split(parts), strict=True):
        yield from _chunk(symbol, *chunk)


def _chunk(
    symbol: Symbol, u: torch.Tensor, v: torch.Tensor, times: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """The same at the frequencies (u, v) of the ring of outputs."""
    weight, groups, (rows, columns) = symbol.weight, symbol.groups, symbol.coarse
    (n, m), (s, t) = symbol.ring, symbol.stride
    a, b = torch.arange(s, device=u.device)[:, None], torch.arange(t, device=u.device)
    fine_u = (u[:, None, None] + rows * a).expand(-1, -1, t).flatten()
    fine_v = (v[:, None, None] + columns * b).expand(-1, s, -1).flatten()
    along = waves(fine_u, weight.shape[2], n, symbol.dilation[0], 0, weight)
    across = waves(fine_v, weight.shape[3], m, symbol.dilation[1], 0, weight)
    taps = (along[:, :, None] * across[:, None, :]).flatten(1)  # (F * s * t, k_h * k_w)
    A = torch.einsum("ft,oit->foi", taps, weight.flatten(2).to(taps.dtype)) / (s * t) ** 0.5
    A = A.view(len(u), s * t, groups, -1, weight.shape[1])  # (F, aliases, G, O / G, I / G)
    yield 0, _joined(A), times
    for stage, (place, factor) in enumerate(symbol.factors, 1):
        if place == "inputs":
            A = A * factor.view(-1, 1, weight.shape[1]).expand(groups, -1, -1)
        elif place == "map":
            A = A * _at(factor, u, v, columns).view(len(u), 1, *_channels(factor, groups), 1)
        else:
            channels = _channels(factor, groups)
            A = A * _at(factor, fine_u, fine_v, m).view(len(u), s * t, *channels, 1)
        yield stage, _joined(A), times


def _joined(A: torch.Tensor) -> torch.Tensor:
    """(F, aliases, G, O / G, I / G) -> (F, G, O / G, aliases * I / G)."""
    return A.permute(0, 2, 3, 1, 4).flatten(3)


def _channels(factor: torch.Tensor, groups: int) -> tuple[int, int]:
    return (groups, len(factor) // groups) if len(factor) > 1 else (1, 1)


def _at(factor: torch.Tensor, u: torch.Tensor, v: torch.Tensor, columns: int) -> torch.Tensor:
    """Take (C, n, m // 2 + 1) at frequencies (u, v), v < m: (F, C)."""
    if factor.shape[1:] == (1, 1):
        return factor[:, 0, 0].expand(len(u), -1)
    left_out = v > columns // 2  # of a real filter, opposite frequencies are conjugate
    found = factor[
        :, torch.where(left_out, -u % factor.shape[1], u), torch.where(left_out, columns - v, v)
    ]
    conjugate = found.conj() if found.is_complex() else found
    return torch.where(left_out, conjugate, found).mT
