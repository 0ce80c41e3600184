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


class Labelled(nn.Sequential):
    """Layers one after another; those with `takes_labels`, of conditional networks, get the labels.

    Networks without such layers take labels all the same, and ignore them.
    """

    takes_labels = True

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (N, ...), z or images; labels: (N,), the classes that they belong to."""
        for layer in self:
            x = layer(x, labels) if getattr(layer, "takes_labels", False) else layer(x)
        return x
