"""The catalogue of normalizers: name -> how to build a normalized layer out of a plain one.

Networks build plain convolutions and pass each one through a `Normalizer`; they never name a
kind. To add a kind, write one function and add one line to `CATALOGUE`. What the weight alone
decides is in convnorm.parametrizations, what the loss does about it in convnorm.penalties.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from convnorm.fixed import once
from convnorm.layer import ConvNorm2d
from convnorm.parametrizations import ONI, OWN, InFloat32, Scale, UnitRows
from convnorm.penalties import orthogonality


class Normalized(nn.Sequential):
    """A convolution followed by what normalizes its output."""


class UnitOperatorNorm(nn.Module):
    """A layer divided by its operator norm, which a power iteration tracks.

    What spectral norm does with the reshaped weight matrix (Miyato et al., 2018), done with the
    linear map that the layer really computes on a `size` x `size` map: one iteration in every
    training forward pass, none in evaluation; gradients flow through the norm.
    """

    def __init__(self, layer: nn.Conv2d, size: int = 16):
        super().__init__()
        self.layer = layer
        u = torch.randn(1, layer.in_channels, size, size, device=layer.weight.device)
        self.register_buffer("u", u / u.norm())
        for _ in range(15):  # as torch's spectral_norm: start close to the fixed point
            self._iterate()

    def _linear(self, u: torch.Tensor) -> torch.Tensor:
        """The layer without its offset, on u: (1, I, size, size)."""
        return self.layer(u) - self.layer(torch.zeros_like(u))

    def _iterate(self) -> None:
        with torch.enable_grad():
            u = self.u.clone().requires_grad_()
            half_square = self._linear(u).square().sum() / 2
            (u,) = torch.autograd.grad(half_square, u)  # A^T A u
        self.u.copy_(F.normalize(u.flatten(), dim=0).view_as(u))

    def operator_norm(self) -> torch.Tensor:
        """The largest singular value of the layer, a scalar with gradient."""
        with torch.autocast(self.u.device.type, enabled=False):
            if self.training:
                self._iterate()
                return self._norm(self.u)
            return once(self._norm, self.u)

    def _norm(self, u: torch.Tensor) -> torch.Tensor:
        return self._linear(u.clone()).norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.operator_norm().clamp(min=1e-12)
        y = self.layer(x)
        return y / norm.to(y.dtype)


Layer = nn.Conv2d | nn.Linear


def none(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """Really nothing."""
    return layer


def batch(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """BatchNorm (Ioffe & Szegedy, 2015), not on the layer that sees the image (Radford et al.)."""
    if isinstance(layer, nn.Linear) or at_input:
        return layer
    return Normalized(layer, nn.BatchNorm2d(layer.out_channels, affine=options.multiplier))


def layer(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """Layer normalization over (C, H, W) of each sample (Ba et al., 2016)."""
    if isinstance(layer, nn.Linear):
        return layer
    return Normalized(layer, nn.GroupNorm(1, layer.out_channels, affine=options.multiplier))


def _with_batch_norm(layer: Layer, options: "Normalizer") -> nn.Module:
    """What works on the weight, then, if asked for, BatchNorm on the output of a convolution."""
    if isinstance(layer, nn.Linear) or not options.batch_norm:
        return layer
    return Normalized(layer, nn.BatchNorm2d(layer.out_channels))


def weight(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """Weight normalization (Salimans & Kingma, 2016); without a multiplier rows have norm 1."""
    if options.multiplier:
        parametrizations.weight_norm(layer)
    else:
        parametrize.register_parametrization(layer, "weight", UnitRows())
    return _with_batch_norm(layer, options)


def _spectral_norm(layer: Layer) -> Layer:
    parametrizations.spectral_norm(layer)
    norms = layer.parametrizations.weight
    norms[0] = InFloat32(norms[0])
    return layer


def spectral(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """Spectral normalization of the reshaped weight (Miyato et al., 2018), torch's own."""
    return _with_batch_norm(_spectral_norm(layer), options)


def _orthogonal(layer: Layer, parametrization: nn.Module, options: "Normalizer") -> nn.Module:
    scale = Scale(options.scale, learned_rows=len(layer.weight) if options.multiplier else 0)
    parametrize.register_parametrization(layer, "weight", InFloat32(parametrization))
    parametrize.register_parametrization(layer, "weight", scale)
    return _with_batch_norm(layer, options)


