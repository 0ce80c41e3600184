"""What `convert` did with a model, layer by layer."""

from dataclasses import dataclass

from convnorm.columns import aligned
from convnorm.normalizers import Normalizer


@dataclass(frozen=True)
class Conversion:
    """What became of one convolution.

    layer: its name in the model, the first one if it has several; "" if it is the model itself.
    converted: else it was left as it is.
    reason: why it was left, or what is to be said of the layer that it became.
    error: of the calibrated layer, |y - c| / |c| against the convolution's output c: measured on
        the images, or to be expected under white inputs. None if it was not calibrated.
    lost_names, new_names: in the layer's state dict.
    """

    layer: str
    converted: bool
    reason: str
    error: float | None = None
    lost_names: tuple[str, ...] = ()
    new_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did with each convolution of a model; prints as a table.

    rows: one for each convolution, in the order of the model. What was normalized before is one.
    normalizer: which they were normalized by.
    images: how many the affines were fitted to by least squares.
    output_error: |y' - y| / |y| of the model's output on the example, y' after the conversion and
        y before, in evaluation mode. None without an example.
    """

    rows: tuple[Conversion, ...]
    normalizer: Normalizer
    images: int | None = None
    output_error: float | None = None

    @property
    def converted(self) -> tuple[str, ...]:
        """The names of the layers that were converted."""
        return tuple(row.layer for row in self.rows if row.converted)

    @property
    def left(self) -> dict[str, str]:
        """layer -> why it was left as it is."""
        return {row.layer: row.reason for row in self.rows if not row.converted}

    def __str__(self) -> str:
        calibrated = any(row.error is not None for row in self.rows)
        table = [("layer", "action", *(["error"] if calibrated else []), "reason")]
        for row in self.rows:
            error = "" if row.error is None else f"{row.error:.1%}"
            action = "converted" if row.converted else "left"
            layer = row.layer or "(the model)"
            table.append((layer, action, *([error] if calibrated else []), row.reason))
        return "\n".join([aligned(table), "", *self._remarks(calibrated)])

    def _remarks(self, calibrated: bool) -> list[str]:
        kind = self.normalizer.kind
        remarks = [f"{len(self.converted)} of {len(self.rows)} converted to {kind}."]
        changes = {(row.lost_names, row.new_names) for row in self.rows if row.converted}
        for lost, new in sorted(changes - {((), ())}):
            change = f"{', '.join(lost)} -> {', '.join(new)}" if lost else f"+ {', '.join(new)}"
            remarks.append(f"State dict of a converted layer: {change}")
        if calibrated:
            by = f"least squares on {self.images} images" if self.images else "the weights"
            remarks.append(f"The affines start by {by}, near the convolutions: now fine-tune.")
        if self.output_error is not None:
            remarks.append(f"Error of the model's output on the example: {self.output_error:.1%}.")
        return remarks
