"""A context in which weights do not change, so that what follows from them is computed once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.utils.weak import WeakTensorKeyDictionary

# tensor -> (function, other arguments) -> result. A weight that a parametrization makes anew at
# every access ends with its forward pass, and so must what was kept for it.
_results: ContextVar[WeakTensorKeyDictionary | None] = ContextVar("results", default=None)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Promise that no weight changes in here, for an evaluation or an attack on the inputs.

    Gains of ConvNorm and parametrized weights (spectral norm, ONI, ...) are then computed once,
    not in every forward pass. They are constants in here, which would drop the gradients of the
    weights: where gradients are recorded, RuntimeError is raised for a weight that requires one
    (call `requires_grad_(False)` on the network before). A context inside another one uses its
    results.
    """
    outer = _results.get()
    # Not torch's parametrize.cached(): it takes the weights of a deepcopy for the original's.
    token = _results.set(WeakTensorKeyDictionary() if outer is None else outer)
    try:
        yield
    finally:
        _results.reset(token)


def computed_once(
    function: Callable[..., torch.Tensor],
    tensor: torch.Tensor,
    *args,
    weights: Iterable[torch.Tensor] = (),
) -> torch.Tensor:
    """Return function(tensor, *args), computed once for each tensor inside `fixed_weights`.

    Outside that context it is computed in every call. `weights` are other tensors that it takes
    a gradient to.
    """
    # A compiler cannot trace a context variable, and folds what is constant by itself.
    results = None if torch.compiler.is_compiling() else _results.get()
    if results is None:
        return function(tensor, *args)
    if torch.is_grad_enabled():
        for weight in (tensor, *weights):
            _refuse_gradient(weight)
    known = results.setdefault(tensor, {})
    key = (function, args)
    if key not in known:
        # No inference tensors, which autograd would refuse later.
        with torch.inference_mode(False), torch.no_grad():
            known[key] = function(tensor, *args)
    return known[key]


def _refuse_gradient(weight: torch.Tensor) -> None:
    if weight.requires_grad:
        raise RuntimeError(
            f"a weight of shape {tuple(weight.shape)} requires a gradient inside fixed_weights, "
            "where none reaches it: call requires_grad_(False) on the network before, or record "
            "no gradients (torch.no_grad)"
        )
