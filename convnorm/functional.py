"""The mathematics of ConvNorm as pure functions of a convolution kernel.

Liu, Li, Zhai, You, Zhu, Fernandez-Granda, Qu: "Convolutional Normalization: Improving Deep
Convolutional Network Robustness and Training", NeurIPS 2021 (arXiv 2103.00673). With c_o the
convolution by the kernels W_o1 ... W_oI of output channel o, and hats for the DFT on a grid:

    P_o(w) = sum_i |W^_oi(w)|^2                       spectral energy
    G_o(w) = (P_o(w) + eps * |W_o|^2)^(-1/2)          gain; |W_o|^2 is the mean of P_o over w
    y_o    = irfft2(G_o * rfft2(c_o))                 circular filter

P_o is the DFT of the kernel's autocorrelation, which has only (2k-1)^2 numbers; so no kernel is
ever padded to the grid. All of it runs in float32 or float64, whatever the autocast state; and
where float32 products may be rounded (TF32, bfloat16), the gain is computed in float64.
"""

from collections.abc import Callable

import torch

from convnorm.convolution import Pads, convolve, convolve_adjoint, output_size, pad, pad_adjoint
from convnorm.filtering import circular_filter
from convnorm.fixed import computed_once_a_step
from convnorm.precision import widened
from convnorm.spectral_convolution import (
    Complex,
    behind,
    frequency_kernel,
    spectral_convolution,
    spectrum_is_faster,
)
from convnorm.tables import Pair, cosine_table, kernel_waves, offset_indicator

NO_PADDING = (0, 0, 0, 0)
GainFunction = Callable[..., torch.Tensor]
GRIDS = ("full", "native")


def autocorrelation(weight: torch.Tensor) -> torch.Tensor:
    """Sum over input channels of each kernel's autocorrelation.

    weight: (O, I, k_h, k_w). Returns R: (O, 2 k_h - 1, 2 k_w - 1) with
    R_o[d] = sum_i sum_p W_oi[p] W_oi[p + d]; the middle entry R_o[0] is |W_o|^2.
    """
    out_channels, _, height, width = weight.shape
    taps = widened(weight).flatten(2)
    gram = torch.bmm(taps.transpose(1, 2), taps).flatten(1)  # (O, K * K)
    summed = gram @ offset_indicator((height, width), gram.device, gram.dtype)
    return summed.view(out_channels, 2 * height - 1, 2 * width - 1).to(weight.dtype)


