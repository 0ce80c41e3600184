"""What the convolutions of a model do when it runs: seen in one pass, by hooks.

Names and declarations do not tell it: modules are declared out of order, called twice or never,
and an output can go into a BatchNorm and past it. A pass does, for any control flow.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from convnorm.maps import in_evaluation

# Functions behind which no image is left.
MIXING = {
    *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)),
    *("linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "einsum"),
    *("tensordot", "embedding", "scaled_dot_product_attention"),
}
# Functions that take a factor and an offset of a channel away again.
ABSORBING = {"batch_norm", "instance_norm"}


@dataclass
class Use:
    """What a pass did with a convolution.

    inputs, outputs: (H, W) of the maps that went in and came out, over all calls.
    sees_input: no convolution or matrix product stands before it.
    users: the names of the functions that took its output; "return" if the model returned it.
    """

    inputs: set[tuple[int, ...]] = field(default_factory=set)
    outputs: set[tuple[int, ...]] = field(default_factory=set)
    sees_input: bool = False
    users: set[str] = field(default_factory=set)

    @property
    def several_sizes(self) -> str:
        """The sizes of the inputs where there are several: "8x8, 16x16"; else ""."""
        sizes = ", ".join("x".join(map(str, size)) for size in sorted(self.inputs))
        return sizes if len(self.inputs) > 1 else ""

    @property
    def is_absorbed(self) -> bool:
        """Whether a factor and an offset of each output channel change nothing in training."""
        return bool(self.users) and self.users <= ABSORBING


@dataclass(frozen=True)
class Run:
    """One pass: what the model returned, and what became of each convolution that ran."""

    output: Any
    uses: dict[nn.Module, Use]


def call(model: nn.Module, example: Any) -> Any:
    """model(*example) for a tuple, model(**example) for a dict, else model(example)."""
    if isinstance(example, tuple):
        return model(*example)
    return model(**example) if isinstance(example, Mapping) else model(example)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and mappings, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def relative_error(output: Any, expected: Any) -> float | None:
    """|y' - y| / |y| over the real numbers of two outputs; None where they have no such number."""
    pairs = list(zip(tensors_in(output), tensors_in(expected), strict=False))
    pairs = [(y, was.double()) for y, was in pairs if was.is_floating_point()]
    if not pairs or any(y.shape != was.shape for y, was in pairs):
        return None
    size = sum(was.square().sum().item() for _, was in pairs)
    change = sum((y.double() - was).square().sum().item() for y, was in pairs)
    return math.sqrt(change / size) if size > 0 else None


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Leave the global random state of the CPU, and of GPUs that hold parameters, as it is."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode and without gradients; modes, buffers and the global random
    state are afterwards as they were."""
    held = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with in_evaluation(model), torch.no_grad(), random_state_kept(model):
        try:
            yield
        finally:
            for module, name, buffer, value in held:
                module._buffers[name] = buffer.copy_(value)


@contextmanager
def hooked(
    modules: Iterator[nn.Module] | list[nn.Module], after: Callable[..., None]
) -> Iterator[None]:
    """Call after(module, arguments, keywords, output) behind every call of the modules."""
    hooks = [module.register_forward_hook(after, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def convolutions(model: nn.Module) -> list[nn.Module]:
    """All modules of a model that convolve, transposed and of any dimension."""
    return [module for module in model.modules() if isinstance(module, _ConvNd)]


def observe(model: nn.Module, example: Any) -> Run:
    """Run a model on `example` (see `call`) in evaluation mode, and see what its convolutions do.

    The model is left as by `undisturbed`.
    """
    flow = _Flow()
    with undisturbed(model), hooked(convolutions(model), flow.record), flow:
        output = call(model, example)
    for tensor in tensors_in(output):
        flow.take(tensor, "return")
    return Run(output, flow.uses)


class _Flow(TorchFunctionMode):
    """Follows the tensors of a pass from function to function."""

    def __init__(self):
        super().__init__()
        self.uses: dict[nn.Module, Use] = {}
        self.made_by = WeakTensorKeyDictionary()  # output -> its convolution
        self.mixed = WeakTensorKeyDictionary()  # tensor -> True, where no image is left

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        taken = list(tensors_in((args, kwargs)))
        result = function(*args, **kwargs)
        made = list(tensors_in(result))
        if made:  # else it looks at a tensor alone, at its shape for instance
            name = getattr(function, "__name__", "")
            for tensor in taken:
                self.take(tensor, name)
            mixed = name in MIXING or any(tensor in self.mixed for tensor in taken)
            if mixed:
                self.mixed.update((tensor, True) for tensor in made)
        return result

    def take(self, tensor: torch.Tensor, name: str) -> None:
        """A function takes a tensor."""
        if tensor in self.made_by:
            self.uses[self.made_by[tensor]].users.add(name)

    def record(self, conv: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        use = self.uses.setdefault(conv, Use())
        x = next(tensors_in((args, kwargs)))
        use.inputs.add(tuple(x.shape[-2:]))
        use.outputs.add(tuple(output.shape[-2:]))
        use.sees_input |= x not in self.mixed
        self.made_by[output] = conv
