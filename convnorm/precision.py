"""Where float32 products may be rounded, and how to compute in float64 there.

TF32 on GPUs keeps 11 bits of each factor of a product, bfloat16 on CPUs 8: in matrix products where
torch.set_float32_matmul_precision or its newer kin allow it, in convolutions on GPUs by default. A
network bears that. A gain does not, since it divides by what is left after large numbers cancel,
nor do a norm or a Newton iteration. Switching the settings off for a moment is no way out: they
are global to the process, and a backward pass comes later and in another thread.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from torch.func import functional_call

P = ParamSpec("P")
T = TypeVar("T")


def _constant(function: Callable[P, T]) -> Callable[P, T]:
    """torch.compiler.assume_constant_result, without the compiler that it imports.

    A compiler takes the answer for a constant, and asks again when TF32 is switched on or off.
    """
    function._dynamo_marked_constant = True
    return function


@_constant
def products_are_rounded(device_type: str) -> bool:
    """Whether a matrix product of float32 numbers may be computed from rounded factors."""
    if device_type == "mps":  # has neither TF32 nor float64
        return False
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # torch does not answer once its newer settings allow a rounding
        return True


@_constant
def convolutions_are_rounded(device_type: str) -> bool:
    """Whether a convolution of float32 numbers, or a matrix product, may be."""
    if products_are_rounded(device_type):
        return True
    if device_type == "cuda":
        try:
            return torch.backends.cudnn.allow_tf32
        except RuntimeError:
            return True
    newer = getattr(torch.backends.mkldnn, "conv", None)  # torch 2.9
    return device_type == "cpu" and newer is not None and newer.fp32_precision in ("bf16", "tf32")


@_constant  # a compiler cannot look into it
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def outside_autocast(device_type: str) -> AbstractContextManager:
    """A context without autocast; a device that has none, as "meta", needs none."""
    if _has_autocast(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def doubled(x: torch.Tensor) -> torch.Tensor:
    """x in float64 where the device has it, else x itself."""
    return x if x.device.type == "mps" else x.double()


def widened(x: torch.Tensor) -> torch.Tensor:
    """Return x in float64 if it is float32 and its products may be rounded, else x itself."""
    return x.double() if x.dtype == torch.float32 and products_are_rounded(x.device.type) else x


def in_float64(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """module(x) computed in float64, in the dtype of x; a module in training keeps its buffers."""
    own = [*module.named_parameters(), *module.named_buffers()]
    wide = {name: t.double() if t.is_floating_point() else t for name, t in own}
    y = functional_call(module, wide, (x.double(),))
    if module.training:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(wide[name])
    return y.to(x.dtype)
