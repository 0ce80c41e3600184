"""The training of a GAN, and what a run leaves in its folder."""

import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from convnorm.experiment import checkpoint, loop, streams
from convnorm.experiment.config import RunOptions, to_yaml
from convnorm.experiment.data import load_images
from convnorm.experiment.distributed import Process
from convnorm.experiment.hardware import hardware
from convnorm.experiment.loop import is_due
from convnorm.experiment.tracking import Tracker, read_lines
from convnorm.spectrum import layer_norms
from gan.config import GanConfig
from gan.models import FORMAT, generate, sample
from gan.scoring import Scorer
from gan.trainer import Trainer

GRID = 64  # images in a grid of samples


def train(config: GanConfig, options: RunOptions, process: Process) -> dict[str, Any]:
    """Train, or resume, the run in `options.run_dir` and return its summary.

    Raises InputError, or Stopped when a signal or a loss that is no number ends the run early.
    """
    run_dir = Path(options.run_dir)
    opened = checkpoint.open_run(run_dir, config, options.overwrite)
    with opened if process.is_main else nullcontext():
        images = loop.load_on_all(partial(load_images, config.data, "train"), process)
        trainer = Trainer(config, images, process)
        loop.resume(trainer, run_dir, FORMAT)
        done_before = trainer.step == config.steps
        if not done_before:
            journal = Journal(run_dir, trainer) if process.is_main else None
            loop.run(trainer, journal, options, (config.log.every, config.log.norms_every))
        elif process.is_main:
            print(f"{run_dir}: all {config.steps} steps were done before", file=sys.stderr)
        summary = _summary(trainer, run_dir)
        file = run_dir / "summary.json"
        if process.is_main and not (done_before and file.exists()):
            checkpoint.write_json(file, summary)
        return summary


class Journal:
    """What is due at a step is measured and written: log lines, norms, samples, scores."""

    def __init__(self, run_dir: Path, trainer: Trainer):
        config = trainer.config
        self.trainer, self.image_size = trainer, trainer.batches.data.images.shape[1:]
        self.grid_z = torch.randn(
            GRID, config.model.z_dim, generator=streams.generator("cpu", config.seed, "grid")
        )
        self.scorer = None
        if config.score.protocol != "none" and trainer.step < config.steps:
            weights = Path(config.score.weights) if config.score.weights else None
            device = trainer.process.device
            self.scorer = Scorer(config.score.protocol, config.data, device, weights=weights)
        self.tracker = Tracker(run_dir, trainer.step, config.steps, to_yaml(config))

    def write(self, means: dict[str, float] | None) -> None:
        """After every step, with the means where a log line is due; changes no training."""
        trainer, config = self.trainer, self.trainer.config
        step, generator = trainer.step, trainer.final_generator
        if means is not None:
            values = dict(means)
            if is_due(step, config.log.norms_every, config.steps):
                for name, norms in layer_norms(trainer.discriminator, self.image_size).items():
                    values[f"matrix_norm/{name}"], values[f"operator_norm/{name}"] = norms
            self.tracker.log(step, values)
        if is_due(step, config.log.samples_every, config.steps):
            self.tracker.images(step, generate(generator, self.grid_z))
        if self.scorer is not None and is_due(step, config.score.every, config.steps):
            record = self.scorer(
                lambda num, seed: sample(generator, config.model.z_dim, num, seed),
                config.seed,
                step=step,
                ema=trainer.ema is not None,
            )
            self.tracker.score(step, record)


def _summary(trainer: Trainer, run_dir: Path) -> dict[str, Any]:
    """The end of the run: its last log line and its last scores."""
    log, metrics = (read_lines(run_dir / name) for name in ("log.jsonl", "metrics.jsonl"))
    return {
        "steps": trainer.step,
        "parameters": {
            "generator": sum(p.numel() for p in trainer.generator.parameters()),
            "discriminator": sum(p.numel() for p in trainer.discriminator.parameters()),
        },
        "hardware": hardware(trainer.process.device),
        "world_size": trainer.process.world_size,
        "torch": torch.__version__,
        "log": log[-1] if log else None,
        "metrics": metrics[-1] if metrics else None,
    }
