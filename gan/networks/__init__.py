"""The generators and discriminators by name, built for an image size, with the inputs checked.

A discriminator never names a normalizer: it hands each of its convolutions and its last linear
layer, initialized, to `normalize` and uses what comes back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from convnorm.experiment.errors import InputError
from gan.networks import dcgan, sngan_cnn, sngan_resnet

# normalize(layer: nn.Conv2d | nn.Linear, *, at_input: bool = False) -> nn.Module
# `at_input` marks a layer that sees the image itself.
Normalize = Callable[..., nn.Module]


@dataclass(frozen=True)
class Architecture:
    """A generator and a discriminator, the images they are made for and their published widths."""

    generator: Callable[..., nn.Module]  # (*, image_size, channels, z_dim, width)
    discriminator: Callable[..., nn.Module]  # (normalize, *, image_size, channels, width)
    supports: Callable[[int], bool]  # of an image size
    sizes: str  # the supported image sizes in words
    default_widths: Callable[[int], tuple[int, int]]  # image size -> (generator, discriminator)


ARCHITECTURES: dict[str, Architecture] = {
    "dcgan": Architecture(
        dcgan.generator,
        dcgan.discriminator,
        supports=lambda size: size in (16, 32, 64),
        sizes="16, 32 or 64",
        default_widths=lambda size: (64, 64),
    ),
    "sngan_cnn": Architecture(
        sngan_cnn.generator,
        partial(sngan_cnn.discriminator, factors=sngan_cnn.TABLE_3),
        supports=lambda size: size > 0 and size % 8 == 0,
        sizes="a multiple of 8",
        default_widths=lambda size: (64, 64),
    ),
    "sngan_cnn_wide": Architecture(
        sngan_cnn.generator,
        partial(sngan_cnn.discriminator, factors=sngan_cnn.WIDE),
        supports=lambda size: size > 0 and size % 8 == 0,
        sizes="a multiple of 8",
        default_widths=lambda size: (64, 64),
    ),
    "sngan_resnet": Architecture(
        sngan_resnet.generator,
        sngan_resnet.discriminator,
        supports=lambda size: size in sngan_resnet.LAYOUTS,
        sizes="16, 32 or 48",
        default_widths=sngan_resnet.default_widths,
    ),
}


def build_generator(
    arch: str, *, image_size: int, channels: int, z_dim: int, width: int | None = None
) -> nn.Module:
    """Return G: z (N, z_dim), labels (N,) -> images (N, channels, H, W) in [-1, 1].

    `width` is the number of channels of the last stage, the others are in proportion; None is
    the published width. Weights come from the global random number generator. Raises
    `InputError` for an unknown `arch` or a size, channel count or width it cannot be built for.
    """
    architecture = _find(arch, image_size, channels)
    if width is None:
        width = architecture.default_widths(image_size)[0]
    _check_positive("model.z_dim", z_dim)
    _check_positive("model.generator_width", width)
    return architecture.generator(
        image_size=image_size, channels=channels, z_dim=z_dim, width=width
    )


def build_discriminator(
    arch: str, normalize: Normalize, *, image_size: int, channels: int, width: int | None = None
) -> nn.Module:
    """Return D: images (N, channels, image_size, image_size), labels (N,) -> logits (N,).

    `width` is the number of channels after the first layer, the others are in proportion; None
    is the published width. A `normalize` that returns the layer it gets gives the plain network.
    Layers are initialized from the global random number generator before `normalize` sees them,
    so two normalizers that leave that generator alone start from the same weights. Raises
    `InputError` for an unknown `arch` or a size, channel count or width it cannot be built for.
    """
    architecture = _find(arch, image_size, channels)
    if width is None:
        width = architecture.default_widths(image_size)[1]
    _check_positive("model.discriminator_width", width)
    return architecture.discriminator(
        normalize, image_size=image_size, channels=channels, width=width
    )


def _find(arch: str, image_size: int, channels: int) -> Architecture:
    if arch not in ARCHITECTURES:
        raise InputError(f"model.arch: {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[arch]
    if not architecture.supports(image_size):
        raise InputError(f"data.image_size: {image_size}, {arch} expects {architecture.sizes}")
    if channels not in (1, 3):
        raise InputError(f"data: images with {channels} channels, expected 1 (grey) or 3 (RGB)")
    return architecture


def _check_positive(key: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{key}: {value}, expected 1 or more")
