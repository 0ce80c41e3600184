"""BatchNorm in evaluation mode: a factor and an offset of each channel."""

import torch
from torch import nn

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def batch_norm_factor(norm: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """What a BatchNorm with running statistics multiplies each channel by, (C,)."""
    factor = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    return factor if norm.weight is None else factor * norm.weight.detach().to(dtype)
