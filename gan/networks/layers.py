"""What networks of several families are made of."""

from torch import Tensor, nn


class Unconditional(nn.Sequential):
    """Layers one after another, of a network that takes labels like all others and ignores them."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (N, ...), z or images; labels: (N,), the classes that they belong to."""
        return super().forward(x)
