"""How many casts and changes of layout a training step makes: copies that compute nothing."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speed.clock import Run

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.clone.default, aten.copy_.default)


@dataclass
class Copies:
    """Copies into another dtype (casts), and into another order of the same maps (layouts).

    Their numbers of elements in all stand beside them. What a library does inside an operation,
    as a convolution may, is not seen.
    """

    casts: int = 0
    cast_elements: int = 0
    layouts: int = 0
    layout_elements: int = 0

    def __str__(self) -> str:
        return (
            f"{self.casts} casts of {self.cast_elements / 1e6:.3g} million numbers, "
            f"{self.layouts} changes of layout of {self.layout_elements / 1e6:.3g} million"
        )


def copies(run: Run) -> Copies:
    """Count those of one call, after one that makes and keeps tables."""
    run()
    with _Counter() as counter:
        run()
    return counter.found


class _Counter(TorchDispatchMode):
    """Counts in whatever runs inside, backward passes too."""

    def __init__(self):
        super().__init__()
        self.found = Copies()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in COPIES:
            source = args[1] if func is aten.copy_.default else args[0]
            if source.dtype != out.dtype:
                self.found.casts += 1
                self.found.cast_elements += out.numel()
            elif source.dim() == 4 and _order(source) != _order(out):
                self.found.layouts += 1
                self.found.layout_elements += out.numel()
        return out


def _order(maps: torch.Tensor) -> tuple[bool, bool]:
    """Whether maps (N, C, H, W) lie by channel, and whether by pixel: both if a side is 1."""
    return maps.is_contiguous(), maps.is_contiguous(memory_format=torch.channels_last)
