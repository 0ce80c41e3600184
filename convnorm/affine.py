"""The learned affine behind ConvNorm's filter: a depthwise convolution with bias."""

import torch
from torch import nn

from convnorm.convolution import as_batch, as_given
from convnorm.tables import Pair

AFFINE_INITS = ("default", "dirac")

# torch.fx does not trace into these, whose ways depend on the input.
torch.fx.wrap("as_batch")
torch.fx.wrap("as_given")


def odd_size(kernel: Pair) -> Pair:
    """The size of a kernel rounded down to odd, so that an affine keeps the size of the map."""
    height, width = (k - 1 + k % 2 for k in kernel)
    return height, width


def depthwise_affine(
    channels: int,
    size: tuple[int, int],
    init: str,
    circular: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Conv2d:
    """The affine of maps of so many channels, as ConvNorm2d's `affine_init` starts it.

    size: of its kernel; an odd one keeps the size of a map. circular: pads by the map itself, else
    by zeros.
    """
    affine = nn.Conv2d(
        channels,
        channels,
        size,
        padding=tuple((k - 1) // 2 for k in size),  # "same" is a word, which int8 refuses
        groups=channels,
        padding_mode="circular" if circular else "zeros",
        device=device,
        dtype=dtype,
    )
    if init == "dirac":
        nn.init.dirac_(affine.weight, groups=channels)
        nn.init.zeros_(affine.bias)
    return affine


def behind_filter(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    affine: nn.Module | None,
    batch_norm: nn.Module | None,
) -> torch.Tensor:
    """What follows the filter and the convolution, (N, O, H, W) or (O, H, W), where it is there."""
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None, None]
    if affine is not None:
        y = affine(y)
    if batch_norm is not None:
        y = as_given(batch_norm(as_batch(y)), y)
    return y
