"""The catalogue of normalizers: name -> all that the suite knows of a kind.

To add one, add a `Kind` to `CATALOGUE`: no other list of kinds exists. What the weight alone
decides is in convnorm.parametrizations, what the loss does about it in convnorm.penalties.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from convnorm.aol import AOL
from convnorm.chain import Chain, chains_penalty, observe
from convnorm.group_norm import GroupNorm
from convnorm.kind import Kind, as_it_is
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


def _always(options: "Normalizer") -> bool:
    return True


def _with_multiplier(options: "Normalizer") -> bool:
    return options.multiplier


def _without_multiplier(options: "Normalizer") -> bool:
    return not options.multiplier


def _with_affine(options: "Normalizer") -> bool:
    return options.affine


def _batch(channels: int, options: "Normalizer") -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=options.multiplier)


def _layer(channels: int, options: "Normalizer") -> nn.GroupNorm:
    return nn.GroupNorm(1, channels, affine=options.multiplier)


def _group(channels: int, options: "Normalizer") -> GroupNorm:
    return GroupNorm(math.gcd(NUM_GROUPS, channels), channels, affine=options.multiplier)


def _instance(channels: int, options: "Normalizer") -> GroupNorm:
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


def _weight(layer: nn.Module, options: "Normalizer") -> nn.Module:
    if options.multiplier:
        return parametrizations.weight_norm(layer, dim=_dim_of_outputs(layer))
    return _with_weight(layer, _by_outputs(layer, UnitRows()))


def _spectral(layer: nn.Module, options: "Normalizer") -> nn.Module:
    parametrizations.spectral_norm(layer, dim=_dim_of_outputs(layer))
    norms = layer.parametrizations.weight
    norms[0] = OutsideAutocast(norms[0])
    return layer


def _chains_convolution(conv: nn.Conv2d, options: "Normalizer") -> nn.Conv2d:
    return scale_weight(_spectral(conv, options), options.scale)


def _bidirectional(conv: nn.Module, options: "Normalizer") -> nn.Conv2d:
    return _with_weight(conv, OutsideAutocast(Bidirectional(conv.weight, conv.groups)))


def _standardized(conv: nn.Conv2d, options: "Normalizer") -> nn.Conv2d:
    return _with_weight(conv, StandardizedRows())


def _operator(conv: nn.Conv2d, options: "Normalizer") -> nn.Conv2d:
    norm = OutsideAutocast(OperatorNorm(conv), rounded=convolutions_are_rounded)
    return _with_weight(conv, norm)


def _fit_operator_norms(layer: nn.Module, size: torch.Size) -> None:
    """Take the operator norms in a layer at the size of its input, (N, C, H, W)."""
    for module in layer.modules():
        if isinstance(module, UnitOperatorNorm):
            module.fit(size[2:])
        elif parametrize.is_parametrized(module, "weight"):
            stored = module.parametrizations.weight
            for norm in stored.modules():
                if isinstance(norm, OperatorNorm):
                    norm.fit(stored.original, size[2:])


def _iterate(layer: nn.Module) -> None:
    """One step of every power iteration in a layer."""
    for module in layer.modules():
        if parametrize.is_parametrized(module, "weight"):
            module.weight  # noqa: B018  spectral norm iterates where the weight is read
        elif isinstance(module, UnitOperatorNorm):
            module.iterate()


def _orthogonal(layer: nn.Module, parametrization: nn.Module, options: "Normalizer") -> nn.Module:
    rows = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    _with_weight(layer, OutsideAutocast(_by_outputs(layer, parametrization)))
    if options.multiplier:
        _with_weight(layer, _by_outputs(layer, Scale(1.0, learned_rows=rows)))
    return layer


def _oni(layer: nn.Module, options: "Normalizer") -> nn.Module:
    conv_groups = getattr(layer, "groups", 1)
    parametrization = ONI(options.iterations, options.groups, conv_groups, options.as_published)
    return _orthogonal(layer, parametrization, options)


def _own(layer: nn.Module, options: "Normalizer") -> nn.Module:
    return _orthogonal(layer, OWN(options.groups, getattr(layer, "groups", 1)), options)


def _aol(layer: nn.Module, options: "Normalizer") -> nn.Module:
    if isinstance(layer, nn.Linear):
        return _with_weight(layer, OutsideAutocast(AOL()))
    # A transposed convolution has the weight, and the norm, of the convolution whose adjoint it is.
    return _with_weight(layer, OutsideAutocast(AOL(layer.stride, layer.dilation, layer.groups)))


def _orthogonality(network: nn.Module, options: "Normalizer") -> torch.Tensor:
    return options.penalty_weight * orthogonality(network, options.as_published)


def _convnorm(conv: nn.Conv2d, options: "Normalizer") -> ConvNorm2d:
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


def _transposed_convnorm(conv: nn.ConvTranspose2d, options: "Normalizer") -> ConvNormTranspose2d:
    return ConvNormTranspose2d.from_conv(
        conv,
        affine=options.affine,
        affine_init=options.affine_init,
        batch_norm=False,
        gradient_through_gain=options.gradient_through_gain,
        eps=options.eps,
        scale=options.scale,
    )


def _spectral_convnorm(conv: nn.Conv2d, options: "Normalizer") -> UnitOperatorNorm:
    return UnitOperatorNorm(_convnorm(conv, options), scale=options.scale)


def _affine(conv: nn.Conv2d, options: "Normalizer") -> nn.Sequential:
    like = ConvNorm2d.from_conv(conv, affine_init=options.affine_init, batch_norm=False)
    return nn.Sequential(conv, like.affine)


def _of_each_image(does: str, output: Callable[[int, "Normalizer"], nn.Module]) -> Kind:
    """A kind that normalizes a map by statistics of the image itself."""
    return Kind(
        does=does,
        transposed=as_it_is,
        output=output,
        reads=("scale", "multiplier"),
        is_affine=False,
        output_has_shift=_with_multiplier,
        ignores_scale=_without_multiplier,
    )


CONVNORM = (
    "scale",
    "grid",
    "affine",
    "affine_init",
    "affine_mode",
    "gradient_through_gain",
    "fused_filter",
    "eps",
    "batch_norm",
)
NUM_GROUPS = 32  # of channels, by Wu & He (2018)
RELU_GAIN = 2**0.5  # of orthogonal weights, by Huang et al. (2020); 1 in their GAN

CATALOGUE: dict[str, Kind] = {
    # Really nothing.
    "none": Kind(does="nothing at all", transposed=as_it_is),
    # Ioffe & Szegedy, 2015; not on the layer that sees the image (Radford et al., 2016).
    "batch": Kind(
        does="BatchNorm of its output (Ioffe & Szegedy 2015); in D not where the image enters",
        transposed=as_it_is,
        output=_batch,
        at_input=False,
        reads=("scale", "multiplier"),
        output_has_shift=_with_multiplier,
        mixes_batch=True,
        ignores_scale=_without_multiplier,
    ),
    # Over (C, H, W) of each sample (Ba et al., 2016).
    "layer": _of_each_image("LayerNorm over (C, H, W) of its output (Ba et al. 2016)", _layer),
    # Over 32 groups of channels of each sample (Wu & He, 2018), or as many as divide both.
    "group": _of_each_image(
        "GroupNorm of its output, of 32 groups or as many as divide both (Wu & He 2018)", _group
    ),
    # Over each channel of each sample (Ulyanov et al., 2016), without running statistics.
    "instance": _of_each_image("InstanceNorm of its output (Ulyanov et al. 2016)", _instance),
    # Salimans & Kingma, 2016; without a multiplier every row has norm 1.
    "weight": Kind(
        does="every row of the reshaped weight has norm 1 (Salimans & Kingma 2016)",
        conv=_weight,
        linear=_weight,
        transposed=_weight,
        reads=("scale", "multiplier", "batch_norm"),
        ignores_scale=_without_multiplier,
    ),
    # Of the reshaped weight (Miyato et al., 2018), torch's own.
    "spectral": Kind(
        does="reshaped weight divided by its largest singular value (Miyato et al. 2018)",
        conv=_spectral,
        linear=_spectral,
        transposed=_spectral,
        reads=("scale", "batch_norm"),
        ignores_scale=_always,
        advance=_iterate,
    ),
    # Of both reshapings of the weight (Lin et al., 2021); with `scale` it is their BSSN. A matrix
    # has the same norm in both, so a linear layer has spectral norm.
    "bidirectional": Kind(
        does="weight divided by the mean norm of its two reshapings (Lin et al. 2021)",
        conv=_bidirectional,
        linear=_spectral,
        transposed=_bidirectional,  # its two reshapings are those of the convolution
        reads=("scale", "batch_norm"),
        ignores_scale=_always,
        advance=_iterate,
    ),
    # Qiao et al., 2019, of convolutions. Its gain is large: sqrt(n) for n inputs of an output.
    "weight_standardization": Kind(
        does="every row has mean 0 and deviation 1, so norm sqrt(n - 1) (Qiao et al. 2019)",
        conv=_standardized,
        reads=("scale", "batch_norm"),
        ignores_scale=_always,
    ),
    # Liu et al., 2021. Its affine has a scale of its own.
    "convnorm": Kind(
        does="output channels divided by their spectrum (Liu et al. 2021)",
        conv=_convnorm,
        transposed=_transposed_convnorm,
        reads=CONVNORM,
        conv_scales=True,
        conv_has_shift=_with_affine,
        ignores_scale=lambda options: not options.affine,
    ),
    # The operator norm of the convolution on maps of its own size (Gouk et al., 2018): what
    # spectral norm stands for, and the control for spectral_convnorm.
    "operator": Kind(
        does="weight divided by the convolution's norm on maps of its own size (Gouk et al. 2018)",
        conv=_operator,
        linear=_spectral,
        reads=("scale", "batch_norm"),
        fit=_fit_operator_norms,
        ignores_scale=_always,
        advance=_iterate,
    ),
    # ConvNorm divided by its own operator norm, with its affine, on maps of its own size.
    # ConvNorm does not see the scale of a weight, so spectral norm of the weight before it would
    # change nothing.
    "spectral_convnorm": Kind(
        does="ConvNorm divided by its own operator norm on maps of its own size",
        conv=_spectral_convnorm,
        linear=_spectral,
        reads=CONVNORM,
        conv_scales=True,
        fit=_fit_operator_norms,
        conv_has_shift=_with_affine,
        ignores_scale=_always,
        advance=_iterate,
    ),
    # Newton's iteration on the reshaped weight (Huang et al., 2020). The published code leaves out
    # the division that takes the scale away.
    "oni": Kind(
        does="reshaped weight made orthogonal by Newton's iteration (Huang et al. 2020)",
        conv=_oni,
        linear=_oni,
        transposed=_oni,
        reads=("scale", "multiplier", "batch_norm", "iterations", "groups", "as_published"),
        relu_gain=RELU_GAIN,
        ignores_scale=lambda options: not options.multiplier and not options.as_published,
    ),
    # Orthogonal weight normalization of the reshaped weight (Huang et al., 2018).
    "own": Kind(
        does="reshaped weight made orthogonal exactly (Huang et al. 2018)",
        conv=_own,
        linear=_own,
        transposed=_own,
        reads=("scale", "multiplier", "batch_norm", "groups"),
        waits=True,  # for whether its eigenvalues were found
        relu_gain=RELU_GAIN,
        ignores_scale=_without_multiplier,
    ),
    # Of operator norm 1 at most, by a bound on the products of a layer's columns (Prach & Lampert,
    # 2022), without their start at orthogonal kernels. A BatchNorm behind it voids the bound.
    "aol": Kind(
        does="inputs rescaled so that the operator norm is at most 1 (Prach & Lampert 2022)",
        conv=_aol,
        linear=_aol,
        transposed=_aol,
        reads=("scale", "batch_norm"),
        ignores_scale=_always,
    ),
    # Ni & Koniusz, 2024: beside spectral norm, as published, and behind all convolutions of a
    # discriminator but those that see the image. Its penalty has the published weight.
    "chain": Kind(
        does="spectral norm, channels drawn to the least as D overfits (Ni & Koniusz 2024)",
        conv=_chains_convolution,
        linear=_spectral,
        output=lambda channels, options: Chain(channels),
        at_input=False,
        reads=("scale",),
        conv_scales=True,
        mixes_batch=True,
        ignores_scale=_always,
        penalty=lambda network, options: chains_penalty(network),
        statistics=("p", "running_sign", "running_square"),
        observe=observe,
        advance=_iterate,
    ),
    # Orthogonal convolutions by a penalty (Wang et al., 2020).
    "ocnn": Kind(
        does="a penalty for convolutions that are not orthogonal (Wang et al. 2020)",
        reads=("scale", "batch_norm", "penalty_weight", "as_published"),
        penalty=_orthogonality,
    ),
    # The control for convnorm with affine and batch_norm: these two, without the filter.
    "affine": Kind(
        does="a depthwise convolution and BatchNorm: `convnorm` with both, but for its filter",
        conv=_affine,
        output=lambda channels, options: nn.BatchNorm2d(channels),
        reads=("scale", "affine_init"),
        conv_has_shift=_always,
        output_has_shift=_always,
        mixes_batch=True,
    ),
}
