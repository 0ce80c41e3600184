"""Pre-activation residual networks (He et al., ECCV 2016, arXiv 1603.05027) and wide ones
(Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146): the sizes that robustness is published for.

With w the width, a first convolution 3x3 is followed by stages of basic blocks with w, 2w, 4w, ...
channels, of which all but the first halve the map; normalizer and activation end the last:

    block    norm, activation, conv 3x3, norm, activation, conv 3x3; plus shortcut

    choice                    preact_resnet18           wrn_28_10, wrn_34_10       source
    shortcut, equal shape     the block's input         the same                   papers
    shortcut, new shape       conv 1x1 of a block's activated input, the same      their code
    stages                    4, 64 channels first      3, 16 k first, k = 10      papers
    first convolution         64 channels               16 channels                papers
    dropout                   none                      none                       RobustBench

A convolution has what normalizes itself, such as ConvNorm's filter and affine or spectral norm of
its weight. What normalizes a map, BatchNorm behind ConvNorm included, stands before an activation,
on the sum of block and shortcut too.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from classification.networks.layers import Builder
from convnorm.experiment.config.fields import bounded, check_ranges


class Block(nn.Module):
    """branch(a) + x, or branch(a) + shortcut(a) for a new shape; a is the activated input."""

    def __init__(self, build: Builder, in_channels: int, width: int, stride: int):
        super().__init__()
        self.activated = nn.Sequential(*build.preactivated(in_channels))
        self.branch = nn.Sequential(
            build.bare(in_channels, width, 3, stride, padding=1),
            *build.preactivated(width),
            build.bare(width, width, 3, padding=1),
        )
        self.shortcut = None
        if stride != 1 or in_channels != width:
            self.shortcut = build.bare(in_channels, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.activated(x)
        return self.branch(a) + (x if self.shortcut is None else self.shortcut(a))


@dataclass(frozen=True)
class Options:
    """width: channels of the first convolution and of the first stage."""

    width: int = bounded(64, least=1, most=8192)

    def __post_init__(self):
        check_ranges(self, "model.options")

    @property
    def stage_width(self) -> int:
        """Channels of the first stage."""
        return self.width


@dataclass(frozen=True)
class WideOptions:
    """width: channels of the first convolution; `factor` times as many has the first stage."""

    width: int = bounded(16, least=1, most=1024)
    factor: int = bounded(10, least=1, most=64)

    def __post_init__(self):
        check_ranges(self, "model.options")

    @property
    def stage_width(self) -> int:
        """Channels of the first stage."""
        return self.width * self.factor


def total_stride(depths: tuple[int, ...]) -> int:
    """Of all layers together: each stage but the first halves the map."""
    return 2 ** (len(depths) - 1)


def features(
    build: Builder, options: Options | WideOptions, *, channels: int, depths: tuple[int, ...]
) -> tuple[nn.Sequential, int]:
    """Return images (N, channels, H, W) -> maps, smaller by `total_stride`; their channels.

    `depths`: how many blocks each stage has.
    """
    layers = OrderedDict(stem=build.bare(channels, options.width, 3, padding=1))
    in_channels = options.width
    for index, depth in enumerate(depths):
        width = options.stage_width * 2**index
        blocks = []
        for block in range(depth):
            blocks.append(Block(build, in_channels, width, 2 if index > 0 and block == 0 else 1))
            in_channels = width
        layers[f"stage{index + 1}"] = nn.Sequential(*blocks)
    layers["end"] = nn.Sequential(*build.preactivated(in_channels))
    return nn.Sequential(layers), in_channels
