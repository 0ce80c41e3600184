"""A context in which weights do not change, so that what follows from them is computed once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from convnorm.modes import is_transformed

Result = torch.Tensor | tuple[torch.Tensor, ...]

# tensor -> (function, other arguments) -> result. A weight that a parametrization makes anew at
# every access ends with its forward pass, and so must what was kept for it.
_results: ContextVar[WeakTensorKeyDictionary | None] = ContextVar("results", default=None)
_shared: ContextVar[WeakTensorKeyDictionary | None] = ContextVar("shared", default=None)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Promise that no weight changes in here, for an evaluation or an attack on the inputs.

    Gains of ConvNorm and parametrized weights (spectral norm, ONI, ...) are then computed once,
    not in every forward pass. They are constants in here, which would drop the gradients of the
    weights: where gradients are recorded, RuntimeError is raised for a weight that requires one
    (call `requires_grad_(False)` on the network before). A context inside another one uses its
    results.
    """
    # Not torch's parametrize.cached(): it takes the weights of a deepcopy for the original's.
    with _opened(_results):
        yield


@contextmanager
def shared_weights() -> Iterator[None]:
    """Promise that no weight changes in here, and that at most one backward pass follows.

    It is for passes of a network whose losses are added, such as those of a discriminator over real
    and generated images: what follows from the weights alone (ConvNorm's gains, kernels at the
    frequencies, orthogonal weights) is then computed once for all, with its gradient. What moves
    in every pass, as power iterations do, still moves. A context inside another one uses its
    results.

    Where gradients flow through what is shared, torch.utils.checkpoint has no place in here: its
    second pass finds other results kept than the first, and it raises CheckpointError.
    """
    if torch.compiler.is_compiling():  # computes what is constant once by itself
        yield
        return
    with _opened(_shared):
        yield


@contextmanager
def _opened(context: ContextVar[WeakTensorKeyDictionary | None]) -> Iterator[None]:
    """Keep results in here, and beside those of an outer one."""
    outer = context.get()
    token = context.set(WeakTensorKeyDictionary() if outer is None else outer)
    try:
        yield
    finally:
        context.reset(token)


def computed_once(
    function: Callable[..., Result],
    tensor: torch.Tensor,
    *args: object,
    weights: Iterable[torch.Tensor] = (),
) -> Result:
    """Return function(tensor, *args), computed once for each tensor inside `fixed_weights`.

    Outside that context it is computed in every call. `weights` are other tensors that it takes
    a gradient to.
    """
    results = _inside(_results, tensor)
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


def computed_once_a_step(
    function: Callable[..., Result], tensor: torch.Tensor, *args: object, constant: bool = False
) -> Result:
    """`computed_once`, and inside `shared_weights` also once, with its gradient.

    It is for functions of `tensor` and `args` alone. constant: no gradient flows through them.
    """
    shared = _inside(_shared, tensor)
    if shared is None or _inside(_results, tensor) is not None:
        return computed_once(function, tensor, *args)
    known = shared.setdefault(tensor, {})
    key = (function, args, not constant and torch.is_grad_enabled())
    if key not in known:
        known[key] = function(tensor, *args)
    return known[key]


def _inside(
    context: ContextVar[WeakTensorKeyDictionary | None], tensor: torch.Tensor
) -> WeakTensorKeyDictionary | None:
    """The results of a context, if it is open and may keep what follows from `tensor`."""
    # A compiler cannot trace a context variable, and folds what is constant by itself.
    if torch.compiler.is_compiling():
        return None
    results = context.get()
    # What a transform computes ends with it.
    return None if results is None or is_transformed(tensor) else results


def _refuse_gradient(weight: torch.Tensor) -> None:
    if weight.requires_grad:
        raise RuntimeError(
            f"a weight of shape {tuple(weight.shape)} requires a gradient inside fixed_weights, "
            "where none reaches it: call requires_grad_(False) on the network before, or record "
            "no gradients (torch.no_grad)"
        )
