"""VGG (Simonyan & Zisserman, ICLR 2015, arXiv 1409.1556, table 1: A, B, D, E) in its CIFAR form.

Five stages of 3x3 convolutions with w, 2w, 4w, 8w and 8w channels, w being the width, 64 by
default; 2x2 max pooling ends each. One linear layer takes the place of the paper's three, as is
common at 32x32, where the last map is a single point.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from classification.networks.layers import Builder
from convnorm.experiment.config.fields import bounded, check_ranges


@dataclass(frozen=True)
class Options:
    """width: channels of the first stage."""

    width: int = bounded(64, least=1, most=8192)

    def __post_init__(self):
        check_ranges(self, "model.options")


def features(
    build: Builder, options: Options, *, channels: int, depths: tuple[int, ...]
) -> tuple[nn.Sequential, int]:
    """Return images (N, channels, H, W) -> maps of 1/32 of the size, and their channels.

    `depths` are the convolutions of each stage.
    """
    stages = OrderedDict()
    in_channels = channels
    for index, depth in enumerate(depths):
        out_channels = options.width * min(2**index, 8)
        layers = []
        for _ in range(depth):
            layers += build.activated(in_channels, out_channels, 3, padding=1)
            in_channels = out_channels
        stages[f"stage{index + 1}"] = nn.Sequential(*layers, nn.MaxPool2d(2))
    return nn.Sequential(stages), in_channels
