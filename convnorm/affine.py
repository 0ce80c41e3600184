"""The learned affine behind ConvNorm's filter: a depthwise convolution with bias."""

import torch
from torch import nn

AFFINE_INITS = ("default", "dirac")


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
