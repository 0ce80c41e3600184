"""What a run writes while it trains: log lines, TensorBoard, pictures and a progress bar."""

import json
import math
import os
import reprlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.data import evenly_spaced
from convnorm.experiment.errors import InputError
from convnorm.experiment.pictures import picture_of, save_png
from convnorm.experiment.run.board import Board
from convnorm.experiment.run.cost import device_memory, forget_peak_memory, peak_memory

# What a record has to have; without it, it is of another program or damaged.
KEYS = {"log.jsonl": {"step": int}, "metrics.jsonl": {"step": int, "scores": dict}}
# What a log line would say before the first step.
BEGINNING = {
    "step": 0,
    "steps_per_second": math.inf,
    "seconds": 0.0,
    "peak_memory": 0,
    "device_memory": 0,
}
TAIL = 2**16  # bytes: a few lines fit into them


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of log.jsonl or metrics.jsonl, without lines that a kill has cut.

    Raises InputError that names the line where one is no record; see `KEYS`.
    """
    return [record for _, record in _lines(path) if record is not None]


def has_step(run_dir: Path, step: int) -> bool:
    """Whether metrics.jsonl has the scores of a step."""
    return any(record["step"] == step for record in read_lines(run_dir / "metrics.jsonl"))


def last_line(path: Path) -> dict[str, Any] | None:
    """Return the last whole record of log.jsonl without reading all of it; None without one."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return _record(line, KEYS[path.name])
        except ValueError:  # damaged, or cut by a kill or by where the reading began
            continue
    return None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The lines of a .jsonl file by their number; None for one that a kill has cut.

    A kill cuts the last line. After a power failure, a cut line can have others behind it.
    """
    if not os.path.lexists(path):
        return
    *whole, rest = files.read(path).split(b"\n")
    for number, line in enumerate(whole, 1):
        try:
            yield number, _record(line, KEYS[path.name])
        except json.JSONDecodeError:
            yield number, None
        except ValueError as error:
            expected = " and ".join(KEYS[path.name])
            raise InputError(
                f"{path}, line {number}: {error}; expected an object with {expected}"
            ) from None
    with suppress(ValueError):
        yield len(whole) + 1, _record(rest, KEYS[path.name])


def _record(line: bytes, keys: dict[str, type]) -> dict[str, Any]:
    """Return the record in a line.

    Raises ValueError where there is none; a JSONDecodeError where the line is no whole JSON.
    """
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("no UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"holds {reprlib.repr(record)}")
    for key, kind in keys.items():
        if type(record.get(key)) is not kind:
            found = f"{key} {reprlib.repr(record[key])}" if key in record else f"no {key}"
            raise ValueError(f"holds {found}")
    return record


def _rewind(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the records after `step`, which the resumed run writes again, and return the others."""
    lines = list(_lines(path))
    for number, record in lines:
        if record is None:
            print(f"{path}, line {number}: cut, and left out", file=sys.stderr)
    kept = [record for _, record in lines if record is not None and record["step"] <= step]
    if lines:
        text = "".join(json.dumps(record) + "\n" for record in kept)
        files.write(path, lambda file: file.write(text.encode()))
    return kept


def _costs(path: Path, line: dict[str, Any]) -> tuple[float, float, int, int]:
    """The seconds, steps a second and both memories at a log line; older ones lack some."""
    found = {key: line.get(key, value) for key, value in BEGINNING.items()}
    for key, value in found.items():
        if type(value) not in (int, float) or not value >= 0:
            raise InputError(f"{path}: step {line['step']}: {key} is {value!r}; expected a number")
    memories = found["peak_memory"], found["device_memory"]
    return found["seconds"], found["steps_per_second"] or math.inf, *memories


