"""How products are rounded, and how far two tensors are from each other."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Context in which float32 products of a GPU keep 10 bits of a factor, or all 23."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def relative_error(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact| in the Euclidean norm of all entries."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    return ((found - exact).norm() / exact.norm()).item()
