"""Exponential moving averages of a network over training steps."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize


def averaged(network: nn.Module, decay: float) -> nn.Module | None:
    """Return a copy that will follow `network`, or None where a decay of 0 keeps no average."""
    return copy.deepcopy(network).requires_grad_(False) if decay > 0 else None


def decay_at(decay: float, step: int) -> float:
    """At most (1 + t) / (10 + t) at step t, so that an average forgets the first weights."""
    return min(decay, (1 + step) / (10 + step))


def running_statistics(network: nn.Module) -> list[torch.Tensor]:
    """Means and variances that BatchNorm has seen."""
    return [buffer for buffer in _batch_norm_buffers(network) if buffer.is_floating_point()]


def _batch_norm_buffers(network: nn.Module) -> list[torch.Tensor]:
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers()]


@torch.no_grad()
def follow(average: nn.Module | None, network: nn.Module, decay: float) -> None:
    """Move the average of weights and running statistics.

    The vectors of power iterations are not averaged: they would lose their length, and
    they belong to the averaged weights, which get an iteration of their own.
    """
    if average is None:
        return
    own = [*average.parameters(), *_batch_norm_buffers(average)]
    live = [*network.parameters(), *_batch_norm_buffers(network)]
    for value, target in zip(own, live, strict=True):
        if value.is_floating_point():
            value.lerp_(target, 1 - decay)
        else:
            value.copy_(target)  # a number of batches
    for module in average.modules():
        if parametrize.is_parametrized(module) and any(True for _ in module.buffers()):
            _in_training_mode(module, lambda module: module.weight)
        elif hasattr(module, "operator_norm"):
            _in_training_mode(module, lambda module: module.operator_norm())


def _in_training_mode(module: nn.Module, iterate: Callable[[nn.Module], object]) -> None:
    training = module.training
    module.train()
    iterate(module)
    module.train(training)
