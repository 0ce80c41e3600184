"""A constant factor on what a normalizer makes of a layer: on its weight or its map, never a bias.

Spectral norm depends on such a factor more than on anything else (Lin, Sekar & Fanti, NeurIPS
2021, arXiv 2009.02773): c on each of L layers without bias is c^L on what they compute.
"""

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from convnorm.parametrizations import OutputsFirst, Scale

Layer = TypeVar("Layer", bound=nn.Module)
WITH_MULTIPLIER = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)


class Factor(nn.Module):
    """x times a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


def scale_weight(layer: Layer, factor: float) -> Layer:
    """Multiply a layer's weight by `factor`, behind what normalizes it; returns the layer.

    A learned multiplier of the weight starts at `factor` times its value instead. A factor of 1
    leaves the layer as it is.
    """
    if factor == 1:
        return layer
    multiplier = _multiplier_of(layer)
    if multiplier is not None:
        with torch.no_grad():
            multiplier.mul_(factor)
    elif parametrize.is_parametrized(layer, "weight"):
        # To register it would read the weight, which moves a power iteration on.
        layer.parametrizations.weight.append(Scale(factor))
    else:
        parametrize.register_parametrization(layer, "weight", Scale(factor))
    return layer


def scale_map(norm: nn.Module, factor: float) -> list[nn.Module]:
    """What to run for a normalized map times `factor`: `norm`, and a factor where it needs one.

    A learned multiplier of `norm` starts at `factor` times its value instead; its shift stays.
    """
    if factor == 1:
        return [norm]
    if isinstance(norm, WITH_MULTIPLIER) and norm.weight is not None:
        with torch.no_grad():
            norm.weight.mul_(factor)
        return [norm]
    return [norm, Factor(factor)]


def unscaled_weight(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    """The weight of a layer without the constant factor that `scale_weight` gave it."""
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight
    last = layer.parametrizations.weight[-1]
    return layer.weight / last.scale if _is_constant(last) else layer.weight


def _multiplier_of(layer: nn.Module) -> torch.Tensor | None:
    """The learned factors of the rows of a weight."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    stored = layer.parametrizations.weight
    if hasattr(stored, "original0"):  # the lengths of the rows in torch's weight norm
        return stored.original0
    last = stored[-1]
    last = last.parametrization if isinstance(last, OutputsFirst) else last
    return last.scale if isinstance(last, Scale) and not _is_constant(last) else None


def _is_constant(parametrization: nn.Module) -> bool:
    return isinstance(parametrization, Scale) and not isinstance(
        parametrization.scale, nn.Parameter
    )
