"""Estimates the memory of a training and refuses what cannot fit, before anything is allocated.

Networks are built on the "meta" device, where tensors have a shape and no content. The estimate is
a lower bound: what a normalizer, an attack or a library needs on top is not in it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from convnorm.experiment.errors import InputError
from convnorm.experiment.memory import available_bytes

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Bytes that a process needs: for weights with all that goes with them, and for a batch."""

    weights: int
    batch: int


@contextmanager
def on_paper() -> Iterator[None]:
    """Make all tensors without their content; the global random state stays as it is."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        yield


def bytes_of_weights(network: nn.Module, copies: int) -> int:
    """Return the bytes of a network's parameters, so many times."""
    return copies * sum(p.numel() * p.element_size() for p in network.parameters())


def bytes_for_backward(forward: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps of a forward pass on paper until the backward pass.

    The weights among them are left to `bytes_of_weights`.
    """
    kept: dict[int, torch.Tensor] = {}  # each storage once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def memory_for(device: torch.device) -> int:
    """Return the bytes that a training can have: all of a GPU, or what the machine has left."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return available_bytes()


def check_memory(estimate: Estimate, device: torch.device, keys: Sequence[str]) -> None:
    """Raise an InputError where a training needs more memory than there is.

    keys: of the config, which lower the estimate.
    """
    needed, there = estimate.weights + estimate.batch, memory_for(device)
    if needed > there:
        raise InputError(
            f"memory: training needs {needed / GIB:.1f} GiB or more ({estimate.weights / GIB:.1f} "
            f"for weights, gradients and optimizer, {estimate.batch / GIB:.1f} for a batch), and "
            f"{device} has {there / GIB:.1f} GiB left; expected a lower {', '.join(keys[:-1])} or "
            f"{keys[-1]}"
        )
