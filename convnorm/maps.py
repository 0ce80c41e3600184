"""The maps of a network: those that go into its layers, and those on which layers are measured."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def random_signs(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Numbers 1 and -1, the same ones every time: white inputs, on which a layer is measured."""
    random = torch.Generator(device).manual_seed(0)
    signs = torch.empty(size, device=device, dtype=dtype)
    return signs.bernoulli_(generator=random).mul_(2).sub_(1)


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[None]:
    """Hold all modules of a network in evaluation mode; afterwards each has its own mode again."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def input_sizes(
    network: nn.Module, layers: Iterable[nn.Module], *example: torch.Tensor
) -> dict[nn.Module, torch.Size]:
    """Run a network on `example` and return the size of what goes into each of its `layers`."""
    sizes: dict[nn.Module, torch.Size] = {}

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes[module] = inputs[0].shape

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        network(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes
