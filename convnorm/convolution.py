"""The plain convolution with any padding, and its adjoint.

Padding is (left, right, top, bottom), as torch.nn.functional.pad counts, and its mode one of
nn.Conv2d's; strides and dilations are pairs.
"""

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.tables import Pair

Pads = tuple[int, int, int, int]  # left, right, top, bottom


def pads_of(conv: nn.Conv2d) -> Pads:
    """How the layer pads now, whatever it was made with: as nn.Conv2d reads its attributes.

    "same" puts an odd pixel right and below. Of a mode other than zeros, nn.Conv2d keeps the
    padding that it was made with.
    """
    if conv.padding_mode != "zeros":
        return tuple(conv._reversed_padding_repeated_twice)
    if conv.padding == "same":
        vertical, horizontal = (
            d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        )
        left, top = horizontal // 2, vertical // 2
        return left, horizontal - left, top, vertical - top
    vertical, horizontal = (0, 0) if conv.padding == "valid" else conv.padding
    return horizontal, horizontal, vertical, vertical


def as_batch(x: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> (1, C, H, W); a batch stays as it is."""
    return x if x.dim() == 4 else x[None]


def as_given(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What was made of `as_batch(x)`, without its N where x has none."""
    return y if x.dim() == 4 else y[0]


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pads, dilation: Pair) -> Pair:
    """(H', W') of a convolution of (H, W) maps; ValueError where the kernel does not fit."""
    left, right, top, bottom = padding
    padded = (size[0] + top + bottom, size[1] + left + right)
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    if extent[0] > padded[0] or extent[1] > padded[1]:
        raise ValueError(f"the kernel covers {extent} pixels, more than the padded input {padded}")
    return (padded[0] - extent[0]) // stride[0] + 1, (padded[1] - extent[1]) // stride[1] + 1


def pad(x: torch.Tensor, padding: Pads, mode: str) -> torch.Tensor:
    """x: (N, C, H, W) -> (N, C, H + top + bottom, W + left + right)."""
    return F.pad(x, padding, "constant" if mode == "zeros" else mode)


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Pair,
    padding: Pads,
    dilation: Pair,
    groups: int,
    mode: str,
) -> torch.Tensor:
    """(N, I, H, W) -> (N, O, H', W')."""
    left, right, top, bottom = padding
    if mode == "zeros" and (left, top) == (right, bottom):  # needs no padded copy of the map
        return F.conv2d(x, weight, None, stride, (top, left), dilation, groups)
    return F.conv2d(pad(x, padding, mode), weight, None, stride, 0, dilation, groups)


def pad_adjoint(x: torch.Tensor, padding: Pads, mode: str) -> torch.Tensor:
    """Each number of a padded map goes back to the place that it was copied from."""
    left, right, top, bottom = padding
    height, width = x.shape[2] - top - bottom, x.shape[3] - left - right
    if mode == "zeros":
        return x[:, :, top : top + height, left : left + width]
    places = torch.arange(height * width, dtype=torch.float64, device=x.device)
    places = pad(places.view(1, 1, height, width), padding, mode).flatten().long()
    maps = x.new_zeros(*x.shape[:2], height * width)
    return maps.index_add(2, places, x.flatten(2)).unflatten(2, (height, width))


def convolve_adjoint(
    y: torch.Tensor,
    weight: torch.Tensor,
    size: Pair,
    stride: Pair,
    padding: Pads,
    dilation: Pair,
    groups: int,
    mode: str,
) -> torch.Tensor:
    """(N, O, H', W') -> (N, I, H, W) with <convolve(x), y> = <x, convolve_adjoint(y)> for all x.

    size: (H, W), which a stride leaves open.
    """
    left, right, top, bottom = padding
    inputs = weight.shape[1] * groups
    padded = (len(y), inputs, size[0] + top + bottom, size[1] + left + right)
    geometry = (stride, 0, dilation, groups)
    return pad_adjoint(torch.nn.grad.conv2d_input(padded, weight, y, *geometry), padding, mode)
