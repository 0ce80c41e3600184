"""Float32 proper: what a measurement is computed in, whatever a training run around it prefers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Context without autocast, TF32 or bfloat16 in products, and with the same kernels each time.

    A process that has set torch's newer fp32_precision, to which torch does not tell the older
    setting, keeps what it has set for matrix products.
    """
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:
        products = None
    flags = {"benchmark": False, "deterministic": True, "allow_tf32": False}
    try:
        if products is not None:
            torch.set_float32_matmul_precision("highest")
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, **flags),
        ):
            yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
