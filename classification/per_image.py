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
DIGITS = 16  # of a hash, in the name of a file
TELL_EVERY = 30.0  # seconds between two lines where there is no terminal for a bar

Rows = dict[str, Tensor]  # name -> what was found, with a row for each image


@dataclass(frozen=True)
class Subject:
    """A network, the images that it is evaluated on, and the folder that keeps the results.

    images: the whole split. positions: (N,) int64, ascending, of the images that are evaluated.
    facts: JSON-able, all that every result depends on.
    hardware: every machine that results were computed on; a resumed evaluation can add one.
    computed: the names of what was, wholly or in part, computed here and not read.
    """

    network: nn.Module
    images: Images
    positions: Tensor
    device: torch.device
    batch_size: int
    folder: Path
    facts: dict[str, Any]
    hardware: set[str] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)

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
            InputError: The folder cannot be written, a file is damaged, or a batch does not fit
                into memory.
        """
        file, facts = self._file(name, settings, positions)
        state = _read(file, facts, positions) or {
            "format": FORMAT,
            "facts": facts,
            "positions": positions,
            "done": 0,
            "rows": {},
            "hardware": [],
        }
        total, told = len(positions), time.monotonic()
        with tqdm(total=total, initial=state["done"], desc=name, unit="image", disable=None) as bar:
            while (done := state["done"]) < total:
                batch = positions[done : done + self.batch_size]
                state = self._extended(state, self._fitting(compute, batch), done + len(batch))
                checkpoint.save(file, state)
                self.computed.add(name)
                bar.update(len(batch))
                if bar.disable and (state["done"] == total or time.monotonic() - told > TELL_EVERY):
                    told = time.monotonic()
                    print(f"{name}: {state['done']} of {total} images", file=sys.stderr)
        self.hardware.update(state["hardware"])
        return state["rows"]

    def known(self, name: str, settings: dict[str, Any], positions: Tensor) -> Rows | None:
        """Return what `rows` would, computing nothing; None if it is not all there."""
        state = _read(*self._file(name, settings, positions), positions)
        if state is None or state["done"] < len(positions):
            return None
        self.hardware.update(state["hardware"])
        return state["rows"]

    def names(self) -> list[str]:
        """Return the names of all that was begun, with whatever settings."""
        files = self.folder.glob(f"*-{'[0-9a-f]' * DIGITS}.pt")
        return sorted({file.stem[: -DIGITS - 1] for file in files})

    def _file(
        self, name: str, settings: dict[str, Any], positions: Tensor
    ) -> tuple[Path, dict[str, Any]]:
        """Where the rows are kept, and all that they depend on."""
        facts = {**self.facts, **settings, "positions_sha256": sha256_of(positions)}
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name}-{key[:DIGITS]}.pt", facts

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


def _read(file: Path, facts: dict[str, Any], positions: Tensor) -> dict[str, Any] | None:
    """Return what is kept in a file; None where there is none, InputError where it is not whole."""
    if not file.exists():
        return None
    state = checkpoint.load(file, FORMAT)
    try:
        done, rows = state["done"], state["rows"]
        whole = (
            state["facts"] == facts
            and torch.equal(state["positions"], positions)
            and type(done) is int
            and 0 <= done <= len(positions)
            and all(len(values) == done for values in rows.values())
            and bool(rows) == (done > 0)
            and all(isinstance(each, str) for each in state["hardware"])
        )
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(
            f"{file}: damaged; expected what evaluate_cls.py wrote; without the file, this is "
            "measured anew"
        )
    return state


def sha256_of(numbers: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, as hexadecimal digits."""
    return hashlib.sha256(numbers.cpu().contiguous().numpy()).hexdigest()
