"""The classifiers by name, built for images and classes, with the inputs checked.

No network names a normalizer: an architecture receives a builder of convolutions, each of which
comes initialized and with what normalizes it, and puts its activations behind them.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from classification.networks import resnet, simple_cnn, vgg
from classification.networks.layers import ACTIVATIONS, Standardize, conv_builder, linear_head
from convnorm.experiment.errors import InputError
from convnorm.normalizers import Normalizer


@dataclass(frozen=True)
class Stem:
    """How an architecture begins, with what comes of it up to the global pooling."""

    # (conv, activation, *, channels, width) -> (layers, the number of their output channels)
    features: Callable[..., tuple[nn.Sequential, int]]
    stride: int  # of all layers together, and so the smallest image size


@dataclass(frozen=True)
class Architecture:
    """The stems that an architecture can have, and its published width."""

    width: int  # channels of the first stage
    stems: dict[str, Stem]


def _resnet(residual: resnet.Residual, *depths: int) -> Architecture:
    features = partial(resnet.features, residual=residual, depths=depths)
    return Architecture(
        width=64,
        stems={
            "cifar": Stem(partial(features, stem=resnet.cifar_stem), stride=8),
            "imagenet": Stem(partial(features, stem=resnet.imagenet_stem), stride=32),
        },
    )


def _vgg(*depths: int) -> Architecture:
    return Architecture(64, {"cifar": Stem(partial(vgg.features, depths=depths), stride=32)})


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": _resnet(resnet.basic, 2, 2, 2, 2),
    "resnet34": _resnet(resnet.basic, 3, 4, 6, 3),
    "resnet50": _resnet(resnet.bottleneck, 3, 4, 6, 3),
    "resnet101": _resnet(resnet.bottleneck, 3, 4, 23, 3),
    "resnet152": _resnet(resnet.bottleneck, 3, 8, 36, 3),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "simple_cnn": Architecture(32, {"cifar": Stem(simple_cnn.features, stride=4)}),
}


def build_network(
    arch: str,
    normalizer: Normalizer,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    stem: str = "cifar",
    activation: str = "relu",
    width: int | None = None,
) -> nn.Module:
    """Return a classifier: x (N, channels, H, W) in [0, 1] -> logits (N, num_classes).

    `mean` and `std` of the training images, in units of x, one for each channel: the first layer
    standardizes with them. `stem`: "cifar", or "imagenet" for large images (ResNets only).
    `activation`: "relu" or "srelu". `width`: the channels of the first stage, the others are in
    proportion; None is the published width. Any image of at least the total stride goes through;
    `image_size` is checked against it. Weights come from the global random number generator,
    each layer's before its normalizer sees it: kinds start from equal weights. Raises
    `InputError` for what is unknown or cannot be built.
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"model.arch: {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[arch]
    if stem not in architecture.stems:
        raise InputError(f"model.stem: {stem!r}, {arch} expects {' or '.join(architecture.stems)}")
    chosen = architecture.stems[stem]
    if activation not in ACTIVATIONS:
        raise InputError(f"model.activation: {activation!r}, expected {' or '.join(ACTIVATIONS)}")
    if width is None:
        width = architecture.width
    if width < 1:
        raise InputError(f"model.width: {width}, expected 1 or more")
    if image_size < chosen.stride:
        smallest = f"{arch} with the {stem} stem expects {chosen.stride} or more"
        raise InputError(f"data.image_size: {image_size}, {smallest}")
    _check_data(num_classes, channels, mean, std)
    features, num_features = chosen.features(
        conv_builder(normalizer), ACTIVATIONS[activation], channels=channels, width=width
    )
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
