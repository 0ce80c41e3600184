"""What networks of several families are made of."""

from dataclasses import dataclass

from torch import Tensor, nn

from convnorm.experiment.config.fields import bounded, check_ranges


@dataclass(frozen=True)
class Widths:
    """Options of a family whose layers are in proportion.

    Args:
        generator_width: channels of the last stage.
        discriminator_width: channels after the first layer.
    """

    generator_width: int = bounded(64, least=1, most=8192)
    discriminator_width: int = bounded(64, least=1, most=8192)

    def __post_init__(self):
        check_ranges(self, "model.options")


class Unconditional(nn.Sequential):
    """Layers one after another, of a network that takes labels like all others and ignores them."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (N, ...), z or images; labels: (N,), the classes that they belong to."""
        return super().forward(x)