def spectral_energy(
    weight: torch.Tensor, grid: Pair, dilation: Pair = (1, 1), stride: Pair = (1, 1)
) -> torch.Tensor:
    """P of the module docstring on an n x m ring of outputs: (O, n, m // 2 + 1), >= 0.

    With a stride s, the energy that the strided layer has on its own, coarser grid: the mean of
    the s_h * s_w aliases of P on the fine grid.
    """
    correlation = autocorrelation(widened(weight)).flatten(1)
    kernel = (weight.shape[2], weight.shape[3])
    cosines = cosine_table(kernel, grid, dilation, stride, weight.device, correlation.dtype)
    # Rounding can take a zero of the spectrum below zero.
    energy = (correlation @ cosines).clamp(min=0).view(-1, grid[0], grid[1] // 2 + 1)
    return energy.to(weight.dtype)


def spectral_gain(
    weight: torch.Tensor,
    grid: Pair,
    dilation: Pair = (1, 1),
    stride: Pair = (1, 1),
    eps: float = 1e-6,
) -> torch.Tensor:
    """G of the module docstring, real and even: (O, n, m // 2 + 1).

    weight may have any floating dtype, the gain is float64 for float64 and else float32. eps is
    relative to the mean energy, so the gain of c * W is that of W divided by c, and at most
    eps**-0.5 / |W_o|. A channel whose kernel is zero has gain 1: its output is zero in any case,
    and its gradient stays finite.
    """
    with torch.autocast(weight.device.type, enabled=False):
        weight = weight if weight.dtype == torch.float64 else weight.float()
        energy = spectral_energy(weight, grid, dilation, stride)
        mean = weight.square().sum((1, 2, 3))[:, None, None]
        tiny = torch.finfo(weight.dtype).tiny
        return torch.where(mean > tiny, energy + eps * mean, 1.0).clamp(min=tiny).rsqrt()


@torch.no_grad()
def constant_gain(weight: torch.Tensor, *args) -> torch.Tensor:
    """`spectral_gain` as a constant, to which no gradient flows."""
    return spectral_gain(weight, *args)


def check_ring(padding: Pads, kernel: Pair, dilation: Pair) -> None:
    """Raise ValueError if circular padding goes more than once around the map (grid="full")."""
    left, right, top, bottom = padding
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if top + bottom > reach[0] or left + right > reach[1]:
        raise ValueError(
            f"circular padding of {(top + bottom, left + right)} pixels in all with grid='full' "
            f"asks for more than one turn of the ring; at most {reach} fits this kernel"
        )


def _everywhere(
    size: Pair, kernel: Pair, padding: Pads, dilation: Pair, mode: str
) -> tuple[Pads, Pair, Pair]:
    """How a stride-1 convolution of (H, W) maps covers the whole ring, for grid="full".

    Returns the padding that makes it do so, the size of the ring, and where on it the first output
    that `padding` asks for lies.
    """
    left, right, top, bottom = padding
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if mode == "circular":  # the map is the ring: one turn of it, started where `padding` says
        return (left, reach[1] - left, top, reach[0] - top), size, (0, 0)
    rows, columns = max(reach[0], top, bottom), max(reach[1], left, right)
    ring = (size[0] + 2 * rows - reach[0], size[1] + 2 * columns - reach[1])
    return (columns, columns, rows, rows), ring, (rows - top, columns - left)


def conv_norm2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Pair = (1, 1),
    padding: Pads = NO_PADDING,
    dilation: Pair = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    grid: str = "full",
    eps: float = 1e-6,
    gradient_through_gain: bool = False,
    fused_filter: bool = False,
    affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolve, then divide every output channel by its spectrum.

    x: (N, I, H, W); weight: (O, I / groups, k_h, k_w); the rest as torch.nn.functional.conv2d.
    affine: (O, 1, a, b) of odd sizes, a kernel that is convolved with each channel on its ring.
    Returns what conv2d would, (N, O, H', W'), in the same dtype. The options and the padding
    modes: see ConvNorm2d. Raises ValueError for a grid that does not exist, an input that is not
    4D or smaller than the kernel, and circular padding that `check_ring` refuses.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid must be one of {GRIDS}, not {grid!r}")
    if x.dim() != 4:
        raise ValueError(f"the input must be (N, I, H, W), not {tuple(x.shape)}")
    kernel = tuple(weight.shape[2:])
    if grid == "full" and padding_mode == "circular":
        check_ring(padding, kernel, dilation)
    if grid == "full" and padding_mode in ("reflect", "replicate"):
        x, padding, padding_mode = pad(x, padding, padding_mode), NO_PADDING, "zeros"
    size = output_size(tuple(x.shape[2:]), kernel, stride, padding, dilation)
    gain = spectral_gain if gradient_through_gain else constant_gain
    if kernel == (1, 1):
        weight = _pointwise(weight, gain, eps, affine)
        return convolve(x, weight, stride, padding, dilation, groups, padding_mode)
    if grid == "native":
        c = convolve(x, weight, stride, padding, dilation, groups, padding_mode)
        symbol = _symbol(weight, gain, size, dilation, stride, eps, affine)
        return circular_filter(c, symbol, fused=fused_filter)
    turn, ring, first = _everywhere(tuple(x.shape[2:]), kernel, padding, dilation, padding_mode)
    rows, columns = _kept_outputs(first, stride, size)
    if not fused_filter and spectrum_is_faster(x, weight, groups, ring):
        spectrum = computed_once_a_step(_normalized_kernel, weight, gain, ring, dilation, eps)
        if affine is not None:
            spectrum = behind(spectrum, _affine_waves(affine, ring))
        left, _, top, _ = turn  # how far the map lies behind the origin of the ring
        return spectral_convolution(
            x, spectrum, ring, [row - top for row in rows], [column - left for column in columns]
        )
    c = convolve(x, weight, (1, 1), turn, dilation, groups, padding_mode)
    symbol = _symbol(weight, gain, ring, dilation, (1, 1), eps, affine)
    return circular_filter(c, symbol, rows, columns, fused=fused_filter)


def conv_norm2d_adjoint(
    y: torch.Tensor,
    weight: torch.Tensor,
    size: Pair,
    stride: Pair = (1, 1),
    padding: Pads = NO_PADDING,
    dilation: Pair = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    grid: str = "full",
    eps: float = 1e-6,
    affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """The adjoint of conv_norm2d as a map of its input: <conv_norm2d(x), y> = <x, adjoint(y)>.

    y: (N, O, H', W'), as conv_norm2d returns it for maps of `size`, (H, W). Returns (N, I, H, W).
    """
    kernel = tuple(weight.shape[2:])
    if grid == "full" and padding_mode in ("reflect", "replicate"):
        left, right, top, bottom = padding
        padded = (size[0] + top + bottom, size[1] + left + right)
        geometry = (padded, stride, NO_PADDING, dilation, groups)
        x = conv_norm2d_adjoint(y, weight, *geometry, eps=eps, affine=affine)
        return pad_adjoint(x, padding, padding_mode)
    if kernel == (1, 1) or grid == "native":
        if kernel == (1, 1):
            weight = _pointwise(weight, constant_gain, eps, affine)
        else:
            ring = tuple(y.shape[2:])
            symbol = _symbol(weight, constant_gain, ring, dilation, stride, eps, affine)
            y = circular_filter(y, symbol.conj())
        return convolve_adjoint(y, weight, size, stride, padding, dilation, groups, padding_mode)
    turn, ring, first = _everywhere(size, kernel, padding, dilation, padding_mode)
    rows, columns = (
        slice(places.start, places.stop, places.step)
        for places in _kept_outputs(first, stride, tuple(y.shape[2:]))
    )
    c = y.new_zeros(*y.shape[:2], *ring)
    c[:, :, rows, columns] = y
    symbol = _symbol(weight, constant_gain, ring, dilation, (1, 1), eps, affine)
    c = circular_filter(c, symbol.conj())
    return convolve_adjoint(c, weight, size, (1, 1), turn, dilation, groups, padding_mode)


def _gain_of(
    weight: torch.Tensor, gain: GainFunction, ring: Pair, dilation: Pair, stride: Pair, eps: float
) -> torch.Tensor:
    constant = gain is constant_gain
    return computed_once_a_step(gain, weight, ring, dilation, stride, eps, constant=constant)


def _symbol(
    weight: torch.Tensor,
    gain: GainFunction,
    ring: Pair,
    dilation: Pair,
    stride: Pair,
    eps: float,
    affine: torch.Tensor | None,
) -> torch.Tensor:
    """The gain, real, or the gain times the spectrum of `affine`: (O, n, m // 2 + 1)."""
    factor = _gain_of(weight, gain, ring, dilation, stride, eps)
    if affine is None:
        return factor
    waves = torch.complex(*_affine_waves(affine.mT, ring[::-1]))
    return factor * waves.unflatten(0, (-1, ring[0])).permute(2, 1, 0)


def _affine_waves(affine: torch.Tensor, ring: Pair) -> Complex:
    """The kernel of an affine at the frequencies of a ring, (F, O), half along the rows."""
    kernel = tuple(affine.shape[2:])
    centre = (kernel[0] // 2, kernel[1] // 2)
    affine = affine if affine.dtype == torch.float64 else affine.float()
    like = (affine.device, affine.dtype)
    waves = kernel_waves(kernel, ring, (1, 1), centre, *like)
    with torch.autocast(affine.device.type, enabled=False):
        real, imaginary = (waves @ affine.flatten(1).t()).chunk(2)
    return real, imaginary


def _pointwise(
    weight: torch.Tensor, gain: GainFunction, eps: float, affine: torch.Tensor | None
) -> torch.Tensor:
    """A normalized 1x1 kernel: its spectrum is flat, so the filter is a factor of each channel."""
    factor = _gain_of(weight, gain, (1, 1), (1, 1), (1, 1), eps)[:, None]
    if affine is not None:
        factor = factor * affine
    return (weight * factor).to(weight.dtype)


def _kept_outputs(first: Pair, stride: Pair, size: Pair) -> tuple[range, range]:
    """Rows and columns of the ring at which a strided convolution has its outputs."""
    rows, columns = (
        range(start, start + step * (count - 1) + 1, step)
        for start, step, count in zip(first, stride, size, strict=True)
    )
    return rows, columns


def _normalized_kernel(
    weight: torch.Tensor, gain: GainFunction, ring: Pair, dilation: Pair, eps: float
) -> Complex:
    """The convolution and its filter at every frequency of the ring, see `frequency_kernel`."""
    by_columns = _gain_of(weight, gain, ring, dilation, (1, 1), eps)  # (O, n, m // 2 + 1)
    # It is even: what is left of the columns is what is there, of the opposite frequencies.
    opposite = by_columns.flip(1).roll(1, 1)[:, :, 1 : (ring[1] + 1) // 2].flip(2)
    whole = torch.cat([by_columns, opposite], 2)
    return frequency_kernel(weight, whole[:, : ring[0] // 2 + 1], ring, dilation)
