"""Random numbers as pure functions of what they are for.

A run that was killed and resumed, a run on two processes and a run with another normalizer
all have to draw the same numbers. So no state is carried along: every draw names its seed,
its purpose and its step.
"""

import hashlib
from typing import Any

import torch


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a fresh generator on `device` whose seed is a hash of `key`.

    Example: ``generator("cpu", seed, "latents", step)``. Different keys give independent streams.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    seed = int.from_bytes(digest[:8], "little") >> 1  # 63 bits: manual_seed takes no more
    return torch.Generator(device).manual_seed(seed)


def global_state(device: torch.device) -> dict[str, Any]:
    """The state of the global generators, of the CPU and of `device`, for layers that use them."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_global_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on from `global_state`; of a device that the state knows nothing of, as it is."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
