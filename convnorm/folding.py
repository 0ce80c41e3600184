"""A ConvNorm2d on maps of one size as plain modules: which forms there are, and what each costs.

With fixed weights the layer is its convolution, and behind it a circular filter that is fixed too,
v, the inverse DFT of the gain on a ring. It can be computed

    scaled      1x1 kernels: the filter is a factor of each channel. Exact.
    window      convolution, then a depthwise one by the middle of v, closed to a ring. Good where
                many inputs make the spectrum flat: v is short then.
    merged      one convolution by the middle of v * W, for the grid "full", whose filter does not
                stand behind a stride. Good where inputs are few: v is long then, and v * W is not.
    matrix      convolution, then one matrix a channel from the ring to the outputs. Exact.
    products    convolution, then the filter by products with cosines and sines. Exact.

The affine with zero padding stays a convolution of its own: merged, it would see beyond the border
what it takes for zeros. A BatchNorm becomes a part of what stands before it, exactly.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.batch_norm import batch_norm_factor
from convnorm.convolution import Pads, output_size, pads_of
from convnorm.energy import spectral_energy
from convnorm.filtering import filter_matrix
from convnorm.functional import spectral_gain
from convnorm.layer import ConvNorm2d
from convnorm.plain_modules import (
    PADDINGS,
    Crop,
    MatrixFilter,
    ProductFilter,
    plain_convolution,
)
from convnorm.ring import everywhere, kept_outputs
from convnorm.tables import Pair, both_halves

MOST_RADIUS = 8  # pixels by which a window or a merged kernel reaches out
FEWEST_UNMERGED = 32  # inputs: merged kernels lie on the whole ring for a moment
LARGEST_MATRIX = 144  # pixels of a ring: 21,000 numbers a channel


@dataclass(frozen=True)
class Form:
    """One way to compute a layer on maps of one size.

    error: |y' - y| / |y| to be expected of the filter under white inputs, inside of the map.
    macs: multiply-adds for an image. build: makes the modules, in float64 on the CPU.
    """

    name: str
    error: float
    macs: int
    build: Callable[[], nn.Module]

    @property
    def is_exact(self) -> bool:
        """Whether it is the layer at the borders of the maps too."""
        return self.name in ("scaled", "matrix", "products")


class Folding:
    """What all forms of a layer have in common, in float64: its ring, its filter, its constants.

    layer: in evaluation mode; it is not changed. size: (H, W) of its inputs. factor: on all that it
    returns.
    """

    def __init__(self, layer: ConvNorm2d, size: Pair, factor: float = 1.0):
        self.layer, self.size = layer, size
        self.weight = layer.weight.detach().cpu().double()
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        pads, mode = pads_of(layer), layer.padding_mode
        self.outer = None
        if layer.grid == "full" and mode in ("reflect", "replicate"):  # the padded map is the input
            self.outer, mode = PADDINGS[mode](pads), "zeros"
            size = (size[0] + pads[2] + pads[3], size[1] + pads[0] + pads[1])
            pads = (0, 0, 0, 0)
        self.pads, self.mode = pads, mode
        self.outputs = output_size(size, self.kernel, self.stride, pads, self.dilation)
        if layer.grid == "native":
            self.turn, self.ring, self.first = pads, self.outputs, (0, 0)
            self.before, self.behind = self.stride, (1, 1)  # the stride stands before the filter
        else:
            self.turn, self.ring, self.first = everywhere(
                size, self.kernel, pads, self.dilation, mode
            )
            self.before, self.behind = (1, 1), self.stride
        self._constants(factor)
        gain = spectral_gain(self.weight, self.ring, self.dilation, self.before, layer.eps)
        response = torch.fft.irfft2(gain, s=self.ring) * self.factor[:, None, None]
        if layer.affine is not None and layer.affine_mode == "circular":
            response = _correlated(response, layer.affine.weight.detach().cpu().double())
        self.response = response  # v, (O, n, m)

    def _constants(self, factor: float) -> None:
        """The factor and the offset of each channel, and the affine that stays, with BatchNorm."""
        layer, zeros = self.layer, self.weight.new_zeros(self.layer.out_channels)
        scale, shift = zeros + factor, zeros
        norm = layer.batch_norm
        if norm is not None:
            own = zeros if norm.bias is None else norm.bias.detach().cpu().double()
            scale = factor * batch_norm_factor(norm, torch.float64).cpu()
            shift = factor * own - scale * norm.running_mean.cpu().double()
        bias = zeros if layer.bias is None else layer.bias.detach().cpu().double()
        self.affine = None
        if layer.affine is None:
            self.factor, self.offset = layer.scale * scale, bias * scale + shift
            return
        weight, own = (p.detach().cpu().double() for p in (layer.affine.weight, layer.affine.bias))
        if layer.affine_mode == "circular":
            constant = own + bias * weight.sum((1, 2, 3))
            self.factor, self.offset = layer.scale * scale, constant * scale + shift
            return
        self.factor, self.offset = zeros + layer.scale, bias
        kernel = weight * scale[:, None, None, None]
        self.affine = plain_convolution(
            kernel,
            own * scale + shift,
            pads=pads_of(layer.affine),
            groups=len(scale),
            mode=layer.affine.padding_mode,
        )

    def forms(self) -> Iterator[Form]:
        """All forms that the layer has, in no order."""
        if self.layer.is_pointwise:
            # The filter of a 1x1 kernel is a factor on any ring: its first entry is all of it.
            kernel = self.weight * self.response[:, :1, :1, None]
            build = self._convolved(kernel, self.pads, self.stride, self.mode)
            yield Form("scaled", 0.0, self._plain_macs(self.outputs), build)
            return
        yield from self._windows()
        if self.layer.grid == "full" and self.weight.shape[1] < FEWEST_UNMERGED:
            yield from self._merged()
        n, m = self.ring
        on_ring, outputs = self._plain_macs(self.ring), math.prod(self.outputs)
        channels = self.layer.out_channels
        if n * m <= LARGEST_MATRIX:
            yield Form("matrix", 0.0, on_ring + channels * outputs * n * m, self._matrix)
        height, width = self.outputs
        half = m // 2 + 1
        products = 2 * half * (n * m + 2 * n * n + 2 * n * height + height * width)
        yield Form("products", 0.0, on_ring + channels * products, self._products)

    def _plain_macs(self, outputs: Pair) -> int:
        return self.weight.numel() * math.prod(outputs)

    def _windows(self) -> Iterator[Form]:
        """Of v, in quadratic windows around its middle; their errors follow from P alone."""
        energy = spectral_energy(self.weight, self.ring, self.dilation, self.before)
        energy = energy * both_halves(torch.arange(energy.shape[2]), self.ring[1])
        whole = torch.fft.rfft2(self.response)
        power = (whole.abs().square() * energy).sum()
        on_ring = self._plain_macs(self.ring)
        for radius in range(1, min(MOST_RADIUS, (min(self.ring) - 1) // 2) + 1):
            rest = self.response - _window(self.response, radius)
            missed = (torch.fft.rfft2(rest).abs().square() * energy).sum()
            side = 2 * radius + 1
            macs = on_ring + self.layer.out_channels * side**2 * math.prod(self.outputs)
            error = (missed / power).sqrt().item()
            yield Form(f"window {side}x{side}", error, macs, lambda r=radius: self._windowed(r))

    def _merged(self) -> Iterator[Form]:
        """Of v * W, reaching out of W by a few pixels; the energy beyond is missed."""
        n, m = self.ring
        extent = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        mirrored = self.response.flip(1, 2).roll((1, 1), (1, 2))  # v[-s] at s
        merged = self.weight.new_zeros(*self.weight.shape[:2], n, m)
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                place = (row * self.dilation[0], column * self.dilation[1])
                tap = self.weight[:, :, row, column, None, None]
                merged += tap * mirrored.roll(place, (1, 2))[:, None]
        power = merged.square().sum()
        for radius in range(MOST_RADIUS + 1):
            height, width = (side + 2 * radius for side in extent)
            pads = tuple(pad + radius for pad in self.pads)
            wraps_twice = self.mode == "circular" and max(pads) > min(self.size)
            if height > n or width > m or wraps_twice:
                return
            kernel = merged.roll((radius, radius), (2, 3))[:, :, :height, :width]
            missed = (1 - kernel.square().sum() / power).clamp(min=0).sqrt().item()
            macs = kernel.numel() * math.prod(self.outputs)
            build = self._convolved(kernel, pads, self.stride, self.mode)
            yield Form(f"merged {height}x{width}", missed, macs, build)

    def _convolved(
        self, kernel: torch.Tensor, pads: Pads, stride: Pair, mode: str
    ) -> Callable[[], nn.Module]:
        """One convolution by a kernel without dilation, with the offset."""
        return lambda: self._whole(
            plain_convolution(
                kernel, self.offset, stride, pads, groups=self.layer.groups, mode=mode
            )
        )

    def _on_ring(self) -> nn.Module:
        """The layer's own convolution, on the whole ring."""
        dilation, groups = self.dilation, self.layer.groups
        return plain_convolution(
            self.weight, None, self.before, self.turn, dilation, groups, self.mode
        )

    def _windowed(self, radius: int) -> nn.Module:
        (top, left), (height, width) = self.first, self.outputs
        side = 2 * radius + 1
        kernel = self.response.roll((radius, radius), (1, 2))[:, :side, :side].flip(1, 2)[:, None]
        rows = (top, top + (height - 1) * self.behind[0] + side)
        columns = (left, left + (width - 1) * self.behind[1] + side)
        closed = nn.CircularPad2d(radius)
        parts = [self._on_ring(), closed]
        if (rows, columns) != ((0, self.ring[0] + 2 * radius), (0, self.ring[1] + 2 * radius)):
            parts.append(Crop(rows, columns))
        filtered = plain_convolution(kernel, self.offset, self.behind, groups=len(kernel))
        return self._whole(*parts, filtered)

    def _kept(self) -> tuple[range, range]:
        return kept_outputs(self.first, self.behind, self.outputs)

    def _matrix(self) -> nn.Module:
        rows, columns = self._kept()
        spectrum = torch.fft.rfft2(self.response)
        matrix = filter_matrix(spectrum, self.ring, tuple(rows), tuple(columns))
        return self._whole(self._on_ring(), MatrixFilter(matrix, self.offset, self.outputs))

    def _products(self) -> nn.Module:
        spectrum = torch.fft.rfft2(self.response)
        return self._whole(self._on_ring(), ProductFilter(spectrum, self.offset, *self._kept()))

    def _whole(self, *parts: nn.Module) -> nn.Module:
        """The parts between a padding before all and the affine behind them."""
        whole = [part for part in (self.outer, *parts, self.affine) if part is not None]
        whole = whole[0] if len(whole) == 1 else nn.Sequential(*whole)
        return whole.eval().requires_grad_(False)


def _correlated(response: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Filters v (C, n, m) and a depthwise convolution by (C, 1, a, b) behind them, on the ring."""
    rows, columns = (side // 2 for side in kernel.shape[2:])
    n, m = response.shape[1:]
    down, right = torch.arange(-rows, n + rows) % n, torch.arange(-columns, m + columns) % m
    return F.conv2d(response[:, down][:, :, right], kernel, groups=len(kernel))


def _window(response: torch.Tensor, radius: int) -> torch.Tensor:
    """v at offsets of at most `radius` in both directions, else 0."""
    near = [
        (torch.arange(side) <= radius) | (torch.arange(side) >= side - radius)
        for side in response.shape[1:]
    ]
    return response * (near[0][:, None] & near[1])
