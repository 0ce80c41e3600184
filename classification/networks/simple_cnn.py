"""A small CNN for small images: four 3x3 convolutions, of which every second halves the map."""

from dataclasses import dataclass

from torch import nn

from classification.networks.layers import Builder
from convnorm.experiment.config.fields import bounded, check_ranges

# (channels in units of the width, stride) of each convolution.
LAYOUT = ((1, 1), (2, 2), (2, 1), (4, 2))


@dataclass(frozen=True)
class Options:
    """width: channels of the first convolution, 4 times as many in the last."""

    width: int = bounded(32, least=1, most=8192)

    def __post_init__(self):
        check_ranges(self, "model.options")


def features(build: Builder, options: Options, *, channels: int) -> tuple[nn.Sequential, int]:
    """Return images (N, channels, H, W) -> (N, 4 * width, H / 4, W / 4), and these channels."""
    layers = []
    in_channels = channels
    for factor, stride in LAYOUT:
        out_channels = factor * options.width
        layers += build.activated(in_channels, out_channels, 3, stride, padding=1)
        in_channels = out_channels
    return nn.Sequential(*layers), in_channels
