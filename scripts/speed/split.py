"""What the time of a training step goes to: each operation is timed by itself.

Its place in the code says what it belongs to: an optimizer's file, a name with `filter` or `gain`
in it, a parametrization of a weight, a network. An operation of the backward pass belongs where the
forward one that it is the gradient of does.
"""

import sys
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speed.clock import Run

PLACES = ("gains", "filter", "networks", "optimizer", "rest")
METHOD = str(Path(__file__).resolve().parents[2] / "convnorm")
# Files of what is computed from weights alone: spectral norm, ONI, operator norms.
OF_WEIGHTS = ("parametriz", "operator_norm", "aol.py")


def split(run: Run, device: torch.device) -> dict[str, float]:
    """Return the share of each of `PLACES` in the time of a call's operations.

    "gains" is all that follows from weights alone, parametrized weights too. A GPU is waited for
    after each operation, so that shares there are of times with their launches.
    """
    run()  # tables are made and kept
    with _Clock(device) as clock:
        run()
    total = sum(clock.seconds.values())
    return {place: clock.seconds[place] / total for place in PLACES}


class _Clock(TorchDispatchMode):
    """Seconds of whatever runs inside, by place."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.on_gpu = device.type == "cuda"
        self.seconds: dict[str, float] = defaultdict(float)
        self.places: dict[int, str] = {}  # of the forward pass, by autograd's number of the node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if self.on_gpu:
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
        self.seconds[self._place()] += elapsed
        return out

    def _place(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None:
            # Nodes that add up the gradients of weights have no forward operation.
            return self.places.get(node._sequence_nr(), "networks")
        place = _place_of(sys._getframe(2))
        # Autograd has made the operation's node by now, if it makes one.
        self.places[torch.autograd._get_sequence_nr() - 1] = place
        return place


def _place_of(frame: FrameType | None) -> str:
    """The place of the innermost frame that has one."""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_qualname.lower()
        if "torch/optim" in file:
            return "optimizer"
        if any(part in file for part in OF_WEIGHTS):
            return "gains"
        if file.startswith(METHOD) and "experiment" not in file:
            if "filter" in name:
                return "filter"
            if "gain" in name:
                return "gains"
        if "torch/nn/modules" in file or "/networks/" in file:
            return "networks"
        frame = frame.f_back
    return "rest"
