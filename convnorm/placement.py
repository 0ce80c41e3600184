"""The convolutions of a network where they stand: on maps of which size, before which BatchNorm."""

from dataclasses import dataclass

import torch
from torch import nn

from convnorm.batch_norm import BATCH_NORMS
from convnorm.maps import in_evaluation
from convnorm.spectrum import normalized_convolutions


@dataclass(frozen=True)
class Placed:
    """A convolution with what normalizes it, as `normalized_convolutions` finds it.

    input_size: (C, H, W) of the first map that goes into it; None where it does not run.
    behind: the BatchNorm that takes just what it returns, if there is one and it is no part of it.
    sizes: on how many sizes of maps it runs.
    """

    layer: nn.Module
    input_size: torch.Size | None = None
    behind: nn.Module | None = None
    sizes: int = 0


@torch.no_grad()
def placed_convolutions(network: nn.Module, *example: torch.Tensor) -> dict[str, Placed]:
    """Run a network on `example` in evaluation mode and return name -> convolution, in its order.

    A BatchNorm belongs to a convolution if its input is the very tensor that the convolution
    returned, wherever the two stand in the network. Modes and state stay as they are.
    """
    layers = normalized_convolutions(network)
    inside = {module for layer in layers.values() for module in layer.modules()}
    sizes: dict[nn.Module, list[torch.Size]] = {}
    # By the identity of what was returned, which is kept so that none can take its place.
    returned: dict[int, tuple[nn.Module, torch.Tensor]] = {}
    behind: dict[nn.Module, nn.Module] = {}

    def layer_ran(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen = sizes.setdefault(layer, [])
        if inputs[0].shape[1:] not in seen:
            seen.append(inputs[0].shape[1:])
        returned[id(output)] = (layer, output)

    def norm_starts(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in returned:
            behind[returned[id(inputs[0])][0]] = norm

    hooks = [layer.register_forward_hook(layer_ran) for layer in layers.values()]
    for module in network.modules():
        if isinstance(module, BATCH_NORMS) and module not in inside:
            hooks.append(module.register_forward_pre_hook(norm_starts))
    try:
        with in_evaluation(network):
            network(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: Placed(layer, sizes[layer][0], behind.get(layer), len(sizes[layer]))
        if layer in sizes
        else Placed(layer)
        for name, layer in layers.items()
    }
