"""Exponential moving averages of a network over training steps."""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convnorm.fixed import fixed_weights
from convnorm.maps import in_evaluation
from convnorm.normalizers import normalized_layers

# Buffers that are statistics of the data, as torch names them in BatchNorm and InstanceNorm.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def averaged(network: nn.Module, decay: float) -> nn.Module | None:
    """Return a copy that will follow `network`, or None where a decay of 0 keeps no average."""
    return copy.deepcopy(network).requires_grad_(False) if decay > 0 else None


def running_statistics(network: nn.Module) -> list[torch.Tensor]:
    """What a network has gathered about the data in training: means and variances, no counts."""
    return [buffer for buffer in _statistics(network) if buffer.is_floating_point()]


def iterated(network: nn.Module) -> list[torch.Tensor]:
    """The buffers that passes in training move on by themselves: vectors of power iterations."""
    statistics = {id(buffer) for buffer in _statistics(network)}
    return [buffer for buffer in network.buffers() if id(buffer) not in statistics]


def _statistics(network: nn.Module) -> list[torch.Tensor]:
    """The buffers that are statistics of the data, which vectors of power iterations are not."""
    names = dict.fromkeys(network.modules(), STATISTICS)
    for _, layer, normalizer in normalized_layers(network):
        names |= dict.fromkeys(layer.modules(), STATISTICS + normalizer.definition.statistics)
    return [
        buffer
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in names[module]
    ]


def decay_at(decay: float, step: int) -> float:
    """The decay at a step, from 0 on: (1 + step) / (10 + step), and at most `decay`.

    The first steps decay faster, so that the average forgets the first weights.
    """
    return min(decay, (1 + step) / (10 + step))


def share(decay: float | torch.Tensor) -> float | torch.Tensor:
    """How much a new value counts in an average, 1 - decay.

    Of a tensor (), float64, as in a captured update, it is float32: rounded after the difference,
    which is where a kernel rounds a number.
    """
    return (1 - decay).float() if isinstance(decay, torch.Tensor) else 1 - decay


@torch.no_grad()
def follow(average: nn.Module | None, network: nn.Module, decay: float | torch.Tensor) -> None:
    """Move the average of weights and running statistics by one step; None stays None.

    average = decay * average + (1 - decay) * network; counts are copied. The vectors of power
    iterations are not averaged: they would lose their length, and they belong to the averaged
    weights, on which they get an iteration of their own. decay: see `share`.
    """
    if average is None:
        return
    own = [*average.parameters(), *_statistics(average)]
    live = [*network.parameters(), *_statistics(network)]
    pairs = list(zip(own, live, strict=True))
    moved = [pair for pair in pairs if pair[0].is_floating_point()]
    weight = share(decay)
    weights = [weight] * len(moved) if isinstance(weight, torch.Tensor) else weight
    torch._foreach_lerp_(*map(list, zip(*moved, strict=True)), weights)
    for count, target in pairs:
        if not count.is_floating_point():
            count.copy_(target)
    for _, layer, normalizer in normalized_layers(average):
        if normalizer.definition.advance is not None:
            modes = {module: module.training for module in layer.modules()}
            normalizer.definition.advance(layer.train())
            for module, training in modes.items():
                module.training = training


@torch.no_grad()
def gather_statistics(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace BatchNorm's running statistics by those of the maps that `network` itself makes.

    An average of statistics is that of many networks, and not of the averaged weights (Izmailov et
    al., "Averaging Weights Leads to Wider Optima", 2018). As in torch's `update_bn`, every layer
    normalizes by the batch and keeps the mean over batches of their means and of their unbiased
    variances. Unlike there, nothing but BatchNorm is in training mode, so that power iterations
    stand still. Modes and momenta are left as they were.

    batches: inputs, as many in each batch; nothing is taken from them for a network without running
    statistics.
    """
    layers = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not layers:
        return
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        with in_evaluation(network), fixed_weights():
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the mean over all batches
                layer.train()
            for batch in batches:
                network(batch)
    finally:
        for layer, momentum in momenta:
            layer.momentum = momentum
