"""A context in which weights do not change, so that what follows from them is computed once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# (function, id of the tensor, other arguments) -> (the tensor, so that its id stays its, result)
_results: ContextVar[dict | None] = ContextVar("results", default=None)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Promise that no weight changes in here, for an evaluation or an attack on the inputs.

    Gains of ConvNorm and parametrized weights (spectral norm, ONI, ...) are then computed once,
    not in every forward pass. They are constants in here: no gradient reaches a weight through
    them, so no weight should require one. A context inside another one uses its results.
    """
    outer = _results.get()
    # Not torch's parametrize.cached(): it takes the weights of a deepcopy for the original's.
    token = _results.set({} if outer is None else outer)
    try:
        yield
    finally:
        _results.reset(token)


def computed_once(
    function: Callable[..., torch.Tensor], tensor: torch.Tensor, *args
) -> torch.Tensor:
    """Return function(tensor, *args), computed once for each tensor inside `fixed_weights`.

    Outside that context it is computed in every call.
    """
    # A compiler cannot trace a context variable, and folds what is constant by itself.
    results = None if torch.compiler.is_compiling() else _results.get()
    if results is None:
        return function(tensor, *args)
    key = (function, id(tensor), args)
    if key not in results:
        # No inference tensors, which autograd would refuse later.
        with torch.inference_mode(False), torch.no_grad():
            results[key] = tensor, function(tensor, *args)
    return results[key][1]
