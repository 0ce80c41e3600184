"""The standard CNN of spectral normalization (Miyato et al. 2018, arXiv 1802.05957, table 3).

Published at 32x32 and 48x48; the dense layers alone depend on the size, so any height and width
that are multiples of 8 work. The table leaves open, and the code of the same laboratory
(pfnet-research/chainer-gan-lib) or the formula settles:

- BatchNorm and ReLU follow the generator's dense layer. Without them the dense layer and the
  first transposed convolution would be two linear maps in a row, that is one.
- That BatchNorm is per channel, so it means the same at every image size.
- Weights are drawn from N(0, 0.02), biases are on and start at 0.
- BatchNorm has Chainer's eps of 2e-5 and momentum 0.1 (Chainer: decay 0.9).
- The discriminator has two sets of widths under one name: the table's (2,935,873 parameters at
  32x32) and that of the laboratory's code (5,860,865). The slope is 0.1 in both, as in the paper.
"""

import math
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from convnorm.experiment.data.pixels import Size, height_and_width
from gan.networks.conditional import UNCONDITIONAL, Conditioning
from gan.networks.dcgan import init_normal
from gan.networks.layers import Labelled, Widths

# Channels of the discriminator's seven convolutions in units of its width.
TABLE_3 = (1, 1, 2, 2, 4, 4, 8)
WIDE = (1, 2, 2, 4, 4, 8, 8)


def generator(
    normalize: Callable[[nn.Module], nn.Module],
    options: Widths,
    *,
    image_size: Size,
    channels: int,
    z_dim: int,
    conditioning: Conditioning,
) -> Labelled:
    """Return G: z (N, z_dim) -> (N, channels, H, W) of `image_size` in [-1, 1].

    With w the width: dense to 8 w channels, then 4 w, 2 w and w after the three transposed
    convolutions.
    """
    width, bottom = options.generator_width, _bottom(image_size)
    layers = [
        init_normal(nn.Linear(z_dim, 8 * width * math.prod(bottom))),
        nn.Unflatten(1, (8 * width, *bottom)),
        conditioning.batch_norm(8 * width, eps=2e-5),
        nn.ReLU(),
    ]
    for in_channels, out_channels in pairwise((8 * width, 4 * width, 2 * width, width)):
        knows = conditioning if out_channels > width else UNCONDITIONAL
        layers += [
            normalize(init_normal(nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1))),
            knows.batch_norm(out_channels, eps=2e-5),
            nn.ReLU(),
        ]
    last = init_normal(nn.Conv2d(width, channels, 3, 1, 1))
    return Labelled(*layers, normalize(last), nn.Tanh())


def discriminator(
    normalize: Callable[..., nn.Module],
    options: Widths,
    *,
    image_size: Size,
    channels: int,
    factors: tuple[int, ...],
    conditioning: Conditioning,
) -> Labelled:
    """Return D: (N, channels, H, W) of `image_size` -> logits (N,).

    `factors` are the channels in units of the width. 3x3 convolutions keep the size and
    4x4 convolutions halve it, in turn.
    """
    width = options.discriminator_width
    stages = [channels, *(width * factor for factor in factors)]
    layers = []
    for index, (in_channels, out_channels) in enumerate(pairwise(stages)):
        kernel_size, stride = ((3, 1), (4, 2))[index % 2]
        conv = init_normal(nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=1))
        layers += [normalize(conv, at_input=index == 0), nn.LeakyReLU(0.1)]
    head = init_normal(nn.Linear(stages[-1] * math.prod(_bottom(image_size)), 1))
    return Labelled(*layers, nn.Flatten(), *conditioning.head(normalize, init_normal, head))


def _bottom(image_size: Size) -> tuple[int, int]:
    """Height and width of the smallest map, which three layers double or have halved."""
    height, width = height_and_width(image_size)
    return height // 8, width // 8
