"""Tiny runs on the digits, for the tests of everything that surrounds a training step.

A GAN run by default; names that begin with `classifier` are for the other pipeline.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from classification.config import ClassifierConfig
from classification.train import train as train_classifier
from convnorm.experiment.config import RunOptions, from_dict
from convnorm.experiment.run.distributed import Process
from convnorm.normalizers import CATALOGUE
from convnorm.spectrum import operator_norm
from gan import gain
from gan.config import GanConfig
from gan.train import train as train_gan

TINY = {
    "data.name": "digits",
    "data.image_size": 16,
    "model.arch": "dcgan",
    "model.z_dim": 8,
    "model.options.generator_width": 4,
    "model.options.discriminator_width": 4,
    "train.batch_size": 8,
    "train.generator_batch_size": 8,
    "train.n_dis": 2,
    "score.protocol": "none",
    "score.select": "none",
    "steps": 4,
}
# Scores of few images; those of all take seconds.
SCORED = {"score.protocol": "digits", "score.num_real": 200, "score.num_fake": 200}
SELECTED = {
    **SCORED,
    "score.select": "digits_test",
    "score.select_num_real": 200,
    "score.select_num_fake": 200,
}
# 14 images of each class train, in 3 steps an epoch; 2 of each validate. Every key that the
# default config of the script sets is set.
TINY_CLASSIFIER = {
    "data.name": "digits",
    "data.image_size": 8,
    "split.validation": 0.014,
    "split.train_fraction": 0.1,
    "model.arch": "simple_cnn",
    "model.options.width": 4,
    "adversary.eps": 8.0,
    "optim.schedule": "cosine",
    "train.batch_size": 40,
    "train.epochs": 2,
    "train.flip": True,
    "train.crop": 1,
}
# A kind that adapts to a discriminator's logits has none to adapt to in a classifier.
CLASSIFIER_KINDS = [kind for kind, known in CATALOGUE.items() if known.observe is None]
ALONE = Process(torch.device("cpu"))
ROOT = Path(__file__).resolve().parents[1]


_known: dict[str, Any] = {}  # what was asked of `from_dict` -> the config; each takes 40 ms


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A config with changes by dotted name."""
    values = asdict(config)
    for key, value in changes.items():
        *groups, name = key.split(".")
        group = values
        for part in groups:
            group = group[part]
        group[name] = value
    asked = f"{type(config).__name__} {values!r}"
    if asked not in _known:
        _known[asked] = from_dict(type(config), values)
    return deepcopy(_known[asked])  # options of an architecture are a dict


def tiny(changes: dict[str, Any] | None = None) -> GanConfig:
    """The tiny GAN config with changes by dotted name."""
    return changed(GanConfig(), {**TINY, **(changes or {})})


def tiny_classifier(changes: dict[str, Any] | None = None) -> ClassifierConfig:
    """The tiny classifier's config with changes by dotted name."""
    return changed(ClassifierConfig(), {**TINY_CLASSIFIER, **(changes or {})})


def arguments(
    run_dir: Path, changes: dict[str, Any] | None = None, tiny: dict[str, Any] = TINY
) -> list[str]:
    """The same as a command line, from a config whose keys it sets."""
    named = {"cfg": "digits_convnorm", "device": "cpu", "run_dir": run_dir}
    values = {**tiny, **(changes or {}), **named}
    return [f"--{key}={value}" for key, value in values.items()]


@contextmanager
def rough_measurements() -> Iterator[None]:
    """What a log measures, with less effort than a tiny training: it would take longer than that.

    Norms of layers by 4 steps of Lanczos' method and not 40, gains on 16 images a side and not 256.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator_norm, "__defaults__", (4,))
        patch.setattr(gain, "NUM", 16)
        yield


def run(run_dir: Path, changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Train a tiny GAN in this process and return the summary."""
    run_options = RunOptions(run_dir=str(run_dir), device="cpu", **options)
    with rough_measurements():
        return train_gan(tiny(changes), run_options, ALONE)


def classifier_run(
    run_dir: Path, changes: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Train a tiny classifier in this process and return the summary."""
    run_options = RunOptions(run_dir=str(run_dir), device="cpu", **options)
    with rough_measurements():
        return train_classifier(tiny_classifier(changes), run_options, ALONE)


def state_of(run_dir: Path, name: str = "last.pt") -> dict[str, Any]:
    """The content of last.pt, or of another checkpoint, but for the starts that it took."""
    state = torch.load(run_dir / name, weights_only=True)
    return {key: value for key, value in state.items() if key != "segments"}


def log_of(run_dir: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    """The lines of a log without what depends on the clock and the process."""
    lines = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
    cost = ("steps_per_second", "seconds", "peak_memory")
    return [{k: v for k, v in line.items() if k not in cost} for line in lines]


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states are not equal, bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [where for key in a for where in differing(a[key], b[key], f"{path}.{key}")]
    if is_dataclass(a) and type(a) is type(b):
        return differing(vars(a), vars(b), path)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [where for i, pair in pairs for where in differing(*pair, f"{path}[{i}]")]
    return [] if a == b else [path]


class Crash(Exception):
    """The end of a process, as far as files can tell."""


def crash_before(step: int, trainer: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trainer's training end without a word before this step."""
    original = trainer.update

    def update(self, draws):
        if self.state.step == step:
            raise Crash
        original(self, draws)

    monkeypatch.setattr(trainer, "update", update)


def values_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A list that grows by (method, file) whenever a value of a tensor is asked for.

    On a GPU each of these waits for the device. The counters of optimizers are on the CPU.
    """
    reading = []

    def watch(name: str) -> None:
        original = getattr(torch.Tensor, name)

        def call(self, *args):
            files = []
            frame = sys._getframe(1)
            while frame is not None:
                files.append(frame.f_code.co_filename)
                frame = frame.f_back
            if not any("torch/optim" in file for file in files):
                reading.append((name, files[0]))
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, call)

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"):
        watch(name)
    watch("nonzero")
    return reading


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    """A process that has imported everything once and forks others in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runs", "sklearn.datasets", "sklearn.model_selection"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'tests'}{os.pathsep}{ROOT}")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        forkserver.ensure_running()
    return context


class Child:
    """A process of its own that runs `function(*args)`; its output is in `file`."""

    def __init__(self, file: Path, function: Callable[..., Any], *args: Any):
        self.file = file
        file.touch()
        self.process = _server().Process(target=_in_child, args=(file, function, args))
        self.process.start()

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Wait for it and return (exit code, minus the number of a signal; output)."""
        self.process.join(seconds)
        try:
            assert self.process.exitcode is not None, self.file.read_text()
        finally:
            self.process.kill()
        return self.process.exitcode, self.file.read_text()


def _in_child(file: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with file.open("w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    torch.set_num_threads(1)
    # A shell that has the tests in its background lets them ignore Ctrl-C, and their children too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(*args)


def script(name: str, *argv: str) -> None:
    """Run scripts/<name> as `python scripts/<name> ARGV` does, in this process."""
    path = ROOT / "scripts" / name
    sys.argv = [str(path), *argv]
    runpy.run_path(str(path), run_name="__main__")
