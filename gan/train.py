"""The training loop of a GAN, and what a run leaves in its folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from convnorm.experiment import checkpoint, streams
from convnorm.experiment.batches import Batches
from convnorm.experiment.config import RunOptions, to_yaml
from convnorm.experiment.data import load_images
from convnorm.experiment.distributed import Process
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.interrupts import Interrupts
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
    images = _prepare(run_dir, config, options.overwrite, process)
    batches = Batches(
        images,
        config.train.batch_size,
        config.seed,
        flip=config.train.flip,
        dequantize=config.train.dequantize,
        rank=process.rank,
        world_size=process.world_size,
    )
    trainer = Trainer(config, images.shape[1], process)
    last = run_dir / checkpoint.CHECKPOINT
    if last.exists():
        trainer.load_state_dict(_own_checkpoint(last, config))
    journal = Journal(run_dir, trainer, images.shape[1:]) if process.is_main else None
    try:
        with Interrupts() as interrupts:
            _loop(trainer, batches, journal, options, interrupts)
    finally:
        if journal is not None:
            journal.tracker.close()
    summary = _summary(trainer, run_dir)
    if process.is_main:
        checkpoint.write_json(run_dir / "summary.json", summary)
    return summary


def _prepare(run_dir: Path, config: GanConfig, overwrite: bool, process: Process) -> torch.Tensor:
    """Make the run folder and return the training images on the device."""
    if process.is_main:
        checkpoint.open_run(run_dir, config, overwrite)
        images = load_images(config.data, "train").images
    process.barrier()  # one process makes the folder and downloads, the others find both
    if not process.is_main:
        images = load_images(config.data, "train").images
    return images.to(process.device)


def is_due(step: int, every: int, steps: int) -> bool:
    """Every `every` steps and after the last one; with 0, only after the last one."""
    return step == steps or (every > 0 and step % every == 0)


def _loop(
    trainer: Trainer,
    batches: Batches,
    journal: "Journal | None",
    options: RunOptions,
    interrupts: Interrupts,
) -> None:
    config, run_dir = trainer.config, Path(options.run_dir)
    while trainer.step < config.steps:
        trainer.train_step(batches)
        log_due = is_due(trainer.step, config.log.every, config.steps)
        # Agreeing on a signal costs a message between processes: only where they wait anyway.
        stopping = interrupts.signal is not None
        if trainer.process.world_size > 1:
            stopping = log_due and trainer.process.any(stopping)
        saving = stopping or is_due(trainer.step, options.checkpoint_every, config.steps)
        if log_due or saving:
            trainer.check_finite(run_dir)
        if journal is not None:
            journal.write()
            if saving:
                checkpoint.save(run_dir / checkpoint.CHECKPOINT, trainer.state_dict())
        if stopping and trainer.step < config.steps:
            raise Stopped(
                f"stopped at step {trainer.step} of {config.steps} and saved in {run_dir}; "
                "the same command again resumes",
                code=128 + (interrupts.signal or 15),
            )


class Journal:
    """What is due at a step is measured and written: log lines, norms, samples, scores."""

    def __init__(self, run_dir: Path, trainer: Trainer, image_size: torch.Size):
        config = trainer.config
        self.trainer, self.image_size = trainer, image_size
        self.grid_z = torch.randn(
            GRID, config.model.z_dim, generator=streams.generator("cpu", config.seed, "grid")
        )
        self.scorer = None
        if config.score.protocol != "none" and trainer.step < config.steps:
            weights = Path(config.score.weights) if config.score.weights else None
            device = trainer.process.device
            self.scorer = Scorer(config.score.protocol, config.data, device, weights=weights)
        self.tracker = Tracker(run_dir, trainer.step, config.steps, to_yaml(config))

    def write(self) -> None:
        """After every step; nothing here changes the training."""
        trainer, config = self.trainer, self.trainer.config
        step, generator = trainer.step, trainer.final_generator
        self.tracker.advance()
        norms_due = is_due(step, config.log.norms_every, config.steps)
        if norms_due or is_due(step, config.log.every, config.steps):
            values = trainer.means()
            if norms_due:
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


def _own_checkpoint(path: Path, config: GanConfig) -> dict[str, Any]:
    state = checkpoint.load(path, FORMAT)
    if state.get("config") != asdict(config):
        raise InputError(f"{path}: is of another config than the run folder; expected its own")
    return state


def _summary(trainer: Trainer, run_dir: Path) -> dict[str, Any]:
    """The end of the run: its last log line and its last scores."""
    log, metrics = (read_lines(run_dir / name) for name in ("log.jsonl", "metrics.jsonl"))
    return {
        "steps": trainer.step,
        "parameters": {
            "generator": sum(p.numel() for p in trainer.generator.parameters()),
            "discriminator": sum(p.numel() for p in trainer.discriminator.parameters()),
        },
        "device": str(trainer.process.device),
        "world_size": trainer.process.world_size,
        "torch": torch.__version__,
        "log": log[-1] if log else None,
        "metrics": metrics[-1] if metrics else None,
    }
