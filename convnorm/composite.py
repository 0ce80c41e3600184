"""What a layer is made of: a convolution, and what scales or filters each of its channels.

That is all of a layer that has singular values in closed form, see convnorm.symbols. Each kind of
the catalogue is one, but for those that divide an image by its own statistics.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from convnorm.batch_norm import BATCH_NORMS, batch_norm_factor
from convnorm.chain import Chain
from convnorm.convolution import pads_of
from convnorm.functional import spectral_gain
from convnorm.layer import ConvNorm2d
from convnorm.operator_norm import UnitOperatorNorm
from convnorm.plain import own_method
from convnorm.scale import Factor
from convnorm.tables import Pair, turns_at


class NoSymbol(ValueError):
    """A layer has no singular values in closed form, or no bound; the message says why."""


@dataclass(frozen=True)
class Part:
    """What stands behind or before a convolution and multiplies its matrix at every frequency.

    place: "inputs" for one factor an input channel; "ring" for a filter of each output channel
        before the stride, "map" behind it.
    factor: the size (n, m) of a ring -> the factors on its half grid, (C, n, m // 2 + 1), or
        (C, 1, 1) where they are equal at all frequencies.
    reach: by how many pixels the filter reaches beyond a map that has zeros around it.
    """

    name: str
    place: Literal["inputs", "ring", "map"]
    factor: Callable[[Pair], torch.Tensor]
    reach: Pair = (0, 0)


@dataclass(frozen=True)
class Composite:
    """A convolution and its parts in their order, all in one dtype.

    conv: for its geometry. weight: (O, I / groups, k_h, k_w), as the layer uses it.
    missing: why what follows the last part is left out; None where nothing is.
    """

    conv: nn.Conv2d
    weight: torch.Tensor
    parts: tuple[Part, ...]
    missing: str | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of what the layer is after the convolution alone and after each of its parts."""
        return ("conv", *(part.name for part in self.parts))


@torch.no_grad()
def composite_of(
    layer: nn.Module, behind: nn.Module | None = None, dtype: torch.dtype = torch.float32
) -> Composite:
    """Take a layer apart, which must be in evaluation mode.

    layer: a convolution, what a `Normalizer` returned, or a ConvNorm2d. behind: a BatchNorm that
    takes just what the layer returns. Raises NoSymbol where the convolution itself has no symbol.
    """
    modules = [*_flat(layer), *([] if behind is None else [behind])]
    place = next((i for i, m in enumerate(modules) if _is_convolution(m)), None)
    if place is None:
        raise NoSymbol(f"{type(layer).__name__} holds no convolution of its own")
    core = modules[place].layer if isinstance(modules[place], UnitOperatorNorm) else modules[place]
    conv, weight = _convolution(core, dtype)
    parts, missing = [], None
    try:
        for module in modules[:place]:
            parts.append(_channel_scale(module, "inputs", dtype))
        if isinstance(core, ConvNorm2d):
            for part in _of_conv_norm(core, weight, dtype):
                parts.append(part)  # those before one that has no symbol stay
        if isinstance(modules[place], UnitOperatorNorm):
            parts.append(_of_operator_norm(modules[place], dtype))
        for module in modules[place + 1 :]:
            is_filter = isinstance(module, nn.Conv2d)
            parts.append(
                _affine(module, "map", dtype) if is_filter else _channel_scale(module, "map", dtype)
            )
    except NoSymbol as error:
        missing = str(error)
    return Composite(conv, weight, tuple(parts), missing)


def _flat(module: nn.Module) -> list[nn.Module]:
    """The modules that run one after another, of a layer and what normalizes it."""
    if isinstance(module, nn.Sequential):
        return [inner for child in module for inner in _flat(child)]
    return [module]


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | UnitOperatorNorm)


def _convolution(conv: nn.Conv2d, dtype: torch.dtype) -> tuple[nn.Conv2d, torch.Tensor]:
    kind = parametrize.type_before_parametrizations(conv)
    if own_method(kind) and not isinstance(conv, ConvNorm2d):
        raise NoSymbol(f"{kind.__name__} has a forward of its own")
    return conv, conv.weight.detach().to(dtype)


