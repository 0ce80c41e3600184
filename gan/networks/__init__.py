"""The generators and discriminators by name, built for an image size, with the inputs checked.

No network names a normalizer. A discriminator hands each of its convolutions and its last linear
layer, initialized, to `normalize` and uses what comes back; a conditional one does so with what it
has for classes too, an embedding or a second linear layer. A generator does so with each of its
convolutions and transposed convolutions, and keeps the BatchNorm that its architecture has.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from convnorm.experiment.config import options_of
from convnorm.experiment.data.pixels import Size, height_and_width
from convnorm.experiment.errors import InputError
from gan.networks import dcgan, sngan_cnn, sngan_resnet
from gan.networks.conditional import UNCONDITIONAL, Conditioning
from gan.networks.layers import Widths

# Of a discriminator: normalize(layer: nn.Conv2d | nn.Linear | nn.Embedding, *, at_input=False).
# `at_input` marks a layer that sees the image itself.
Normalize = Callable[..., nn.Module]
# Of a generator: normalize(layer: nn.Conv2d | nn.ConvTranspose2d).
NormalizeGenerator = Callable[[nn.Module], nn.Module]

PUBLISHED: Mapping[str, Any] = MappingProxyType({})  # no option of an architecture changed


def plain(layer: nn.Module) -> nn.Module:
    """The layer as it is: what leaves a network plain."""
    return layer


LARGEST = 256  # pixels, of a family that does not fix its sizes


@dataclass(frozen=True)
class Architecture:
    """A generator and a discriminator with their options, and the images they are made for."""

    options: type  # a dataclass; its defaults are the published network
    generator: Callable[..., nn.Module]  # (normalize, options, *, image_size, channels, z_dim)
    discriminator: Callable[..., nn.Module]  # (normalize, options, *, image_size, channels)
    supports: Callable[[Size], bool]  # of an image size
    sizes: str  # the supported image sizes in words
    knows_classes: bool = False  # whether both functions take `conditioning` as well


def _eighths(size: Size) -> bool:
    return all(0 < side <= LARGEST and side % 8 == 0 for side in height_and_width(size))


def _one_of(sizes: Iterable[int]) -> str:
    *others, last = map(str, sizes)
    return f"{', '.join(others)} or {last}"


ARCHITECTURES: dict[str, Architecture] = {
    "dcgan": Architecture(
        Widths,
        dcgan.generator,
        dcgan.discriminator,
        supports=lambda size: size in dcgan.SIZES,
        sizes=_one_of(dcgan.SIZES),
    ),
    "sngan_cnn": Architecture(
        Widths,
        sngan_cnn.generator,
        partial(sngan_cnn.discriminator, factors=sngan_cnn.TABLE_3),
        supports=_eighths,
        sizes=f"multiples of 8, at most {LARGEST}",
        knows_classes=True,
    ),
    "sngan_cnn_wide": Architecture(
        Widths,
        sngan_cnn.generator,
        partial(sngan_cnn.discriminator, factors=sngan_cnn.WIDE),
        supports=_eighths,
        sizes=f"multiples of 8, at most {LARGEST}",
        knows_classes=True,
    ),
    "sngan_resnet": Architecture(
        sngan_resnet.Options,
        sngan_resnet.generator,
        sngan_resnet.discriminator,
        supports=lambda size: size in sngan_resnet.LAYOUTS,
        sizes=_one_of(sngan_resnet.LAYOUTS),
        knows_classes=True,
    ),
}


def build_generator(
    arch: str,
    normalize: NormalizeGenerator = plain,
    *,
    image_size: Size,
    channels: int,
    z_dim: int,
    options: Mapping[str, Any] = PUBLISHED,
    conditioning: Conditioning = UNCONDITIONAL,
) -> nn.Module:
    """Return G: z (N, z_dim), labels (N,) -> images (N, channels, H, W) in [-1, 1].

    `options` are fields of the architecture's `Options`; what is left out is as published. Weights
    come from the global random number generator, before `normalize` sees their layer. Raises
    `InputError` for an unknown `arch` or option, and for a size, channel count, conditioning or
    value it cannot be built for.
    """
    architecture = _find(arch, image_size, channels)
    known = _conditioning(arch, conditioning)
    chosen = options_of(architecture.options, options, "model.options")
    if z_dim < 1:
        raise InputError(f"model.z_dim: {z_dim}, expected 1 or more")
    return architecture.generator(
        normalize, chosen, image_size=image_size, channels=channels, z_dim=z_dim, **known
    )


def build_discriminator(
    arch: str,
    normalize: Normalize,
    *,
    image_size: Size,
    channels: int,
    options: Mapping[str, Any] = PUBLISHED,
    conditioning: Conditioning = UNCONDITIONAL,
) -> nn.Module:
    """Return D: images (N, channels, H, W) of that size, labels (N,) -> logits (N,).

    `options` are those of `build_generator`. A `normalize` that returns the layer it gets gives
    the plain network. Layers are initialized from the global random number generator before
    `normalize` sees them, so two normalizers that leave that generator alone start from the same
    weights. Raises `InputError` as `build_generator`.
    """
    architecture = _find(arch, image_size, channels)
    known = _conditioning(arch, conditioning)
    chosen = options_of(architecture.options, options, "model.options")
    return architecture.discriminator(
        normalize, chosen, image_size=image_size, channels=channels, **known
    )


def check_conditional(arch: str, kind: str) -> None:
    """Raise InputError for a kind of `Conditioning` that an architecture does not have."""
    able = [name for name, known in ARCHITECTURES.items() if known.knows_classes]
    if kind != "none" and arch not in able:
        raise InputError(
            f"model.conditional: {kind!r} is not allowed with model.arch {arch!r}; expected none, "
            f"or one of {', '.join(able)} there"
        )


def _conditioning(arch: str, conditioning: Conditioning) -> dict[str, Conditioning]:
    """What the functions of an architecture get of it."""
    check_conditional(arch, conditioning.kind)
    return {"conditioning": conditioning} if ARCHITECTURES[arch].knows_classes else {}


def _find(arch: str, image_size: Size, channels: int) -> Architecture:
    if arch not in ARCHITECTURES:
        raise InputError(f"model.arch: {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[arch]
    if not architecture.supports(image_size):
        given = image_size if isinstance(image_size, int) else list(image_size)
        raise InputError(f"data.image_size: {given}, {arch} expects {architecture.sizes}")
    if channels not in (1, 3):
        raise InputError(f"data: images with {channels} channels, expected 1 (grey) or 3 (RGB)")
    return architecture
