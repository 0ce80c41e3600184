"""Residual networks (He et al., CVPR 2016, arXiv 1512.03385, table 1).

With w the width, 64 by default, four stages of blocks have w, 2w, 4w and 8w channels (4 times as
many where the blocks are bottlenecks), and all but the first halve the map. Read "conv" as a
convolution with what normalizes it (where that stands, `Builder` decides):

    basic block   conv 3x3, activation, conv 3x3; plus shortcut; activation
    bottleneck    conv 1x1, activation, conv 3x3, activation, conv 1x1 to 4 times the channels;
                  plus shortcut; activation

Activations of a block that see equally many channels are one, as in ConvNorm's code: an SReLU
has its numbers once. The code has no bottleneck with SReLU.

    choice                     value                                  source
    shortcut, new shape        conv 1x1 with the stride (option B)    paper, section 3.3
    stride of a bottleneck     in its 3x3 convolution                 torchvision ("v1.5")
    "imagenet" stem            conv 7x7 / 2, max pooling 3x3 / 2      paper, table 1
    "cifar" stem               conv 3x3 / 1, no pooling               common use at 32x32
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from classification.networks.layers import Builder
from convnorm.experiment.config.fields import bounded, check_ranges

# (build, in_channels, width, stride) -> (branch, the number of its output channels, the activation
# behind the sum)
Residual = Callable[..., tuple[nn.Sequential, int, nn.Module]]


class Block(nn.Module):
    """activation(residual(x) + shortcut(x))."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module, activation: nn.Module):
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.residual(x) + self.shortcut(x))


def basic(
    build: Builder, in_channels: int, width: int, stride: int
) -> tuple[nn.Sequential, int, nn.Module]:
    """The residual branch of a basic block; see `Residual`."""
    activation = build.activation(width)
    branch = nn.Sequential(
        *build.activated(in_channels, width, 3, stride, padding=1, activation=activation),
        build.conv(width, width, 3, padding=1),
    )
    return branch, width, activation


def bottleneck(
    build: Builder, in_channels: int, width: int, stride: int
) -> tuple[nn.Sequential, int, nn.Module]:
    """The residual branch of a bottleneck; see `Residual`."""
    activation = build.activation(width)
    branch = nn.Sequential(
        *build.activated(in_channels, width, 1, activation=activation),
        *build.activated(width, width, 3, stride, padding=1, activation=activation),
        build.conv(width, 4 * width, 1),
    )
    return branch, 4 * width, build.activation(4 * width)


def _stage(
    build: Builder,
    residual: Residual,
    depth: int,
    in_channels: int,
    width: int,
    stride: int,
) -> tuple[nn.Sequential, int]:
    """`depth` blocks, the first of which has the stride; and the number of output channels."""
    blocks = []
    for _ in range(depth):
        branch, out_channels, activation = residual(build, in_channels, width, stride)
        shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            shortcut = build.conv(in_channels, out_channels, 1, stride)
        blocks.append(Block(branch, shortcut, activation))
        in_channels, stride = out_channels, 1
    return nn.Sequential(*blocks), in_channels


def cifar_stem(build: Builder, channels: int, width: int) -> nn.Sequential:
    """(N, channels, H, W) -> (N, width, H, W)."""
    return nn.Sequential(*build.activated(channels, width, 3, padding=1))


def imagenet_stem(build: Builder, channels: int, width: int) -> nn.Sequential:
    """(N, channels, H, W) -> (N, width, H / 4, W / 4)."""
    return nn.Sequential(
        *build.activated(channels, width, 7, 2, padding=3), nn.MaxPool2d(3, 2, padding=1)
    )


@dataclass(frozen=True)
class Options:
    """width: channels of the first stage. stem: imagenet is for large images."""

    width: int = bounded(64, least=1, most=8192)
    stem: Literal["cifar", "imagenet"] = "cifar"

    def __post_init__(self):
        check_ranges(self, "model.options")


STEMS = {"cifar": cifar_stem, "imagenet": imagenet_stem}


def total_stride(options: Options) -> int:
    """Of all layers together: the last three stages halve the map, as "imagenet" does twice."""
    return {"cifar": 8, "imagenet": 32}[options.stem]


def features(
    build: Builder,
    options: Options,
    *,
    channels: int,
    residual: Residual,
    depths: tuple[int, ...],
) -> tuple[nn.Sequential, int]:
    """Return images (N, channels, H, W) -> maps, smaller by `total_stride`; their channels.

    `residual`: `basic` or `bottleneck`; `depths`: how many blocks each stage has.
    """
    layers = OrderedDict(stem=STEMS[options.stem](build, channels, options.width))
    in_channels = options.width
    for index, depth in enumerate(depths):
        layers[f"stage{index + 1}"], in_channels = _stage(
            build,
            residual,
            depth,
            in_channels,
            width=options.width * 2**index,
            stride=1 if index == 0 else 2,
        )
    return nn.Sequential(layers), in_channels
