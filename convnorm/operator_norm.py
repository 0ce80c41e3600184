"""A layer divided by its operator norm: spectral norm of the map that it really computes.

That norm depends on the size of the map, so both forms are fitted to it (`fit_to_maps`); before,
they take 16 x 16.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.convolution import convolve, convolve_adjoint, pads_of
from convnorm.fixed import computed_once, shared_weights
from convnorm.layer import ConvNorm2d
from convnorm.parametrizations import WARM_UP
from convnorm.precision import convolutions_are_rounded, in_float64, outside_autocast

UNFITTED = 16  # height and width of a map that nothing is known of


class OperatorNorm(nn.Module):
    """The weight of a convolution divided by the convolution's operator norm, as a parametrization.

    The operator is the convolution as it is, without its bias: with its stride, padding of any
    mode, dilation and groups, on maps of one size. A power iteration with the convolution and its
    adjoint tracks the first right singular vector `u`, (1, I, H, W) (Gouk et al., 2018, arXiv
    1804.04368; Ryu et al., 2019): a step in every pass in training, in evaluation none. Gradients
    flow through the norm with u constant, as in spectral norm.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.in_channels = conv.in_channels
        self.geometry = (conv.stride, pads_of(conv), conv.dilation, conv.groups, conv.padding_mode)
        reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        self.fit(conv.weight, torch.Size(max(UNFITTED, r) for r in reach))

    @torch.no_grad()
    def fit(self, weight: torch.Tensor, size: torch.Size) -> None:
        """Take the norm on maps of `size`, (H, W), from now on; draws a new start of `u`."""
        u = torch.randn(1, self.in_channels, *size, dtype=weight.dtype, device=weight.device)
        self.register_buffer("u", u / u.norm())
        for _ in range(WARM_UP):
            self._iterate(weight)

    def _convolution(self, u: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return convolve(u, weight, *self.geometry)

    def _adjoint(self, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return convolve_adjoint(y, weight, tuple(self.u.shape[2:]), *self.geometry)

    @torch.no_grad()
    def _iterate(self, weight: torch.Tensor) -> None:
        z = self._adjoint(self._convolution(self.u, weight), weight)
        norm = z.norm()
        # Of a weight of zeros nothing would be left, and u stayed 0 for ever.
        self.u.copy_(torch.where(norm > 0, z / norm.clamp(min=1e-30), self.u))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._iterate(weight)
        # A copy: the next pass moves u, and a backward pass may still need it as it is.
        norm = self._convolution(self.u.clone(), weight).norm()
        return weight / norm.clamp(min=1e-12)


class _Function(nn.Module):
    """A function of a layer as a module with the layer's parameters."""

    def __init__(self, layer: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.layer, self.forward = layer, function


class UnitOperatorNorm(nn.Module):
    """A layer divided by its operator norm, which a power iteration tracks.

    Spectral norm (Miyato et al., 2018) takes the norm of the reshaped weight; this takes that of
    the linear map which the layer computes on `size` x `size` maps. Each forward pass in training
    does one iteration, in evaluation none. Gradients flow through the norm.

    scale: the norm that is left. `layer` has it as a factor before its own offset.
    """

    def __init__(self, layer: ConvNorm2d, size: int = UNFITTED, scale: float = 1.0):
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.fit(torch.Size((size, size)))

    def fit(self, size: torch.Size) -> None:
        """Take the norm on maps of `size`, (H, W), from now on; draws a new start of `u`."""
        weight = self.layer.weight
        like = {"dtype": weight.dtype, "device": weight.device}
        u = torch.randn(1, self.layer.in_channels, *size, **like)
        self.register_buffer("u", u / u.norm())
        for _ in range(WARM_UP):
            self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """Move `u` one step of the power iteration towards the first right singular vector."""
        z = self._computed(self._normal, self.u)
        self.u.copy_(F.normalize(z.flatten(), dim=0).view_as(z))

    def operator_norm(self) -> torch.Tensor:
        """The largest singular value of the layer, a scalar with gradient."""
        if self.training:
            self.iterate()
            return self._norm(self.u)
        return computed_once(self._norm, self.u, weights=self.layer.parameters())

    def _norm(self, u: torch.Tensor) -> torch.Tensor:
        return self._computed(self.layer.linear, u.clone()).norm()

    def _normal(self, u: torch.Tensor) -> torch.Tensor:
        """A^T A u of the linear map A that the layer is."""
        return self.layer.linear_adjoint(self.layer.linear(u), tuple(u.shape[2:]))

    def _computed(
        self, function: Callable[[torch.Tensor], torch.Tensor], u: torch.Tensor
    ) -> torch.Tensor:
        """A function of the layer at u, in full precision."""
        with outside_autocast(u.device.type):
            if convolutions_are_rounded(u.device.type):
                return in_float64(_Function(self.layer, function), u)
            return function(u)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with shared_weights():
            norm = self.operator_norm().clamp(min=1e-12)
            y = self.layer(x)
        # The norm holds the factor that the layer has before its offset, and takes it away again.
        norm = norm if self.scale == 1 else norm / self.scale
        return y / norm.to(y.dtype)
