"""Results of single images, kept on disk batch by batch, so that a killed evaluation goes on."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.hardware import hardware

FORMAT = "convnorm-suite/measurement/1"  # to be raised where older results would be wrong
TELL_EVERY = 30.0  # seconds between two lines where there is no terminal for a bar

Rows = dict[str, Tensor]  # name -> what was found, with a row for each image


@dataclass(frozen=True)
class Subject:
    """A network, the images that it is evaluated on, and the folder that keeps the results.

    images: the whole split. positions: (N,) int64, ascending, of the images that are evaluated.
    facts: JSON-able, all that every result depends on.
    hardware: every machine that results were computed on; a resumed evaluation can add one.
    """

    network: nn.Module
    images: Images
    positions: Tensor
    device: torch.device
    batch_size: int
    folder: Path
    facts: dict[str, Any]
    hardware: set[str] = field(default_factory=set)

    def labels(self, positions: Tensor) -> Tensor:
        """Classes (N,) int64, on the device."""
        return self.images.labels[positions].to(self.device)

    def pixels(self, positions: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1], on the device."""
        return self.as_input(self.images.images[positions])

    def as_input(self, images: Tensor) -> Tensor:
        """Turn uint8 images into what the network takes."""
        return images.to(self.device).float() / 255

    def rows(
        self,
        name: str,
        settings: dict[str, Any],
        positions: Tensor,
        compute: Callable[[Tensor], Rows],
    ) -> Rows:
        """Return what `compute` finds at `positions`: a row for each, in their order.

        `compute` is called batch by batch. After every batch the rows are saved in a file whose
        name hashes all that they depend on: `facts`, `settings` and `positions`. So a killed
        evaluation goes on with the next batch, and a finished one reads its rows. Two that run at
        once write the same rows.

        Raises:
            InputError: The folder cannot be written, or a batch does not fit into memory.
        """
        facts = {**self.facts, **settings, "positions_sha256": sha256_of(positions)}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        file = self.folder / f"{name}-{key[:16]}.pt"
        if file.exists():
            state = checkpoint.load(file, FORMAT)
        else:
            state = {"format": FORMAT, "facts": facts, "positions": positions}
            state |= {"done": 0, "rows": {}, "hardware": []}
        total, told = len(positions), time.monotonic()
        with tqdm(total=total, initial=state["done"], desc=name, unit="image", disable=None) as bar:
            while (done := state["done"]) < total:
                batch = positions[done : done + self.batch_size]
                state = self._extended(state, self._fitting(compute, batch), done + len(batch))
                checkpoint.save(file, state)
                bar.update(len(batch))
                if bar.disable and (state["done"] == total or time.monotonic() - told > TELL_EVERY):
                    told = time.monotonic()
                    print(f"{name}: {state['done']} of {total} images", file=sys.stderr)
        self.hardware.update(state["hardware"])
        return state["rows"]

    def _extended(self, state: dict[str, Any], new: Rows, done: int) -> dict[str, Any]:
        parts = [state["rows"], new] if state["done"] else [new]
        rows = {key: torch.cat([part[key].cpu() for part in parts]) for key in new}
        used = sorted({*state["hardware"], hardware(self.device)})
        return {**state, "done": done, "rows": rows, "hardware": used}

    def _fitting(self, compute: Callable[[Tensor], Rows], batch: Tensor) -> Rows:
        try:
            return compute(batch)
        except torch.OutOfMemoryError:
            raise InputError(
                f"batch_size: {self.batch_size} images do not fit into the memory of "
                f"{hardware(self.device)}; expected fewer"
            ) from None


def sha256_of(numbers: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, as hexadecimal digits."""
    return hashlib.sha256(numbers.cpu().contiguous().numpy()).hexdigest()
