"""A whole update as one CUDA graph, for networks whose kernels are shorter than their launches.

The draws of every step are copied into places that stay, and the graph is replayed on them.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import Process

WARM_UP = 3  # eager steps, as PyTorch's notes on CUDA graphs ask for


def check(process: Process) -> None:
    """Raise InputError where `train.capture graph` cannot be: on a CPU, or in several processes."""
    if process.device.type != "cuda":
        raise InputError(
            f"train.capture: 'graph' needs a CUDA device and got {process.device.type!r}; "
            "expected none"
        )
    if process.world_size > 1:
        raise InputError(
            f"train.capture: 'graph' needs a single process and got {process.world_size}; "
            "expected none"
        )


class Captured:
    """`update(draws)` as one CUDA graph of all that it does.

    The first calls are ordinary updates, in which there come to be the tables, plans and states of
    an optimizer that a capture must find. Then the update is captured, which computes nothing, and
    replayed. So every call trains by one step, and no call leaves another trace.

    update: A function of draws and of tensors that stay where they are: a state is loaded before
        the first call. It gets draws whose numbers, of type float, are tensors (), float64, on the
        device. All other numbers in it stay what they are at the capture.

    Raises InputError where it cannot be captured, also in a call: for draws of other shapes than
    those before, and for an update that waits for the device.
    """

    def __init__(self, update: Callable[[Any], None], process: Process):
        check(process)
        self.update, self.device = update, process.device
        self.draws: Any = None  # the places
        self.graph = Graph(lambda: self.update(self.draws))
        self.calls = 0

    def __call__(self, draws: Any) -> None:
        """Train by one step."""
        if self.draws is None:
            self.draws = placed(draws, self.device)
        else:
            refill(self.draws, draws)
        if self.calls < WARM_UP:
            self.graph.run_eagerly()
        else:
            if self.calls == WARM_UP:
                self._capture()
            self.graph.replay()
        self.calls += 1

    def _capture(self) -> None:
        try:
            self.graph.capture()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"train.capture: an update cannot be captured as a CUDA graph ({reason}); "
                "expected none"
            ) from None


class Graph:
    """A CUDA graph of `run`, which takes and returns nothing."""

    def __init__(self, run: Callable[[], None]):
        self.run = run
        self.graph = torch.cuda.CUDAGraph()
        # One for both: what accumulates a gradient stays on the stream where it began.
        self.stream = torch.cuda.Stream()

    def run_eagerly(self) -> None:
        """Run on the stream of the capture."""
        outer = torch.cuda.current_stream()
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            self.run()
        outer.wait_stream(self.stream)

    def capture(self) -> None:
        """Record the kernels of `run`, and compute none of them."""
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.run()

    def replay(self) -> None:
        """Compute all that was recorded, on the current stream."""
        self.graph.replay()


def placed(draws: Any, device: torch.device) -> Any:
    """A copy of draws on the device, for `refill`: no tensor of it is one of theirs.

    draws: tensors and numbers in dataclasses, tuples and mappings. A number, of type float, becomes
        a tensor (), float64; what is neither stays as it is.
    """
    match draws:
        case Tensor():
            return draws.to(device, copy=True)
        case float():
            return torch.full((), draws, dtype=torch.float64, device=device)
        case tuple():
            return tuple(placed(part, device) for part in draws)
        case Mapping():
            return {name: placed(part, device) for name, part in draws.items()}
        case _ if is_dataclass(draws):
            parts = {part.name: getattr(draws, part.name) for part in fields(draws)}
            return replace(draws, **{n: placed(part, device) for n, part in parts.items()})
    return draws


def refill(places: Any, draws: Any, name: str = "draws") -> None:
    """Copy draws into what `placed` made of others; raise InputError where they are not alike.

    name: of the draws, for the error.
    """
    match places, draws:
        case Tensor(), Tensor() if (places.shape, places.dtype) == (draws.shape, draws.dtype):
            places.copy_(draws)
        case Tensor(shape=()), float():
            places.fill_(draws)
        case tuple(), tuple() if len(places) == len(draws):
            for index, pair in enumerate(zip(places, draws, strict=True)):
                refill(*pair, f"{name}[{index}]")
        case Mapping(), Mapping() if places.keys() == draws.keys():
            for key in places:
                refill(places[key], draws[key], f"{name}.{key}")
        case _ if is_dataclass(places) and type(places) is type(draws):
            for part in fields(places):
                refill(getattr(places, part.name), getattr(draws, part.name), f"{name}.{part.name}")
        case Tensor() | tuple() | Mapping(), _:
            _refuse(places, draws, name)
        case _ if type(places) is not type(draws) or places != draws:
            _refuse(places, draws, name)


def _refuse(places: Any, draws: Any, name: str) -> None:
    there, here = map(_described, (places, draws))
    raise InputError(
        f"train.capture: 'graph' needs steps that are all alike, and {name} is {here} after "
        f"{there}; expected none"
    )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | Mapping):
        return f"{len(value)} parts"
    return repr(value)
