"""The mathematics of ConvNorm as pure functions of a convolution kernel.

Liu, Li, Zhai, You, Zhu, Fernandez-Granda, Qu: "Convolutional Normalization: Improving Deep
Convolutional Network Robustness and Training", NeurIPS 2021 (arXiv 2103.00673). With c_o the
convolution by the kernels W_o1 ... W_oI of output channel o, and hats for the DFT on a grid:

    P_o(w) = sum_i |W^_oi(w)|^2                       spectral energy
    G_o(w) = (P_o(w) + eps * |W_o|^2)^(-1/2)          gain; |W_o|^2 is the mean of P_o over w
    y_o    = irfft2(G_o * rfft2(c_o))                 circular filter

All of it runs in float32 or float64, whatever the autocast state; and where float32 products may
be rounded (TF32, bfloat16), or a kernel has few inputs, the gain is computed in float64.
"""

from collections.abc import Callable

import torch

from convnorm.convolution import (
    Pads,
    as_batch,
    as_given,
    convolve,
    convolve_adjoint,
    output_size,
    pad,
    pad_adjoint,
)
from convnorm.energy import spectral_energy
from convnorm.filtering import circular_filter, filter_by_products
from convnorm.fixed import computed_once_a_step
from convnorm.precision import doubled, outside_autocast
from convnorm.ring import check_ring, everywhere, kept_outputs
from convnorm.spectral_convolution import (
    Complex,
    behind,
    frequency_kernel,
    spectral_convolution,
    spectrum_is_faster,
)
from convnorm.tables import Pair, kernel_waves

NO_PADDING = (0, 0, 0, 0)
GainFunction = Callable[..., torch.Tensor]
Symbol = tuple[torch.Tensor] | Complex
GRIDS = ("full", "native")
FILTERS = ("auto", "fused", "matmul")
# A spectrum of few inputs can vanish at some frequency, where the gain is the inverse of what
# rounding leaves. Sums over many inputs have such zeros only where these share one pattern in
# space, such as a blur times a factor each: there a gain in float32 is off by a tenth.
FEW_INPUTS = 32


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
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    with outside_autocast(weight.device.type):
        weight = weight.to(dtype)
        if weight.shape[1] <= FEW_INPUTS:
            weight = doubled(weight)
        energy = spectral_energy(weight, grid, dilation, stride)
        mean = weight.square().sum((1, 2, 3))[:, None, None]
        tiny = torch.finfo(dtype).tiny
        gain = torch.where(mean > tiny, energy + eps * mean, 1.0).clamp(min=tiny).rsqrt()
        return gain.to(dtype)


@torch.no_grad()
def constant_gain(weight: torch.Tensor, *args) -> torch.Tensor:
    """`spectral_gain` as a constant, to which no gradient flows and no forward-mode tangent."""
    return spectral_gain(weight.detach(), *args)


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
    filter: str = "auto",
    affine: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolve, then divide every output channel by its spectrum.

    x: (N, I, H, W) or (I, H, W); weight: (O, I / groups, k_h, k_w). stride, dilation: pairs;
    padding: of the left, right, top and bottom; the rest as torch.nn.functional.conv2d. affine:
    (O, 1, a, b) of odd sizes, a kernel that is convolved with each channel on its ring. Returns
    what conv2d would, (N, O, H', W') or (O, H', W'), in the same dtype, and in channels_last where
    x is. The options and the padding modes: see ConvNorm2d.
    Raises ValueError for a grid or filter that does not exist, an input of other dimensions or
    smaller than the kernel, and circular padding that `check_ring` refuses; TypeError for complex
    numbers.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid must be one of {GRIDS}, not {grid!r}")
    if filter not in FILTERS:
        raise ValueError(f"filter must be one of {FILTERS}, not {filter!r}")
    maps = checked_batch(x, weight)
    geometry = (stride, padding, dilation, groups, padding_mode)
    gain = spectral_gain if gradient_through_gain else constant_gain
    y = _normalized(maps, weight, *geometry, grid, eps, gain, filter, affine)
    return as_given(in_layout_of(maps, y), x)


def checked_batch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: (N, I, H, W) or (I, H, W) -> (N, I, H, W); ValueError or TypeError for anything else."""
    if x.dim() not in (3, 4):
        raise ValueError(f"the input must be (N, I, H, W) or (I, H, W), not {tuple(x.shape)}")
    for tensor in (x, weight):
        check_real(tensor.dtype)
    return as_batch(x)


def check_real(dtype: torch.dtype) -> None:
    """Raise TypeError for complex numbers, whose imaginary parts would be lost in the filter."""
    if dtype.is_complex:
        raise TypeError(f"ConvNorm takes real numbers, not {dtype}")


def in_layout_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y in channels_last where x is, as nn.Conv2d returns it."""
    if x.stride(1) != 1 or x.shape[1] == 1 or x.shape[2] * x.shape[3] == 1:
        return y
    # vmap knows no memory format, but this.
    return y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _normalized(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Pair,
    padding: Pads,
    dilation: Pair,
    groups: int,
    padding_mode: str,
    grid: str,
    eps: float,
    gain: GainFunction,
    filter: str,
    affine: torch.Tensor | None,
) -> torch.Tensor:
    """`conv_norm2d` of a batch, by the way that suits its size."""
    kernel = tuple(weight.shape[2:])
    if grid == "full" and padding_mode == "circular":
        check_ring(padding, kernel, dilation)
    if grid == "full" and padding_mode in ("reflect", "replicate"):
        x, padding, padding_mode = pad(x, padding, padding_mode), NO_PADDING, "zeros"
    height, width = (int(side) for side in x.shape[2:])  # torch.jit.trace has tensors there
    size = output_size((height, width), kernel, stride, padding, dilation)
    if is_pointwise(weight, affine):
        weight = pointwise(weight, gain, eps, affine)
        return convolve(x, weight, stride, padding, dilation, groups, padding_mode)
    if grid == "native":
        c = convolve(x, weight, stride, padding, dilation, groups, padding_mode)
        symbol = _symbol(weight, gain, size, dilation, stride, eps, affine)
        return _filtered(c, symbol, range(size[0]), range(size[1]), filter)
    turn, ring, first = everywhere((height, width), kernel, padding, dilation, padding_mode)
    rows, columns = kept_outputs(first, stride, size)
    if filter == "auto" and spectrum_is_faster(x, weight, groups, ring):
        spectrum = computed_once_a_step(_normalized_kernel, weight, gain, ring, dilation, eps)
        if affine is not None:
            spectrum = behind(spectrum, _affine_waves(affine, ring))
        left, _, top, _ = turn  # how far the map lies behind the origin of the ring
        return spectral_convolution(
            x, spectrum, ring, [row - top for row in rows], [column - left for column in columns]
        )
    c = convolve(x, weight, (1, 1), turn, dilation, groups, padding_mode)
    symbol = _symbol(weight, gain, ring, dilation, (1, 1), eps, affine)
    return _filtered(c, symbol, rows, columns, filter)