def oni(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """Orthogonalization of the reshaped weight by Newton's iteration (Huang et al., 2020)."""
    parametrization = ONI(
        options.iterations, options.groups, getattr(layer, "groups", 1), options.as_published
    )
    return _orthogonal(layer, parametrization, options)


def own(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """Orthogonal weight normalization of the reshaped weight (Huang et al., 2018)."""
    return _orthogonal(layer, OWN(options.groups, getattr(layer, "groups", 1)), options)


def ocnn(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """Orthogonal convolutions by a penalty (Wang et al., 2020): see `Normalizer.penalty`."""
    return _with_batch_norm(layer, options)


def _convnorm(conv: nn.Conv2d, options: "Normalizer", batch_norm: bool) -> ConvNorm2d:
    return ConvNorm2d.from_conv(
        conv,
        grid=options.grid,
        affine=options.affine,
        affine_init=options.affine_init,
        batch_norm=batch_norm,
        gradient_through_gain=options.gradient_through_gain,
        eps=options.eps,
    )


def convnorm(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """ConvNorm (Liu et al., 2021)."""
    if isinstance(layer, nn.Linear):
        return layer
    return _convnorm(layer, options, options.batch_norm)


def spectral_convnorm(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """ConvNorm divided by its own operator norm; the last, linear layer gets spectral norm.

    ConvNorm does not see the scale of a weight, so spectral norm of the weight before it would
    change nothing. After it, the layer has operator norm 1 on 16 x 16 maps: about 1 % more on
    larger ones, less on smaller ones.
    """
    if isinstance(layer, nn.Linear):
        return _spectral_norm(layer)
    normalized = UnitOperatorNorm(_convnorm(layer, options, batch_norm=False))
    if not options.batch_norm:
        return normalized
    return Normalized(normalized, nn.BatchNorm2d(layer.out_channels))


def affine(layer: Layer, options: "Normalizer", at_input: bool) -> nn.Module:
    """The control for convnorm with affine and batch_norm: these two, without the filter."""
    if isinstance(layer, nn.Linear):
        return layer
    reference = ConvNorm2d.from_conv(layer, affine_init=options.affine_init)
    return Normalized(layer, reference.affine, reference.batch_norm)


CATALOGUE: dict[str, Callable[[Layer, "Normalizer", bool], nn.Module]] = {
    "none": none,
    "batch": batch,
    "layer": layer,
    "weight": weight,
    "spectral": spectral,
    "convnorm": convnorm,
    "spectral_convnorm": spectral_convnorm,
    "oni": oni,
    "own": own,
    "ocnn": ocnn,
    "affine": affine,
}


@dataclass(frozen=True)
class Normalizer:
    """A kind of the catalogue with its options; call it on a plain layer to normalize it.

    A kind leaves the options of others alone, so that `kind` can be varied by itself.

    kind: a key of CATALOGUE.
    multiplier: batch, layer, weight, oni, own: with the learned scale (and shift), without in a
        discriminator by Miyato et al. (2018).
    batch_norm: BatchNorm after each convolution: every kind but none, batch, layer and affine.
    grid, affine, affine_init, gradient_through_gain, eps: convnorm and spectral_convnorm, as
        ConvNorm2d; affine_init: also kind `affine`.
    iterations: oni.
    groups, scale: oni and own; groups of rows, and what the weight is multiplied by (the start
        of the multiplier): sqrt(2) for networks with ReLU by Huang et al. (2020), 1 in their GAN.
    penalty_weight: ocnn. With 1e-3, a learning rate of 0.1 and momentum 0.9 it brings the norm
        of a filter to 1 with a time constant of 125 steps. The paper's 0.1 is for the published
        value, a norm and not its square.
    as_published: oni and ocnn with the defects of the published code.
    """

    kind: Literal[tuple(CATALOGUE)]
    multiplier: bool = False
    batch_norm: bool = False
    grid: Literal["full", "native"] = "full"
    affine: bool = False
    affine_init: Literal["default", "dirac"] = "dirac"
    gradient_through_gain: bool = False
    eps: float = 1e-6
    iterations: int = 5
    groups: int = 1
    scale: float = 2**0.5
    penalty_weight: float = 1e-3
    as_published: bool = False

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether what becomes of an image in training depends on the others in its batch."""
        if self.kind in ("none", "batch", "layer", "affine"):
            return self.kind in ("batch", "affine")
        return self.batch_norm

    @property
    def shifts(self) -> bool:
        """Whether a normalized convolution adds an offset of its own, so needs no bias before.

        `batch` does not where the image enters (`at_input`).
        """
        if self.kind in ("batch", "layer"):
            return self.multiplier
        return self.uses_batch_statistics or (self.affine and "convnorm" in self.kind)

    def penalty(self, network: nn.Module) -> torch.Tensor | None:
        """What to add to the loss of a normalized network, a scalar; None for most kinds."""
        if self.kind != "ocnn":
            return None
        return self.penalty_weight * orthogonality(network, self.as_published)

    def __call__(self, layer: Layer, *, at_input: bool = False) -> nn.Module:
        """Return the normalized layer; `layer` itself may be changed and is part of it.

        at_input: the layer sees the image itself. The global random state is left as it was
        found, so that all kinds build the rest of a network from the same random numbers.
        """
        with torch.random.fork_rng(devices=[]):
            return CATALOGUE[self.kind](layer, self, at_input)
