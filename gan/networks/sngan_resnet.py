"""The residual networks of spectral normalization (Miyato et al. 2018, arXiv 1802.05957).

At 32x32 as the official code has them (pfnet-research/sngan_projection, `gen_models/resnet_32.py`
and `dis_models/snresnet_32.py`), at 48x48 as table 5 of the paper; 16x16 is the network of 32x32
on a bottom map of 2x2. Nearest-neighbour upsampling, global sum pooling, a last layer without
bias. Weights are Glorot uniform, of gain sqrt(2) for the 3x3 convolutions inside blocks and 1
elsewhere; biases start at 0. BatchNorm has Chainer's eps of 2e-5 and momentum 0.1 (decay 0.9).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from convnorm.experiment.config.fields import bounded, check_ranges
from gan.networks.layers import Unconditional


@dataclass(frozen=True)
class Layout:
    """Channels in units of the width, and the published widths."""

    generator: tuple[int, ...]  # after the dense layer and after each block
    discriminator: tuple[int, ...]  # after each block
    num_downsampling: int  # that many first blocks of the discriminator halve the map
    generator_width: int
    discriminator_width: int


OFFICIAL_32 = Layout((1, 1, 1, 1), (1, 1, 1, 1), 2, generator_width=256, discriminator_width=128)
TABLE_5 = Layout((8, 4, 2, 1), (1, 2, 4, 8, 16), 4, generator_width=64, discriminator_width=64)
LAYOUTS = {16: OFFICIAL_32, 32: OFFICIAL_32, 48: TABLE_5}


@dataclass(frozen=True)
class Options:
    """Channels in units of `Layout`; null is the published number for the image size.

    Args:
        generator_width: of the generator.
        discriminator_width: of the discriminator.
    """

    generator_width: int | None = bounded(None, least=1, most=8192)
    discriminator_width: int | None = bounded(None, least=1, most=8192)

    def __post_init__(self):
        check_ranges(self, "model.options")


def generator(
    normalize: Callable[[nn.Module], nn.Module],
    options: Options,
    *,
    image_size: int,
    channels: int,
    z_dim: int,
) -> Unconditional:
    """Return G: z (N, z_dim) -> (N, channels, image_size, image_size) in [-1, 1]."""
    bottom, layout = image_size // 8, LAYOUTS[image_size]
    width = options.generator_width or layout.generator_width
    stages = [width * factor for factor in layout.generator]
    return Unconditional(
        _init_glorot(nn.Linear(z_dim, stages[0] * bottom**2)),
        nn.Unflatten(1, (stages[0], bottom, bottom)),
        *(GeneratorBlock(normalize, *in_and_out) for in_and_out in pairwise(stages)),
        nn.BatchNorm2d(stages[-1], eps=2e-5),
        nn.ReLU(),
        normalize(_init_glorot(nn.Conv2d(stages[-1], channels, 3, padding=1))),
        nn.Tanh(),
    )


def discriminator(
    normalize: Callable[..., nn.Module], options: Options, *, image_size: int, channels: int
) -> Unconditional:
    """Return D: (N, channels, image_size, image_size) -> logits (N,)."""
    layout = LAYOUTS[image_size]
    width = options.discriminator_width or layout.discriminator_width
    stages = [width * factor for factor in layout.discriminator]
    blocks = [InputBlock(normalize, channels, stages[0])]
    for index, (in_channels, out_channels) in enumerate(pairwise(stages), start=1):
        downsample = index < layout.num_downsampling
        block = DiscriminatorBlock(normalize, in_channels, out_channels, downsample=downsample)
        blocks.append(block)
    head = _init_glorot(nn.Linear(stages[-1], 1, bias=False))
    return Unconditional(*blocks, nn.ReLU(), SumPool(), normalize(head), nn.Flatten(0))


class GeneratorBlock(nn.Module):
    """A pre-activation residual block that doubles the map."""

    def __init__(
        self, normalize: Callable[[nn.Module], nn.Module], in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels, eps=2e-5),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            normalize(_conv3x3(in_channels, out_channels)),
            nn.BatchNorm2d(out_channels, eps=2e-5),
            nn.ReLU(),
            normalize(_conv3x3(out_channels, out_channels)),
        )
        self.shortcut = nn.Sequential(
            nn.Upsample(scale_factor=2), normalize(_conv1x1(in_channels, out_channels))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, 2H, 2W)."""
        return self.residual(x) + self.shortcut(x)


# A plain 1x1 convolution commutes with average pooling, but a normalizer may depend on the size
# of the map, so the shortcuts keep the published order: the input block pools before its 1x1
# convolution, the other blocks after it.


class InputBlock(nn.Module):
    """The discriminator's first block: no activation on the image, halves the map."""

    def __init__(
        self, normalize: Callable[..., nn.Module], in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            normalize(_conv3x3(in_channels, out_channels), at_input=True),
            nn.ReLU(),
            normalize(_conv3x3(out_channels, out_channels)),
            nn.AvgPool2d(2),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2), normalize(_conv1x1(in_channels, out_channels), at_input=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H/2, W/2)."""
        return self.residual(x) + self.shortcut(x)


class DiscriminatorBlock(nn.Module):
    """A pre-activation residual block; the shortcut is the identity unless the shape changes."""

    def __init__(
        self,
        normalize: Callable[..., nn.Module],
        in_channels: int,
        out_channels: int,
        *,
        downsample: bool,
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.ReLU(),
            normalize(_conv3x3(in_channels, in_channels)),
            nn.ReLU(),
            normalize(_conv3x3(in_channels, out_channels)),
        )
        self.shortcut = (
            normalize(_conv1x1(in_channels, out_channels))
            if downsample or in_channels != out_channels
            else nn.Identity()
        )
        # Pooling the sum is pooling both branches, once.
        self.pool = nn.AvgPool2d(2) if downsample else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W), or half of H and W."""
        return self.pool(self.residual(x) + self.shortcut(x))


class SumPool(nn.Module):
    """Sum over the map, where most networks average."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C)."""
        return x.sum(dim=(2, 3))


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return _init_glorot(nn.Conv2d(in_channels, out_channels, 3, padding=1), gain=math.sqrt(2))


def _conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    return _init_glorot(nn.Conv2d(in_channels, out_channels, 1))


def _init_glorot(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Conv2d | nn.Linear:
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
