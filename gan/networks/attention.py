"""Self-attention over a map (Zhang et al. 2019, SAGAN, arXiv 1805.08318, section 3).

As in the authors' code (brain-research/self-attention-gan, `non_local.py`), which differs from the
paper's formulas in three points: keys and values are pooled to a quarter of the places, values have
half of the channels and not an eighth, and there is no bias. Weights are Glorot uniform.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class SelfAttention(nn.Module):
    """x + gamma * o(x): every place of a map sees all others. gamma is learned and starts at 0.

    o is a convolution of what the places attend to, weighted by the softmax over places j of
    f(x_i) . g(x_j). The four convolutions are 1x1 and each passes through `normalize`.
    """

    def __init__(self, normalize: Callable[[nn.Module], nn.Module], channels: int) -> None:
        super().__init__()
        inner, values = max(1, channels // 8), max(1, channels // 2)
        self.query = normalize(_conv1x1(channels, inner))
        self.key = normalize(_conv1x1(channels, inner))
        self.value = normalize(_conv1x1(channels, values))
        self.out = normalize(_conv1x1(values, channels))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) of even H and W -> the same shape; takes N H^2 W^2 / 4 numbers."""
        query = self.query(x).flatten(2)  # (N, C / 8, HW)
        key = F.max_pool2d(self.key(x), 2).flatten(2)  # (N, C / 8, HW / 4)
        value = F.max_pool2d(self.value(x), 2).flatten(2)  # (N, C / 2, HW / 4)
        weights = (query.mT @ key).softmax(2)  # (N, HW, HW / 4): each row sums to 1
        seen = (value @ weights.mT).unflatten(2, x.shape[2:])
        return x + self.gamma * self.out(seen)


def _conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return conv
