"""Files that torch.save wrote for others: read without running what they may hold."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convnorm.experiment.errors import InputError
from convnorm.experiment.files import read


def _of_numpy() -> list[Any]:
    """What arrays and numbers of numpy are made of in a file, by their names then and now."""
    makers = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    named = [
        (maker, f"numpy.{core}.multiarray.{maker.__name__}")
        for maker in makers
        for core in ("core", "_core")
    ]
    numbers = (np.bool_, np.int8, np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64)
    return [*named, np.ndarray, np.dtype, *(type(np.dtype(number)) for number in numbers), _bytes()]


def _bytes() -> Callable[..., bytes]:
    """What turns the text of old pickles into bytes."""
    return b"\xff".__reduce_ex__(2)[0]


def load(file: Path, expected: str) -> tuple[Any, str]:
    """Return what a file of torch.save holds, on the CPU, and the SHA-256 of its bytes.

    Tensors, plain containers and numpy's arrays and numbers are read; anything else is refused, as
    it could run code. `expected` says what the file should be. Raises InputError where it cannot be
    read.
    """
    content = read(file, expected)
    try:
        with torch.serialization.safe_globals(_of_numpy()):
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # what the unpickler raises depends on the content
        raise InputError(
            f"{file}: damaged, or holds more than tensors and numbers; expected {expected}"
        ) from None
    return state, hashlib.sha256(content).hexdigest()
