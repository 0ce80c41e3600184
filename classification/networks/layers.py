"""The layers that all classifiers are made of: standardization, convolution, activation, head."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from convnorm.experiment.errors import InputError
from convnorm.normalizers import Normalizer

# activation(channels) -> a module that keeps the shape (N, channels, H, W)
Activation = Callable[[int], nn.Module]


class Standardize(nn.Module):
    """(x - mean) / std for each channel of x: (N, C, H, W).

    As a network's first layer it lets everyone outside, attacks above all, count in units of
    the pixels. Mean and std are part of the state. Raises `InputError` if a std is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if not all(s > 0 for s in std):
            raise InputError(
                f"data: pixels with a standard deviation of {list(std)}, expected more than 0 "
                "in each channel"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


class SReLU(nn.Module):
    """Shifted ReLU, max(x, b) with a learned b for each channel, from -1.

    Qi et al., "Deep Isometric Learning for Visual Recognition", ICML 2020 (arXiv 2006.16992).
    The published code keeps b out of weight decay, which would move it from where it starts
    (`undecayed`). x: (N, channels, H, W) of any floating dtype, which the result has too.
    """

    undecayed = ("shift",)

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.full((channels,), -1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, self.shift.to(x.dtype)[:, None, None])


def relu(channels: int) -> nn.ReLU:
    """ReLU, which is the same for every channel."""
    return nn.ReLU()


ACTIVATIONS: dict[str, Activation] = {"relu": relu, "srelu": SReLU}


NORM_POSITIONS = ("before_activation", "after_activation", "before_convolution")


def kaiming_fan_out(weight: torch.Tensor) -> None:
    """N(0, 2 / fan_out) (He et al. 2015, arXiv 1502.01852)."""
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def torch_default(weight: torch.Tensor) -> None:
    """What nn.Conv2d has drawn: uniform with variance 1 / (3 fan_in)."""


INITS: dict[str, Callable[[torch.Tensor], None]] = {
    "kaiming_fan_out": kaiming_fan_out,
    "default": torch_default,
}


@dataclass(frozen=True)
class Builder:
    """Builds convolutions with what normalizes them and their activations, in the order chosen.

    norm_position: where what normalizes a map stands; a normalizer of the weights has no place.
        before_activation: convolution, normalizer, activation.
        after_activation: convolution, activation, normalizer. Where a convolution has no
            activation of its own, the normalizer follows it.
        before_convolution: normalizer, convolution, activation; the first one sees the image.

    init: what draws the weights of a convolution, as in INITS. They are equal for all positions,
    and for all normalizers that leave the global random state alone. There is a bias, from 0, where
    no offset of the normalizer follows the convolution directly.
    """

    normalizer: Normalizer
    activation: Activation
    norm_position: str
    init: str

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
    ) -> nn.Module:
        """A normalized convolution without an activation, such as the last one of a branch."""
        geometry = (in_channels, out_channels, kernel_size, stride, padding)
        if self.norm_position == "before_convolution":
            layer = self.drawn(*geometry, bias=not self.normalizer.conv_has_shift)
            return self.normalizer(layer, output_first=True)
        return self.normalizer(self.drawn(*geometry, bias=not self.normalizer.has_shift))

    def activated(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        activation: nn.Module | None = None,
    ) -> list[nn.Module]:
        """A normalized convolution with its activation: layers to run one after another.

        activation: one that other layers share; None for one of its own.
        """
        geometry = (in_channels, out_channels, kernel_size, stride, padding)
        activation = self.activation(out_channels) if activation is None else activation
        if self.norm_position != "after_activation":
            return [self.conv(*geometry), activation]
        layer = self.drawn(*geometry, bias=not self.normalizer.conv_has_shift)
        conv, output = self.normalizer.convolution(layer), self.normalizer.output(out_channels)
        return [conv, activation, *output]

    def preactivated(self, channels: int) -> list[nn.Module]:
        """What normalizes a map, and its activation: a pre-activation unit up to its convolution.

        That one is `bare`.
        """
        return [*self.normalizer.output(channels), self.activation(channels)]

    def bare(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
    ) -> nn.Module:
        """A convolution with what normalizes itself; what normalizes its map stands elsewhere."""
        geometry = (in_channels, out_channels, kernel_size, stride, padding)
        bias = not self.normalizer.has_shift
        return self.normalizer.convolution(self.drawn(*geometry, bias=bias))

    def drawn(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        *,
        bias: bool,
    ) -> nn.Conv2d:
        """A plain convolution with its initial weights."""
        layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        INITS[self.init](layer.weight)
        if bias:  # not by nn.Conv2d, which would draw it and so shift the numbers of the rest
            layer.bias = nn.Parameter(torch.zeros(out_channels))
        return layer


def linear_head(in_features: int, num_classes: int) -> nn.Sequential:
    """(N, in_features, H, W) -> logits (N, num_classes): global average pooling, one layer."""
    return nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(in_features, num_classes),
        )
    )
