"""What stands in a model for a convolution that is normalized, and the way back."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from convnorm.layer import ConvNorm2d
from convnorm.normalizers import Normalizer
from convnorm.operator_norm import UnitOperatorNorm
from convnorm.plain import geometry_of
from convnorm.selection import CONVERTERS, Candidate


def replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, wherever a model has them."""
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, name, new[child])
    return new.get(model, model)


def normalized_layer(found: Candidate, normalizer: Normalizer, calibrated: bool) -> nn.Module:
    """The normalized layer that stands for a convolution, with its parameters, modes and hooks."""
    conv = found.module
    # Whoever puts a BatchNorm behind a convolution leaves its bias out.
    absorbed = conv.bias is None if found.use is None else found.use.is_absorbed
    if conv.kernel_size == (1, 1) and normalizer.affine and absorbed and not calibrated:
        normalizer = replace(normalizer, affine=False)
    make = CONVERTERS.get(type(conv), lambda twin, options: options.convolution(twin))
    try:
        layer = make(without_hooks(conv), normalizer)
    except ValueError as error:
        raise ValueError(f"{found.names[0] or 'the model'}: {error}") from None
    if normalizer.definition.fit is not None:
        (size,) = found.use.inputs
        with torch.no_grad():
            normalizer.definition.fit(layer, torch.Size((1, conv.in_channels, *size)))
    known = {id(parameter) for parameter in conv.parameters()}
    for parameter in layer.parameters():
        if id(parameter) not in known:
            parameter.requires_grad_(conv.weight.requires_grad)
    _hand_over(conv, layer, vars(layer))
    return layer.train(conv.training)


def plain_layer(layer: nn.Module) -> nn.Conv2d:
    """The plain convolution with the weight and the bias of a layer that `convert` made."""
    conv = layer.layer if isinstance(layer, UnitOperatorNorm) else layer
    kind = parametrize.type_before_parametrizations(conv)
    if kind is ConvNorm2d and not parametrize.is_parametrized(conv):
        if conv.batch_norm is not None:
            raise ValueError("a ConvNorm2d with a BatchNorm of its own is no plain convolution")
        weight = conv.weight
    elif kind is nn.Conv2d and list(getattr(conv, "parametrizations", ())) == ["weight"]:
        stored = conv.parametrizations.weight
        # Weight norm with a multiplier keeps lengths (original0) and the weight.
        weight = stored.original1 if hasattr(stored, "original1") else stored.original
    else:
        raise ValueError(f"a {type(conv).__name__} that convert did not make of a plain nn.Conv2d")
    plain = nn.Conv2d(**geometry_of(conv), device="meta")
    plain.weight, plain.bias = weight, conv.bias
    ours = {*vars(ConvNorm2d(1, 1, 1, device="meta")), "normalized_by", "scale"}
    _hand_over(layer, plain, ours)
    return plain.train(layer.training)


def without_hooks(layer: nn.Module) -> nn.Module:
    """A layer with the very parameters, buffers and modules of `layer`, but none of its hooks.

    A kind may do to it what it does; `_hand_over` gives the hooks to what that makes.
    """
    twin = copy.copy(layer)
    for name, value in list(vars(layer).items()):
        if name in ("_parameters", "_buffers", "_modules"):
            setattr(twin, name, copy.copy(value))
        elif "_hook" in name and isinstance(value, dict):
            setattr(twin, name, type(value)())
    return twin


def _hand_over(old: nn.Module, new: nn.Module, known: Collection[str]) -> None:
    """Give the hooks of a module, and its attributes that are not `known`, to another one."""
    for name, value in list(vars(old).items()):
        if value if "_hook" in name else name not in known:
            vars(new)[name] = value
