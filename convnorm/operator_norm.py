"""A layer divided by its operator norm: spectral norm of the map that it really computes."""

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.fixed import computed_once
from convnorm.precision import convolutions_are_rounded, in_float64


class UnitOperatorNorm(nn.Module):
    """A layer divided by its operator norm, which a power iteration tracks.

    Spectral norm (Miyato et al., 2018) takes the norm of the reshaped weight; this takes that of
    the linear map which the layer computes on `size` x `size` maps. Each forward pass in training
    does one iteration, in evaluation none. Gradients flow through the norm.

    scale: the norm that is left. `layer` has it as a factor before its own offset.
    """

    def __init__(self, layer: nn.Conv2d, size: int = 16, scale: float = 1.0):
        super().__init__()
        self.layer = layer
        self.scale = scale
        u = torch.randn(1, layer.in_channels, size, size, device=layer.weight.device)
        self.register_buffer("u", u / u.norm())
        for _ in range(15):  # as torch's spectral_norm: start close to the fixed point
            self.iterate()

    def _linear(self, u: torch.Tensor) -> torch.Tensor:
        """The layer without its offset, on u: (1, I, size, size)."""
        if convolutions_are_rounded(u.device.type):
            return in_float64(self.layer, u) - in_float64(self.layer, torch.zeros_like(u))
        return self.layer(u) - self.layer(torch.zeros_like(u))

    def iterate(self) -> None:
        """Move `u` one step of the power iteration towards the first right singular vector."""
        with torch.autocast(self.u.device.type, enabled=False), torch.enable_grad():
            u = self.u.clone().requires_grad_()
            half_square = self._linear(u).square().sum() / 2
            (u,) = torch.autograd.grad(half_square, u)  # A^T A u
        self.u.copy_(F.normalize(u.flatten(), dim=0).view_as(u))

    def operator_norm(self) -> torch.Tensor:
        """The largest singular value of the layer, a scalar with gradient."""
        if self.training:
            self.iterate()
        with torch.autocast(self.u.device.type, enabled=False):
            if self.training:
                return self._norm(self.u)
            return computed_once(self._norm, self.u, weights=self.layer.parameters())

    def _norm(self, u: torch.Tensor) -> torch.Tensor:
        return self._linear(u.clone()).norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.operator_norm().clamp(min=1e-12)
        y = self.layer(x)
        # The norm holds the factor that the layer has before its offset, and takes it away again.
        norm = norm if self.scale == 1 else norm / self.scale
        return y / norm.to(y.dtype)
