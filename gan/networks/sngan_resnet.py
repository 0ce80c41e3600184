"""The residual networks of spectral normalization (Miyato et al. 2018, arXiv 1802.05957).

At 32x32, 64x64 and 128x128 as the official code has them (pfnet-research/sngan_projection,
`gen_models/resnet{_32,_64,}.py` and `dis_models/snresnet_{32,64,128}.py`), at 48x48 as table 5 of
the paper. Two sizes are not published: 16x16 is the network of 32x32 on a bottom map of 2x2, and
96x96 that of 64x64 on one of 6x6. Nearest-neighbour upsampling, global sum pooling, a last layer
without bias. Weights are Glorot uniform, of gain sqrt(2) for the 3x3 convolutions inside blocks
and 1 elsewhere; biases start at 0. BatchNorm has Chainer's eps of 2e-5 and momentum 0.1 (decay
0.9).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from convnorm.experiment.config.fields import bounded, check_ranges, require
from gan.networks.attention import SelfAttention
from gan.networks.conditional import Conditioning
from gan.networks.layers import Labelled


@dataclass(frozen=True)
class Layout:
    """Channels in units of the width, and the published widths."""

    generator: tuple[int, ...]  # after the dense layer and after each block
    discriminator: tuple[int, ...]  # after each block
    num_downsampling: int  # that many first blocks of the discriminator halve the map
    generator_width: int
    discriminator_width: int

    def maps(self, image_size: int) -> tuple[list[int], list[int]]:
        """Return the side of the map behind each block, of the generator and the discriminator."""
        bottom = image_size >> (len(self.generator) - 1)
        rising = [bottom << block for block in range(1, len(self.generator))]
        halvings = (
            min(block + 1, self.num_downsampling) for block in range(len(self.discriminator))
        )
        return rising, [image_size >> number for number in halvings]


OFFICIAL_32 = Layout((1, 1, 1, 1), (1, 1, 1, 1), 2, generator_width=256, discriminator_width=128)
TABLE_5 = Layout((8, 4, 2, 1), (1, 2, 4, 8, 16), 4, generator_width=64, discriminator_width=64)
OFFICIAL_64 = Layout(
    (16, 8, 4, 2, 1), (1, 2, 4, 8, 16), 5, generator_width=64, discriminator_width=64
)
OFFICIAL_128 = Layout(
    (16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5, generator_width=64, discriminator_width=64
)
# Side of the images -> layout; the bottom map of the generator follows from both.
LAYOUTS = {
    16: OFFICIAL_32,
    32: OFFICIAL_32,
    48: TABLE_5,
    64: OFFICIAL_64,
    96: OFFICIAL_64,
    128: OFFICIAL_128,
}


@dataclass(frozen=True)
class Options:
    """Channels in units of `Layout`; null is the published number for the image size.

    Args:
        generator_width: of the generator.
        discriminator_width: of the discriminator.
        attention: side of the map that gets self-attention in both networks, see
            gan.networks.attention; it stands behind the first block that has such a map. Null is
            none. SAGAN has 32 at 128 pixels.
    """

    generator_width: int | None = bounded(None, least=1, most=8192)
    discriminator_width: int | None = bounded(None, least=1, most=8192)
    attention: int | None = bounded(None, least=1, most=8192)

    def __post_init__(self):
        check_ranges(self, "model.options")


def generator(
    normalize: Callable[[nn.Module], nn.Module],
    options: Options,
    *,
    image_size: int,
    channels: int,
    z_dim: int,
    conditioning: Conditioning,
) -> Labelled:
    """Return G: z (N, z_dim) -> (N, channels, image_size, image_size) in [-1, 1]."""
    layout, (attended, _) = LAYOUTS[image_size], _attended(options, image_size)
    width = options.generator_width or layout.generator_width
    stages = [width * factor for factor in layout.generator]
    bottom = image_size >> (len(stages) - 1)
    head = [
        _init_glorot(nn.Linear(z_dim, stages[0] * bottom**2)),
        nn.Unflatten(1, (stages[0], bottom, bottom)),
    ]
    blocks = [GeneratorBlock(normalize, *sizes, conditioning) for sizes in pairwise(stages)]
    tail = [
        nn.BatchNorm2d(stages[-1], eps=2e-5),
        nn.ReLU(),
        normalize(_init_glorot(nn.Conv2d(stages[-1], channels, 3, padding=1))),
        nn.Tanh(),
    ]
    _attend(blocks, stages[1:], attended, normalize)
    return Labelled(*head, *blocks, *tail)


def discriminator(
    normalize: Callable[..., nn.Module],
    options: Options,
    *,
    image_size: int,
    channels: int,
    conditioning: Conditioning,
) -> Labelled:
    """Return D: (N, channels, image_size, image_size) -> logits (N,)."""
    layout, (_, attended) = LAYOUTS[image_size], _attended(options, image_size)
    width = options.discriminator_width or layout.discriminator_width
    stages = [width * factor for factor in layout.discriminator]
    blocks = [InputBlock(normalize, channels, stages[0])]
    for index, (in_channels, out_channels) in enumerate(pairwise(stages), start=1):
        downsample = index < layout.num_downsampling
        block = DiscriminatorBlock(normalize, in_channels, out_channels, downsample=downsample)
        blocks.append(block)
    head = _init_glorot(nn.Linear(stages[-1], 1, bias=False))
    last = conditioning.head(normalize, _init_glorot, head)
    _attend(blocks, stages, attended, normalize)
    return Labelled(*blocks, nn.ReLU(), SumPool(), *last)


def _attended(options: Options, image_size: int) -> tuple[int | None, int | None]:
    """Return the places of the blocks in G and in D that self-attention stands behind.

    Raises InputError for a map that one of the networks does not have.
    """
    side, maps = options.attention, LAYOUTS[image_size].maps(image_size)
    if side is None:
        return None, None
    shared = sorted(set(maps[0]) & set(maps[1]))
    require(
        side in shared,
        "model.options.attention",
        side,
        f"the side of a map in both networks of {image_size} pixels "
        f"({', '.join(map(str, shared))}), or null",
    )
    return maps[0].index(side), maps[1].index(side)


def _attend(
    blocks: list[nn.Module],
    channels: list[int],
    place: int | None,
    normalize: Callable[[nn.Module], nn.Module],
) -> None:
    """Put self-attention behind the block at `place`, whose outputs have channels[place] channels.

    It is made last, so that every other layer starts from the weights that it has without it.
    """
    if place is not None:
        blocks.insert(place + 1, SelfAttention(normalize, channels[place]))


class GeneratorBlock(nn.Module):
    """A pre-activation residual block that doubles the map."""

    takes_labels = True

    def __init__(
        self,
        normalize: Callable[[nn.Module], nn.Module],
        in_channels: int,
        out_channels: int,
        conditioning: Conditioning,
    ) -> None:
        super().__init__()
        self.residual = Labelled(
            conditioning.batch_norm(in_channels, eps=2e-5),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            normalize(_conv3x3(in_channels, out_channels)),
            conditioning.batch_norm(out_channels, eps=2e-5),
            nn.ReLU(),
            normalize(_conv3x3(out_channels, out_channels)),
        )
        self.shortcut = nn.Sequential(
            nn.Upsample(scale_factor=2), normalize(_conv1x1(in_channels, out_channels))
        )

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(N, in_channels, H, W), labels (N,) -> (N, out_channels, 2H, 2W)."""
        return self.residual(x, labels) + self.shortcut(x)


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


def _init_glorot(
    layer: nn.Conv2d | nn.Linear | nn.Embedding, gain: float = 1.0
) -> nn.Conv2d | nn.Linear | nn.Embedding:
    nn.init.xavier_uniform_(layer.weight, gain)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    return layer
