"""Exponential moving averages of a network over training steps."""

import copy

import torch
from torch import nn


def averaged(network: nn.Module, decay: float) -> nn.Module | None:
    """Return a copy that will follow `network`, or None where a decay of 0 keeps no average."""
    return copy.deepcopy(network).requires_grad_(False) if decay > 0 else None


@torch.no_grad()
def follow(average: nn.Module | None, network: nn.Module, decay: float, step: int) -> None:
    """Move the average of weights and buffers towards the network, at step `step` from 0 on.

    The decay is at most (1 + t) / (10 + t) at step t, so that the average forgets the first
    weights. Whole numbers, such as counts of batches, are copied.
    """
    if average is None:
        return
    decay = min(decay, (1 + step) / (10 + step))
    live = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(live[name], 1 - decay)
        else:
            value.copy_(live[name])
