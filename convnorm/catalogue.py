"""The catalogue of normalizers: name -> all that the suite knows of a kind.

To add one, add a `Kind` to `CATALOGUE`: no other list of kinds exists. What a kind makes of a layer
is in convnorm.making, what the weight alone decides in convnorm.parametrizations, and what the loss
does about it in convnorm.penalties.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from convnorm import making
from convnorm.chain import Chain, chains_penalty, observe
from convnorm.kind import Kind, as_it_is

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
RELU_GAIN = 2**0.5  # of orthogonal weights, by Huang et al. (2020); 1 in their GAN

CATALOGUE: dict[str, Kind] = {
    # Really nothing.
    "none": Kind(does="nothing at all", transposed=as_it_is),
    # Ioffe & Szegedy, 2015; not on the layer that sees the image (Radford et al., 2016).
    "batch": Kind(
        does="BatchNorm of its output (Ioffe & Szegedy 2015); in D not where the image enters",
        transposed=as_it_is,
        output=making.batch_norm,
        at_input=False,
        reads=("scale", "multiplier"),
        output_has_shift=_with_multiplier,
        mixes_batch=True,
        ignores_scale=_without_multiplier,
    ),
    # Over (C, H, W) of each sample (Ba et al., 2016).
    "layer": _of_each_image(
        "LayerNorm over (C, H, W) of its output (Ba et al. 2016)", making.layer_norm
    ),
    # Over 32 groups of channels of each sample (Wu & He, 2018), or as many as divide both.
    "group": _of_each_image(
        "GroupNorm of its output, of 32 groups or as many as divide both (Wu & He 2018)",
        making.group_norm,
    ),
    # Over each channel of each sample (Ulyanov et al., 2016), without running statistics.
    "instance": _of_each_image(
        "InstanceNorm of its output (Ulyanov et al. 2016)", making.instance_norm
    ),
    # Salimans & Kingma, 2016; without a multiplier every row has norm 1.
    "weight": Kind(
        does="every row of the reshaped weight has norm 1 (Salimans & Kingma 2016)",
        conv=making.weight_norm,
        linear=making.weight_norm,
        embedding=making.weight_norm,
        transposed=making.weight_norm,
        reads=("scale", "multiplier", "batch_norm"),
        ignores_scale=_without_multiplier,
    ),
    # Of the reshaped weight (Miyato et al., 2018), torch's own.
    "spectral": Kind(
        does="reshaped weight divided by its largest singular value (Miyato et al. 2018)",
        conv=making.spectral_norm,
        linear=making.spectral_norm,
        embedding=making.spectral_norm,
        transposed=making.spectral_norm,
        reads=("scale", "batch_norm"),
        ignores_scale=_always,
        advance=making.iterate,
    ),
    # Of both reshapings of the weight (Lin et al., 2021); with `scale` it is their BSSN. A matrix
    # has the same norm in both, so a linear layer has spectral norm.
    "bidirectional": Kind(
        does="weight divided by the mean norm of its two reshapings (Lin et al. 2021)",
        conv=making.bidirectional,
        linear=making.spectral_norm,
        embedding=making.spectral_norm,
        transposed=making.bidirectional,  # its two reshapings are those of the convolution
        reads=("scale", "batch_norm"),
        ignores_scale=_always,
        advance=making.iterate,
    ),
    # Qiao et al., 2019, of convolutions. Its gain is large: sqrt(n) for n inputs of an output.
    "weight_standardization": Kind(
        does="every row has mean 0 and deviation 1, so norm sqrt(n - 1) (Qiao et al. 2019)",
        conv=making.standardized,
        reads=("scale", "batch_norm"),
        ignores_scale=_always,
    ),
    # Liu et al., 2021. Its affine has a scale of its own.
    "convnorm": Kind(
        does="output channels divided by their spectrum (Liu et al. 2021)",
        conv=making.convnorm,
        transposed=making.transposed_convnorm,
        reads=CONVNORM,
        conv_scales=True,
        conv_has_shift=_with_affine,
        ignores_scale=lambda options: not options.affine,
    ),
    # The operator norm of the convolution on maps of its own size (Gouk et al., 2018): what
    # spectral norm stands for, and the control for spectral_convnorm.
    "operator": Kind(
        does="weight divided by the convolution's norm on maps of its own size (Gouk et al. 2018)",
        conv=making.operator,
        linear=making.spectral_norm,
        embedding=making.spectral_norm,
        reads=("scale", "batch_norm"),
        fit=making.fit_operator_norms,
        ignores_scale=_always,
        advance=making.iterate,
    ),
    # ConvNorm divided by its own operator norm, with its affine, on maps of its own size.
    # ConvNorm does not see the scale of a weight, so spectral norm of the weight before it would
    # change nothing.
    "spectral_convnorm": Kind(
        does="ConvNorm divided by its own operator norm on maps of its own size",
        conv=making.spectral_convnorm,
        linear=making.spectral_norm,
        embedding=making.spectral_norm,
        reads=CONVNORM,
        conv_scales=True,
        fit=making.fit_operator_norms,
        conv_has_shift=_with_affine,
        ignores_scale=_always,
        advance=making.iterate,
    ),
    # Newton's iteration on the reshaped weight (Huang et al., 2020). The published code leaves out
    # the division that takes the scale away.
    "oni": Kind(
        does="reshaped weight made orthogonal by Newton's iteration (Huang et al. 2020)",
        conv=making.oni,
        linear=making.oni,
        embedding=making.oni,
        transposed=making.oni,
        reads=("scale", "multiplier", "batch_norm", "iterations", "groups", "as_published"),
        relu_gain=RELU_GAIN,
        ignores_scale=lambda options: not options.multiplier and not options.as_published,
    ),
    # Orthogonal weight normalization of the reshaped weight (Huang et al., 2018).
    "own": Kind(
        does="reshaped weight made orthogonal exactly (Huang et al. 2018)",
        conv=making.own,
        linear=making.own,
        embedding=making.own,
        transposed=making.own,
        reads=("scale", "multiplier", "batch_norm", "groups"),
        waits=True,  # for whether its eigenvalues were found
        relu_gain=RELU_GAIN,
        ignores_scale=_without_multiplier,
    ),
    # Of operator norm 1 at most, by a bound on the products of a layer's columns (Prach & Lampert,
    # 2022), without their start at orthogonal kernels. A BatchNorm behind it voids the bound.
    "aol": Kind(
        does="inputs rescaled so that the operator norm is at most 1 (Prach & Lampert 2022)",
        conv=making.aol,
        linear=making.aol,
        embedding=making.aol_embedding,
        transposed=making.aol,
        reads=("scale", "batch_norm"),
        ignores_scale=_always,
    ),
    # Ni & Koniusz, 2024: beside spectral norm, as published, and behind all convolutions of a
    # discriminator but those that see the image. Its penalty has the published weight.
    "chain": Kind(
        does="spectral norm, channels drawn to the least as D overfits (Ni & Koniusz 2024)",
        conv=making.chains_convolution,
        linear=making.spectral_norm,
        embedding=making.spectral_norm,
        output=lambda channels, options: Chain(channels),
        at_input=False,
        reads=("scale",),
        conv_scales=True,
        mixes_batch=True,
        ignores_scale=_always,
        penalty=lambda network, options: chains_penalty(network),
        statistics=("p", "running_sign", "running_square"),
        observe=observe,
        advance=making.iterate,
    ),
    # Orthogonal convolutions by a penalty (Wang et al., 2020).
    "ocnn": Kind(
        does="a penalty for convolutions that are not orthogonal (Wang et al. 2020)",
        reads=("scale", "batch_norm", "penalty_weight", "as_published"),
        penalty=making.orthogonality_penalty,
    ),
    # The control for convnorm with affine and batch_norm: these two, without the filter.
    "affine": Kind(
        does="a depthwise convolution and BatchNorm: `convnorm` with both, but for its filter",
        conv=making.affine,
        output=lambda channels, options: nn.BatchNorm2d(channels),
        reads=("scale", "affine_init"),
        conv_has_shift=_always,
        output_has_shift=_always,
        mixes_batch=True,
    ),
}
