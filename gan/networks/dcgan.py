"""DCGAN: transposed convolutions against strided convolutions (Radford et al. 2016).

The paper (arXiv 1511.06434) draws the generator at 64x64 only, and no two code bases agree on the
other sizes. Here a smaller image drops the widest stages, so that every size starts from and
ends at a 4x4 map. With w the width, 64 by default:

    image   generator: dense, then transposed convolutions   discriminator: convolutions
    16x16   4x4x2w, w, channels                              w, 2w, dense
    32x32   4x4x4w, 2w, w, channels                          w, 2w, 4w, dense
    64x64   4x4x8w, 4w, 2w, w, channels                      w, 2w, 4w, 8w, dense

    choice              value                                               source
    activations         G: BatchNorm and ReLU, tanh last; D: leaky ReLU     paper, section 3
    slope of D          0.2                                                 paper, section 4
    weights             N(0, 0.02)                                          paper, section 4
    BatchNorm           weight N(1, 0.02); eps 1e-5, momentum 0.1           PyTorch example
    convolutions        kernel 4, stride 2, padding 1 (paper: 5x5)          PyTorch example
    widths of G         half of those in figure 1                           PyTorch example
    biases, from 0      in G where no BatchNorm follows, everywhere in D    this project
    BatchNorm in D      only if the normalizer brings it                    this project
"""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from gan.networks.layers import Labelled, Widths

SIZES = (16, 32, 64)  # of images, which are squares


def generator(
    normalize: Callable[[nn.Module], nn.Module],
    options: Widths,
    *,
    image_size: int,
    channels: int,
    z_dim: int,
) -> Labelled:
    """Return G: z (N, z_dim) -> (N, channels, image_size, image_size) in [-1, 1]."""
    width = options.generator_width
    stages = [width * factor for factor in reversed(_factors(image_size))]
    layers = [
        init_normal(nn.Linear(z_dim, 4 * 4 * stages[0], bias=False)),
        nn.Unflatten(1, (stages[0], 4, 4)),
        _batch_norm(stages[0]),
        nn.ReLU(),
    ]
    for in_channels, out_channels in pairwise(stages):
        conv = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False)
        layers += [
            normalize(init_normal(conv)),
            _batch_norm(out_channels),
            nn.ReLU(),
        ]
    last = init_normal(nn.ConvTranspose2d(stages[-1], channels, 4, 2, 1))
    return Labelled(*layers, normalize(last), nn.Tanh())


def discriminator(
    normalize: Callable[..., nn.Module], options: Widths, *, image_size: int, channels: int
) -> Labelled:
    """Return D: (N, channels, image_size, image_size) -> logits (N,)."""
    width = options.discriminator_width
    stages = [channels, *(width * factor for factor in _factors(image_size))]
    layers = []
    for index, (in_channels, out_channels) in enumerate(pairwise(stages)):
        conv = init_normal(nn.Conv2d(in_channels, out_channels, 4, 2, 1))
        layers += [normalize(conv, at_input=index == 0), nn.LeakyReLU(0.2)]
    head = init_normal(nn.Linear(4 * 4 * stages[-1], 1))
    return Labelled(*layers, nn.Flatten(), normalize(head), nn.Flatten(0))


def init_normal(
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding,
) -> nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding:
    """Draw the weight from N(0, 0.02), set the bias to 0 and return the layer."""
    nn.init.normal_(layer.weight, std=0.02)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _batch_norm(num_features: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(num_features)
    nn.init.normal_(norm.weight, mean=1.0, std=0.02)
    return norm


def _factors(image_size: int) -> list[int]:
    """Return the channels per stage, in units of the width, from the image to the 4x4 map."""
    num_stages = (image_size // 4).bit_length() - 1
    return [2**stage for stage in range(num_stages)]