def _of_conv_norm(layer: ConvNorm2d, weight: torch.Tensor, dtype: torch.dtype) -> Iterator[Part]:
    """Gain (with the layer's factor), affine and BatchNorm.

    The published grid filters before the stride and the native one behind it; a circular affine
    shares the ring of the filter.
    """
    pointwise = layer.is_pointwise
    place = "ring" if layer.grid == "full" and not pointwise else "map"
    stride = (1, 1) if place == "ring" or pointwise else layer.stride

    def gain(ring: Pair) -> torch.Tensor:
        ring = (1, 1) if pointwise else ring
        return layer.scale * spectral_gain(weight, ring, layer.dilation, stride, layer.eps)

    yield Part("gain", place, gain)
    if layer.affine is not None:
        on_ring = layer.affine_mode == "circular"
        yield _affine(layer.affine, place if on_ring else "map", dtype, wraps=on_ring)
    if layer.batch_norm is not None:
        yield _channel_scale(layer.batch_norm, "map", dtype)


def _of_operator_norm(layer: UnitOperatorNorm, dtype: torch.dtype) -> Part:
    norm = layer.operator_norm().to(dtype).clamp(min=1e-12) / layer.scale
    return Part("norm", "map", lambda ring: (1 / norm).view(1, 1, 1))


def _affine(conv: nn.Conv2d, place: str, dtype: torch.dtype, wraps: bool = False) -> Part:
    """A convolution of each channel by itself. wraps: on a ring, whatever its padding is."""
    kernel = conv.kernel_size
    left, right, top, bottom = pads_of(conv)
    keeps_size = (top + bottom, left + right) == (kernel[0] - 1, kernel[1] - 1)
    alone = conv.groups == conv.in_channels == conv.out_channels
    if not (alone and keeps_size and conv.stride == conv.dilation == (1, 1)):
        raise NoSymbol(f"{conv} is a second convolution, which mixes channels or moves the map")
    weight = conv.weight.detach().to(dtype)[:, 0]
    on_ring = wraps or conv.padding_mode == "circular"
    if not on_ring and conv.padding_mode != "zeros":
        raise NoSymbol(f"an affine with padding {conv.padding_mode!r}")
    reach = (0, 0) if on_ring else (kernel[0] - 1, kernel[1] - 1)

    def factor(ring: Pair) -> torch.Tensor:
        if kernel == (1, 1):
            return weight
        rows, columns = ring
        along = waves(torch.arange(rows), kernel[0], rows, 1, top, weight)
        across = waves(torch.arange(columns // 2 + 1), kernel[1], columns, 1, left, weight)
        return torch.einsum("oij,ui,vj->ouv", weight.to(along.dtype), along, across)

    return Part("affine", place, factor, reach)


def waves(
    frequencies: torch.Tensor, taps: int, n: int, dilation: int, centre: int, like: torch.Tensor
) -> torch.Tensor:
    """exp(2 pi i f t / n) for frequencies f (rows) and taps t (columns), complex, as `like`.

    The taps are dilation * (k - centre), k = 0 .. taps - 1.
    """
    t = dilation * (torch.arange(taps, device=frequencies.device) - centre)
    angles = turns_at(frequencies, t, n)
    complex_dtype = torch.promote_types(like.dtype, torch.complex64)
    return torch.polar(torch.ones_like(angles), angles).to(like.device, complex_dtype)


def _channel_scale(module: nn.Module, place: str, dtype: torch.dtype) -> Part:
    """What multiplies each channel by a number in evaluation mode."""
    if isinstance(module, BATCH_NORMS):
        if module.running_var is None:
            raise NoSymbol(f"{type(module).__name__} without running statistics has no symbol")
        scale, name = batch_norm_factor(module, dtype), "batch_norm"
    elif isinstance(module, Chain):
        scale, name = module(torch.ones_like(module.running_square)[None, :, None, None]), "chain"
    elif isinstance(module, Factor):
        scale, name = torch.tensor([module.factor]), "factor"
    else:
        raise NoSymbol(
            f"{type(module).__name__} has no symbol: it is no fixed factor of each channel"
        )
    factors = scale.flatten().to(dtype)[:, None, None]
    return Part(name, place, lambda ring: factors)
