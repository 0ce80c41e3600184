"""The classifiers by name, built for images and classes, with the inputs checked.

No network names a normalizer or puts one in its place: an architecture receives a `Builder` of
convolutions, which come initialized, with what normalizes them and with their activations.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from classification.networks import preact_resnet, resnet, simple_cnn, vgg
from classification.networks.layers import (
    ACTIVATIONS,
    INITS,
    NORM_POSITIONS,
    Builder,
    Standardize,
    linear_head,
)
from convnorm.experiment.config import options_of
from convnorm.experiment.errors import InputError
from convnorm.normalizers import Normalizer


@dataclass(frozen=True)
class Architecture:
    """An architecture with its options, up to the global pooling."""

    options: type  # a dataclass; its defaults are the published network
    # (build, options, *, channels) -> (layers, the number of their output channels)
    features: Callable[..., tuple[nn.Sequential, int]]
    # options -> the stride of all layers together, which is the smallest image size
    stride: Callable[[Any], int]
    # where what normalizes a map can stand in it
    norm_positions: tuple[str, ...] = NORM_POSITIONS


def _resnet(residual: resnet.Residual, *depths: int) -> Architecture:
    features = partial(resnet.features, residual=residual, depths=depths)
    return Architecture(resnet.Options, features, resnet.total_stride)


def _preact(options: type, *depths: int) -> Architecture:
    return Architecture(
        options,
        partial(preact_resnet.features, depths=depths),
        lambda chosen: preact_resnet.total_stride(depths),
        ("before_activation",),
    )


def _vgg(*depths: int) -> Architecture:
    return Architecture(vgg.Options, partial(vgg.features, depths=depths), lambda options: 32)


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": _resnet(resnet.basic, 2, 2, 2, 2),
    "resnet34": _resnet(resnet.basic, 3, 4, 6, 3),
    "resnet50": _resnet(resnet.bottleneck, 3, 4, 6, 3),
    "resnet101": _resnet(resnet.bottleneck, 3, 4, 23, 3),
    "resnet152": _resnet(resnet.bottleneck, 3, 8, 36, 3),
    "preact_resnet18": _preact(preact_resnet.Options, 2, 2, 2, 2),
    "wrn_28_10": _preact(preact_resnet.WideOptions, 4, 4, 4),
    "wrn_34_10": _preact(preact_resnet.WideOptions, 5, 5, 5),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "simple_cnn": Architecture(simple_cnn.Options, simple_cnn.features, lambda options: 4),
}

LARGEST = 512  # pixels of an image's side
PUBLISHED: Mapping[str, Any] = MappingProxyType({})  # no option of an architecture changed


def build_network(
    arch: str,
    normalizer: Normalizer,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    options: Mapping[str, Any] = PUBLISHED,
    activation: str = "relu",
    norm_position: str = "before_activation",
    init: str = "kaiming_fan_out",
) -> nn.Module:
    """Return a classifier: x (N, channels, H, W) in [0, 1] -> logits (N, num_classes).

    `mean` and `std` of the training images, in units of x, one for each channel: the first layer
    standardizes with them. `options` are fields of the architecture's `Options`; what is left out
    is as published. `activation`: "relu" or "srelu". `norm_position`, `init`: see `Builder`. Any
    image of at least the total stride goes through; `image_size` is checked against it. Weights
    come from the global random number generator, each layer's before its normalizer sees it: kinds
    start from equal weights. Raises `InputError` for what is unknown or cannot be built.
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"model.arch: {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[arch]
    chosen = options_of(architecture.options, options, "model.options")
    for key, value, known in (
        ("activation", activation, ACTIVATIONS),
        ("norm_position", norm_position, architecture.norm_positions),
        ("init", init, INITS),
    ):
        if value not in known:
            raise InputError(f"model.{key}: {value!r}, expected {' or '.join(known)}")
    stride = architecture.stride(chosen)
    if not stride <= image_size <= LARGEST:
        settings = ", ".join(f"{key} {value}" for key, value in asdict(chosen).items())
        sizes = f"{arch} with {settings} expects {stride} to {LARGEST}"
        raise InputError(f"data.image_size: {image_size}, {sizes}")
    _check_data(num_classes, channels, mean, std)
    build = Builder(normalizer.for_relu(), ACTIVATIONS[activation], norm_position, init)
    features, num_features = architecture.features(build, chosen, channels=channels)
    return nn.Sequential(
        OrderedDict(
            standardize=Standardize(mean, std),
            features=features,
            head=linear_head(num_features, num_classes),
        )
    )


def _check_data(
    num_classes: int, channels: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    if channels not in (1, 3):
        raise InputError(f"data: images with {channels} channels, expected 1 (grey) or 3 (RGB)")
    if not len(mean) == len(std) == channels:
        found = f"{len(mean)} means and {len(std)} standard deviations"
        raise InputError(f"data: {found}, expected {channels}, one for each channel")
    if num_classes < 2:
        raise InputError(f"data: images of {num_classes} classes, expected 2 or more")
