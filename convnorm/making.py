"""What each kind of the catalogue makes of a layer: a function of the plain one and the options.

Convolutions and the last, linear layer of a discriminator are changed and returned, or become part
of what is returned; maps get a module of their own.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from convnorm.aol import AOL
from convnorm.group_norm import GroupNorm
from convnorm.layer import ConvNorm2d
from convnorm.operator_norm import OperatorNorm, UnitOperatorNorm
from convnorm.parametrizations import (
    ONI,
    OWN,
    Bidirectional,
    OutputsFirst,
    OutsideAutocast,
    Scale,
    StandardizedRows,
    UnitRows,
)
from convnorm.penalties import orthogonality
from convnorm.precision import convolutions_are_rounded
from convnorm.scale import scale_weight
from convnorm.transposed import ConvNormTranspose2d

if TYPE_CHECKING:
    from convnorm.normalizers import Normalizer

NUM_GROUPS = 32  # of channels, by Wu & He (2018)


def batch_norm(channels: int, options: "Normalizer") -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=options.multiplier)


def layer_norm(channels: int, options: "Normalizer") -> nn.GroupNorm:
    return nn.GroupNorm(1, channels, affine=options.multiplier)


def group_norm(channels: int, options: "Normalizer") -> GroupNorm:
    return GroupNorm(math.gcd(NUM_GROUPS, channels), channels, affine=options.multiplier)


def instance_norm(channels: int, options: "Normalizer") -> GroupNorm:
    return GroupNorm(channels, channels, affine=options.multiplier)


def _with_weight(layer: nn.Module, parametrization: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


def _by_outputs(layer: nn.Module, parametrization: nn.Module) -> nn.Module:
    """A parametrization whose rows belong to outputs, for the weight as the layer has it."""
    if isinstance(layer, nn.ConvTranspose2d):
        return OutputsFirst(parametrization, layer.groups)
    return parametrization


def _dim_of_outputs(layer: nn.Module) -> int:
    """Where torch's parametrizations find a layer's outputs in its weight."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return 0
    if layer.groups > 1:
        raise ValueError(
            f"a transposed convolution of {layer.groups} groups, whose outputs lie in two "
            "dimensions of its weight, has neither spectral nor weight norm here; expected groups=1"
        )
    return 1


def weight_norm(layer: nn.Module, options: "Normalizer") -> nn.Module:
    if options.multiplier:
        return parametrizations.weight_norm(layer, dim=_dim_of_outputs(layer))
    return _with_weight(layer, _by_outputs(layer, UnitRows()))


def spectral_norm(layer: nn.Module, options: "Normalizer") -> nn.Module:
    parametrizations.spectral_norm(layer, dim=_dim_of_outputs(layer))
    norms = layer.parametrizations.weight
    norms[0] = OutsideAutocast(norms[0])
    return layer


def chains_convolution(conv: nn.Conv2d, options: "Normalizer") -> nn.Conv2d:
    return scale_weight(spectral_norm(conv, options), options.scale)


def bidirectional(conv: nn.Module, options: "Normalizer") -> nn.Conv2d:
    return _with_weight(conv, OutsideAutocast(Bidirectional(conv.weight, conv.groups)))


def standardized(conv: nn.Conv2d, options: "Normalizer") -> nn.Conv2d:
    return _with_weight(conv, StandardizedRows())


def operator(conv: nn.Conv2d, options: "Normalizer") -> nn.Conv2d:
    norm = OutsideAutocast(OperatorNorm(conv), rounded=convolutions_are_rounded)
    return _with_weight(conv, norm)


def fit_operator_norms(layer: nn.Module, size: torch.Size) -> None:
    """Take the operator norms in a layer at the size of its input, (N, C, H, W)."""
    for module in layer.modules():
        if isinstance(module, UnitOperatorNorm):
            module.fit(size[2:])
        elif parametrize.is_parametrized(module, "weight"):
            stored = module.parametrizations.weight
            for norm in stored.modules():
                if isinstance(norm, OperatorNorm):
                    norm.fit(stored.original, size[2:])


