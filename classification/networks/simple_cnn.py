"""A small CNN for small images: four 3x3 convolutions, of which every second halves the map."""

from torch import nn

from classification.networks.layers import Activation, Conv

# (channels in units of the width, stride) of each convolution.
LAYOUT = ((1, 1), (2, 2), (2, 1), (4, 2))


def features(
    conv: Conv, activation: Activation, *, channels: int, width: int
) -> tuple[nn.Sequential, int]:
    """Return images (N, channels, H, W) -> (N, 4 width, H / 4, W / 4), and these channels."""
    layers = []
    in_channels = channels
    for factor, stride in LAYOUT:
        out_channels = factor * width
        layers += [conv(in_channels, out_channels, 3, stride, padding=1), activation(out_channels)]
        in_channels = out_channels
    return nn.Sequential(*layers), in_channels
