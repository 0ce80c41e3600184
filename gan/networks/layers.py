"""What networks of several families are made of."""

from dataclasses import dataclass

from torch import Tensor, nn

from convnorm.experiment.config import require


@dataclass(frozen=True)
class Widths:
    """Options of a family whose layers are in proportion.

    generator_width: channels of the last stage. discriminator_width: after the first layer.
    """

    generator_width: int = 64
    discriminator_width: int = 64

    def __post_init__(self):
        for key in ("generator_width", "discriminator_width"):
            value = getattr(self, key)
            require(value >= 1, f"model.options.{key}", value, "1 or more")


class Unconditional(nn.Sequential):
    """Layers one after another, of a network that takes labels like all others and ignores them."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (N, ...), z or images; labels: (N,), the classes that they belong to."""
        return super().forward(x)