def iterate(layer: nn.Module) -> None:
    """One step of every power iteration in a layer."""
    for module in layer.modules():
        if parametrize.is_parametrized(module, "weight"):
            module.weight  # noqa: B018  spectral norm iterates where the weight is read
        elif isinstance(module, UnitOperatorNorm):
            module.iterate()


def _orthogonal(layer: nn.Module, parametrization: nn.Module, options: "Normalizer") -> nn.Module:
    rows = _num_rows(layer)
    _with_weight(layer, OutsideAutocast(_by_outputs(layer, parametrization)))
    if options.multiplier:
        stored = next(layer.parameters())
        _with_weight(layer, _by_outputs(layer, Scale(1.0, learned_rows=rows, like=stored)))
    return layer


def _num_rows(layer: nn.Module) -> int:
    """How many outputs a layer has, or classes an embedding."""
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def oni(layer: nn.Module, options: "Normalizer") -> nn.Module:
    conv_groups = getattr(layer, "groups", 1)
    parametrization = ONI(options.iterations, options.groups, conv_groups, options.as_published)
    return _orthogonal(layer, parametrization, options)


def own(layer: nn.Module, options: "Normalizer") -> nn.Module:
    return _orthogonal(layer, OWN(options.groups, getattr(layer, "groups", 1)), options)


def aol(layer: nn.Module, options: "Normalizer") -> nn.Module:
    if isinstance(layer, nn.Linear):
        return _with_weight(layer, OutsideAutocast(AOL()))
    # A transposed convolution has the weight, and the norm, of the convolution whose adjoint it is.
    return _with_weight(layer, OutsideAutocast(AOL(layer.stride, layer.dilation, layer.groups)))


def aol_embedding(embedding: nn.Embedding, options: "Normalizer") -> nn.Embedding:
    """As of a linear layer whose one-hot inputs are the classes: e_c by sum over c' of |e_c.e_c'|.

    So e_c becomes e_c (sum_c' |e_c.e_c'| + eps)^(-1/2), and the matrix has a norm of at most 1.
    """
    return _with_weight(embedding, OutsideAutocast(OutputsFirst(AOL())))


def orthogonality_penalty(network: nn.Module, options: "Normalizer") -> torch.Tensor:
    return options.penalty_weight * orthogonality(network, options.as_published)


def convnorm(conv: nn.Conv2d, options: "Normalizer") -> ConvNorm2d:
    return ConvNorm2d.from_conv(
        conv,
        grid=options.grid,
        affine=options.affine,
        affine_init=options.affine_init,
        affine_mode=options.affine_mode,
        batch_norm=False,
        gradient_through_gain=options.gradient_through_gain,
        eps=options.eps,
        filter="fused" if options.fused_filter else "auto",
        scale=options.scale,
    )


def transposed_convnorm(conv: nn.ConvTranspose2d, options: "Normalizer") -> ConvNormTranspose2d:
    return ConvNormTranspose2d.from_conv(
        conv,
        affine=options.affine,
        affine_init=options.affine_init,
        batch_norm=False,
        gradient_through_gain=options.gradient_through_gain,
        eps=options.eps,
        scale=options.scale,
    )


def spectral_convnorm(conv: nn.Conv2d, options: "Normalizer") -> UnitOperatorNorm:
    return UnitOperatorNorm(convnorm(conv, options), scale=options.scale)


def affine(conv: nn.Conv2d, options: "Normalizer") -> nn.Sequential:
    # The affine of either grid is the same; the full one would refuse some circular layers.
    like = ConvNorm2d.from_conv(
        conv, grid="native", affine_init=options.affine_init, batch_norm=False
    )
    return nn.Sequential(conv, like.affine)
