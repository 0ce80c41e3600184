"""The layers that all classifiers are made of: standardization, convolution, activation, head."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn

from convnorm.experiment.errors import InputError
from convnorm.normalizers import Normalizer

# conv(in_channels, out_channels, kernel_size, stride=1, padding=0) -> a normalized convolution
Conv = Callable[..., nn.Module]
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
    x: (N, channels, H, W) of any floating dtype, which the result has too.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.full((channels,), -1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, self.bias.to(x.dtype)[:, None, None])


def relu(channels: int) -> nn.ReLU:
    """ReLU, which is the same for every channel."""
    return nn.ReLU()


ACTIVATIONS: dict[str, Activation] = {"relu": relu, "srelu": SReLU}


def conv_builder(normalizer: Normalizer) -> Conv:
    """Return the builder of normalized convolutions that an architecture gets.

    Weights are drawn from N(0, 2 / fan_out) (He et al. 2015, arXiv 1502.01852) and are equal for
    all normalizers that leave the global random state alone. There is a bias, from 0, where the
    normalized layer has no offset of its own.
    """

    def conv(
        in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> nn.Module:
        layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if not normalizer.has_shift:
            # Not by nn.Conv2d, which would draw it and so shift the random numbers of the rest.
            layer.bias = nn.Parameter(torch.zeros(out_channels))
        return normalizer(layer)

    return conv


def linear_head(in_features: int, num_classes: int) -> nn.Sequential:
    """(N, in_features, H, W) -> logits (N, num_classes): global average pooling, one layer."""
    return nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(in_features, num_classes),
        )
    )
