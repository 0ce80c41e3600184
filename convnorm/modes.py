"""Who looks on while a layer computes: ordinary autograd, a transform, a tracer, a compiler.

Autograd functions of our own and tensors that are kept serve ordinary autograd. Plain operations
serve all others: the numbers are the same, and torch knows every derivative of them.
"""

from typing import Any

import torch
from torch.autograd import forward_ad


def is_transformed(*tensors: torch.Tensor) -> bool:
    """Whether a transform of torch.func is at work, or a tensor has a forward-mode tangent.

    What is computed then belongs to the transform and must not outlive it.
    """
    if torch._C._are_functorch_transforms_active():  # what torch's own autograd.Function asks
        return True
    if torch.compiler.is_compiling():
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def applied(function: type[torch.autograd.Function], *inputs: torch.Tensor) -> Any:
    """function.apply(*inputs); its formula, `forward`, where only plain operations serve."""
    if torch.jit.is_tracing() or is_transformed(*inputs):
        return function.forward(*inputs)
    return function.apply(*inputs)


def holds(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds; False where a compiler leaves such a size open.

    So the graph serves every size, and not those alone that meet the condition.
    """
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
