"""GroupNorm that leaves a map alone where there is nothing to normalize it by."""

import torch
from torch import nn


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm (Wu & He, ECCV 2018, arXiv 1803.08494) of maps (N, C, H, W).

    Where a group is a single number, one channel of a 1 x 1 map, its deviation from its own mean
    is 0 whatever it is, and nothing would be left of the map. It passes as it is then, in training
    and in evaluation, and gets the multiplier and shift alone. torch raises an error there for
    InstanceNorm in training and returns zeros for GroupNorm.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.num_channels // self.num_groups * x.shape[2] * x.shape[3] > 1:
            return super().forward(x)
        if self.weight is None:
            return x
        shift = self.bias[:, None, None].to(x.dtype)
        return x * self.weight[:, None, None].to(x.dtype) + shift