def _filtered(
    c: torch.Tensor, symbol: Symbol, rows: range, columns: range, filter: str
) -> torch.Tensor:
    if filter == "matmul":
        return filter_by_products(c, *symbol, rows=rows, columns=columns)
    return circular_filter(c, _number(*symbol), rows, columns, fused=filter == "fused")


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
    is_factor = is_pointwise(weight, affine)
    if is_factor or grid == "native":
        if is_factor:
            weight = pointwise(weight, constant_gain, eps, affine)
        else:
            ring = tuple(y.shape[2:])
            symbol = _symbol(weight, constant_gain, ring, dilation, stride, eps, affine)
            y = circular_filter(y, _number(*symbol).conj())
        return convolve_adjoint(y, weight, size, stride, padding, dilation, groups, padding_mode)
    turn, ring, first = everywhere(size, kernel, padding, dilation, padding_mode)
    rows, columns = (
        slice(places.start, places.stop, places.step)
        for places in kept_outputs(first, stride, tuple(y.shape[2:]))
    )
    c = y.new_zeros(*y.shape[:2], *ring)
    c[:, :, rows, columns] = y
    symbol = _symbol(weight, constant_gain, ring, dilation, (1, 1), eps, affine)
    c = circular_filter(c, _number(*symbol).conj())
    return convolve_adjoint(c, weight, size, (1, 1), turn, dilation, groups, padding_mode)


def gain_of(
    weight: torch.Tensor, gain: GainFunction, ring: Pair, dilation: Pair, stride: Pair, eps: float
) -> torch.Tensor:
    """What `gain` gives for a weight, once a step where weights are shared."""
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
) -> Symbol:
    """The gain, or the parts of the gain times the spectrum of `affine`: (O, n, m // 2 + 1)."""
    factor = gain_of(weight, gain, ring, dilation, stride, eps)
    if affine is None:
        return (factor,)
    real, imaginary = (
        factor * part.unflatten(0, (-1, ring[0])).permute(2, 1, 0)
        for part in _affine_waves(affine.mT, ring[::-1])
    )
    return real, imaginary


def _number(real: torch.Tensor, imaginary: torch.Tensor | None = None) -> torch.Tensor:
    return real if imaginary is None else torch.complex(real, imaginary)


def _affine_waves(affine: torch.Tensor, ring: Pair) -> Complex:
    """The kernel of an affine at the frequencies of a ring, (F, O), half along the rows."""
    kernel = tuple(affine.shape[2:])
    centre = (kernel[0] // 2, kernel[1] // 2)
    affine = affine if affine.dtype == torch.float64 else affine.float()
    like = (affine.device, affine.dtype)
    waves = kernel_waves(kernel, ring, (1, 1), centre, *like)
    with outside_autocast(affine.device.type):
        real, imaginary = (waves @ affine.flatten(1).t()).chunk(2)
    return real, imaginary


def is_pointwise(weight: torch.Tensor, affine: torch.Tensor | None) -> bool:
    """Whether a kernel and an affine on its ring are 1x1: then the filter is a factor."""
    return all(kernel is None or kernel.shape[2:] == (1, 1) for kernel in (weight, affine))


def pointwise(
    weight: torch.Tensor, gain: GainFunction, eps: float, affine: torch.Tensor | None = None
) -> torch.Tensor:
    """A normalized 1x1 kernel: its spectrum is flat, so the filter is a factor of each channel."""
    factor = gain_of(weight, gain, (1, 1), (1, 1), (1, 1), eps)[:, None]
    if affine is not None:
        factor = factor * affine
    return (weight * factor).to(weight.dtype)


def _normalized_kernel(
    weight: torch.Tensor, gain: GainFunction, ring: Pair, dilation: Pair, eps: float
) -> Complex:
    """The convolution and its filter at every frequency of the ring, see `frequency_kernel`."""
    by_columns = gain_of(weight, gain, ring, dilation, (1, 1), eps)  # (O, n, m // 2 + 1)
    # It is even: what is left of the columns is what is there, of the opposite frequencies.
    opposite = by_columns.flip(1).roll(1, 1)[:, :, 1 : (ring[1] + 1) // 2].flip(2)
    whole = torch.cat([by_columns, opposite], 2)
    return frequency_kernel(weight, whole[:, : ring[0] // 2 + 1], ring, dilation)
