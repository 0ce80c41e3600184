"""Tensors without values: who asks for one, as everything that waits for a device does, fails."""

from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def faked(mode: FakeTensorMode, value: Any) -> Any:
    """Draws, or anything that is made of dataclasses, tuples and tensors, without values."""
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    if is_dataclass(value):
        return type(value)(**{name: faked(mode, part) for name, part in vars(value).items()})
    return tuple(faked(mode, part) for part in value) if isinstance(value, tuple) else value


def fake_networks(mode: FakeTensorMode, *networks: nn.Module | None) -> None:
    """Take the values out of networks that are there."""
    for network in filter(None, networks):
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = nn.Parameter(mode.from_tensor(parameter), parameter.requires_grad)
                    module._parameters[name] = fake
            for name, buffer in module._buffers.items():
                module._buffers[name] = faked(mode, buffer)


def fake_attributes(mode: FakeTensorMode, holder: Any) -> None:
    """Take the values out of the tensors that an object has as attributes."""
    for name, value in vars(holder).items():
        if isinstance(value, torch.Tensor):
            setattr(holder, name, mode.from_tensor(value))


def fake_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    """Let a fresh optimizer of one group move the network's fake parameters."""
    (group,) = optimizer.param_groups
    group["params"] = list(network.parameters())