class Tracker:
    """The log of one run, from `step` on: lines that a killed run wrote after it are dropped.

    Every line has the values of its step, `steps_per_second` since the last line if there were any,
    and `seconds` of training and `peak_memory` in bytes, on a GPU also `device_memory` (see
    `convnorm.experiment.run.cost`), of the whole run so far, over all its resumptions.
    """

    def __init__(self, run_dir: Path, step: int, steps: int, config: str, device: torch.device):
        self.run_dir, self._device = run_dir, device
        _rewind(run_dir / "metrics.jsonl", step)
        log = _rewind(run_dir / "log.jsonl", step)
        self.has_lines = bool(log)  # of a run that was begun before
        last = log[-1] if log else BEGINNING
        costs = _costs(run_dir / "log.jsonl", last)
        seconds, speed, self._peak_memory, self._device_memory = costs
        (run_dir / "samples").mkdir(exist_ok=True)
        self._board = Board(run_dir, step, config)
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            disable=None,
            file=sys.stderr,
            dynamic_ncols=True,
        )
        # No line tells the time of the steps after the last one: it is taken from those before.
        self._seconds = seconds + (step - last["step"]) / speed
        forget_peak_memory(device)  # what was used before training
        self._since = (step, time.perf_counter())
        self._paused: float | None = None  # when training stopped, while it does

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """A context whose time, for scores for instance, does not count as training."""
        self._paused = time.perf_counter()
        yield
        step, since = self._since
        self._since = (step, since + time.perf_counter() - self._paused)
        self._paused = None

    def tell(self, text: str) -> None:
        """Print lines for a person, above the bar."""
        self._bar.write(text, file=sys.stderr)

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.update()

    def _append(self, name: str, record: dict[str, Any]) -> None:
        path = self.run_dir / name
        try:
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write scalars of a step to log.jsonl and TensorBoard, and show them."""
        then, since = self._since
        now = self._paused or time.perf_counter()
        self._since = (step, now)
        self._seconds += now - since
        self._peak_memory = max(self._peak_memory, peak_memory(self._device))
        cost: dict[str, float] = {}
        if step > then:
            cost["steps_per_second"] = (step - then) / max(now - since, 1e-9)
        cost |= {"seconds": self._seconds, "peak_memory": self._peak_memory}
        self._device_memory = max(self._device_memory, device_memory(self._device))
        if self._device_memory > 0:  # on a GPU
            cost["device_memory"] = self._device_memory
        self._append("log.jsonl", {"step": step, **values, **cost})
        self._board.log(step, {**values, **cost})
        shown = {name: f"{value:.3g}" for name, value in values.items() if "/" not in name}
        if self._bar.disable:
            words = "".join(f" {name} {value}" for name, value in shown.items())
            if speed := cost.get("steps_per_second"):
                words += f" ({(self._bar.total - step) / speed:.0f} s left)"
            print(f"step {step}/{self._bar.total}{words}", file=sys.stderr)
        else:
            self._bar.set_postfix_str(_fitting(shown, self._bar), refresh=False)

    def images(self, step: int, images: torch.Tensor, columns: int | None = None) -> None:
        """Write a grid of images, see `picture_of`, to samples/ and to TensorBoard."""
        self._picture(f"step{step:07d}", "samples", picture_of(images, columns), step)

    def real_images(self, images: torch.Tensor, num: int) -> None:
        """Write `num` of the real images (N, C, H, W) uint8 beside the samples, once a run.

        They are evenly spaced.
        """
        if not (self.run_dir / "samples" / "real.png").exists():
            chosen = evenly_spaced(len(images), num)
            self._picture("real", "samples/real", picture_of(images[chosen]), 0)

    def _picture(self, name: str, tag: str, image: torch.Tensor, step: int) -> None:
        save_png(self.run_dir / "samples" / f"{name}.png", image)
        self._board.picture(tag, image, step)

    def score(self, step: int, record: dict[str, Any]) -> None:
        """Write a score record to metrics.jsonl and its numbers to TensorBoard."""
        self._append("metrics.jsonl", {"step": step, **record})
        self._board.score(step, record)
        forget_peak_memory(self._device)  # what scoring used

    def close(self) -> None:
        """Close the bar and TensorBoard's file."""
        self._bar.close()
        self._board.close()


def _fitting(shown: dict[str, str], bar: tqdm) -> str:
    """The first of the values, as many as leave the bar ten columns of the terminal.

    Later the bar gives way to longer times, so that no number is cut.
    """
    facts = bar.format_dict
    alone = tqdm.format_meter(**{**facts, "ncols": None, "postfix": None})  # its bar has ten
    room = math.inf if facts["ncols"] is None else facts["ncols"] - len(alone)
    words: list[str] = []
    for name, value in shown.items():
        words.append(f"{name}={value}")
        if len(", " + ", ".join(words)) > room:
            return ", ".join(words[:-1])
    return ", ".join(words)
