"""The training of a GAN, and what a run leaves in its folder."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from convnorm.experiment import files
from convnorm.experiment.codec import to_json
from convnorm.experiment.config import RunOptions, to_yaml
from convnorm.experiment.data import load_images
from convnorm.experiment.run import checkpoint, loop
from convnorm.experiment.run.cost import macs
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.hardware import commit, hardware
from convnorm.experiment.run.loop import is_due
from convnorm.experiment.run.memory import check_memory
from convnorm.experiment.run.tracking import Tracker, read_lines
from convnorm.spectrum import by_name, layer_norms
from gan import memory
from gan.config import GanConfig
from gan.models import FORMAT, Prior, generate, sample
from gan.records import ScoreRecord
from gan.scoring import Scorer
from gan.trainer import Trainer

GRID = 64  # images in a grid of samples


def train(config: GanConfig, options: RunOptions, process: Process) -> dict[str, Any]:
    """Train, or resume, the run in `options.run_dir` and return its summary.

    Raises InputError, or Stopped where a signal, or a loss or weight that is NaN or infinite, ends
    the run early.
    """
    run_dir, code = Path(options.run_dir), commit()  # now: the clone may change meanwhile
    needed = memory.estimate(config, process.world_size)
    check_memory(needed, process.device, memory.KEYS)
    opened = checkpoint.open_run(run_dir, config, options.overwrite)
    with opened if process.is_main else nullcontext():
        images = loop.load_on_all(partial(load_images, config.data, "train"), process)
        trainer = Trainer(config, images, process)
        loop.resume(trainer, run_dir, FORMAT)
        done_before = trainer.state.step == config.steps
        if not done_before:
            journal = Journal(run_dir, trainer) if process.is_main else None
            loop.run(trainer, journal, options, (config.log.every, config.log.norms_every))
        elif process.is_main:
            print(f"{run_dir}: all {config.steps} steps were done before", file=sys.stderr)
        summary = _summary(trainer, run_dir, code)
        file = run_dir / "summary.json"
        if process.is_main and not (done_before and file.exists()):
            files.write_json(file, summary)
        return summary


class Journal:
    """Measures and writes what is due at a step: log lines, norms, samples, scores."""

    def __init__(self, run_dir: Path, trainer: Trainer):
        config, state = trainer.config, trainer.state
        self.trainer = trainer
        self.prior = Prior(config.model.z_dim, state.num_classes)
        self.grid = self.prior.draw(GRID, config.seed, "grid")
        self.scorer = self._scorer(config.score.protocol)
        self.selector = self._scorer(config.score.select)
        self.tracker = Tracker(
            run_dir, state.step, config.steps, to_yaml(config), trainer.process.device
        )

    def _scorer(self, protocol: str) -> Scorer | None:
        """Load what a protocol needs: whatever is missing is found before training starts."""
        if protocol == "none":
            return None
        config = self.trainer.config
        weights = Path(config.score.weights) if config.score.weights else None
        return Scorer(protocol, config.data, self.trainer.process.device, weights=weights)

    def write(self, means: dict[str, float] | None) -> None:
        """Write what is due after a step; `means` is None unless a log line is due."""
        trainer, config = self.trainer, self.trainer.config
        step, generator = trainer.state.step, trainer.state.final_generator
        if means is not None:
            values = dict(means)
            if is_due(step, config.log.norms_every, config.steps):
                values |= by_name(layer_norms(trainer.discriminator, trainer.image_shape))
            self.tracker.log(step, values)
        if is_due(step, config.log.samples_every, config.steps):
            self.tracker.images(step, generate(generator, self.grid))
        if self.scorer is not None and is_due(step, config.score.every, config.steps):
            self.tracker.score(step, to_json(self._score()))

    def _score(self) -> ScoreRecord:
        """Return the score that is reported, with the one by which a step can be selected in it."""
        state, seed = self.trainer.state, self.trainer.config.seed
        facts = {"step": state.step, "ema": state.ema is not None}
        draw = partial(sample, state.final_generator, self.prior)
        record = self.scorer(draw, seed, **facts)
        if self.selector is not None:
            other = self.selector(partial(draw, stream="selection"), seed, **facts)
            record = replace(record, selection=other)
        return record


def _summary(trainer: Trainer, run_dir: Path, code: str | None) -> dict[str, Any]:
    """Return what the run cost, and its last log line and scores.

    macs: of one image, counted in a batch of the run's size.
    """
    log, metrics = (read_lines(run_dir / name) for name in ("log.jsonl", "metrics.jsonl"))
    train, generator, discriminator = trainer.config.train, trainer.generator, trainer.discriminator
    device = trainer.process.device
    z = torch.zeros(train.generator_batch_size, trainer.config.model.z_dim, device=device)
    images = torch.zeros(train.batch_size, *trainer.image_shape, device=device)
    return {
        "steps": trainer.state.step,
        "parameters": {
            "generator": sum(p.numel() for p in generator.parameters()),
            "discriminator": sum(p.numel() for p in discriminator.parameters()),
        },
        "macs": {"generator": macs(generator, z), "discriminator": macs(discriminator, images)},
        "hardware": hardware(device),
        "world_size": trainer.process.world_size,
        "commit": code,
        "torch": torch.__version__,
        "log": log[-1] if log else None,
        "metrics": metrics[-1] if metrics else None,
    }
