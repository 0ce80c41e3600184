"""The training loop of a GAN, and what a run leaves in its folder."""

import sys
from contextlib import nullcontext
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
from convnorm.experiment.hardware import hardware
from convnorm.experiment.interrupts import Interrupts
from convnorm.experiment.tracking import Tracker, read_lines
from convnorm.spectrum import layer_norms
from gan.config import GanConfig
from gan.models import FORMAT, generate, sample
from gan.scoring import Scorer
from gan.trainer import Trainer

GRID = 64  # images in a grid of samples
VOTE_EVERY = 10  # at most so many steps before several processes agree on a signal


def train(config: GanConfig, options: RunOptions, process: Process) -> dict[str, Any]:
    """Train, or resume, the run in `options.run_dir` and return its summary.

    Raises InputError, or Stopped when a signal or a loss that is no number ends the run early.
    """
    run_dir = Path(options.run_dir)
    opened = checkpoint.open_run(run_dir, config, options.overwrite)
    with opened if process.is_main else nullcontext():
        images = _load(config, process)
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
        _resume(trainer, run_dir / checkpoint.CHECKPOINT)
        if not process.agree(trainer.step):
            raise InputError(f"run_dir: {run_dir} is not one folder that all processes share")
        done_before = trainer.step == config.steps
        if not done_before:
            _run(trainer, batches, options)
        elif process.is_main:
            print(f"{run_dir}: all {config.steps} steps were done before", file=sys.stderr)
        summary = _summary(trainer, run_dir)
        file = run_dir / "summary.json"
        if process.is_main and not (done_before and file.exists()):
            checkpoint.write_json(file, summary)
        return summary


def _load(config: GanConfig, process: Process) -> torch.Tensor:
    """The training images on the device; one process downloads, then the others find them."""
    if process.is_main:
        images = load_images(config.data, "train").images
    process.barrier()
    if not process.is_main:
        images = load_images(config.data, "train").images
    return images.to(process.device)


def _resume(trainer: Trainer, last: Path) -> None:
    """Take over the run's checkpoint, if there is one."""
    if not last.exists():
        return
    state = checkpoint.load(last, FORMAT)
    if state.get("config") != asdict(trainer.config):
        raise InputError(f"{last}: is of another config than the run folder; expected its own")
    try:
        trainer.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{last}: not a complete checkpoint of this run ({reason})") from None


def is_due(step: int, every: int, steps: int) -> bool:
    """Every `every` steps and after the last one; with 0, only after the last one."""
    return step == steps or (every > 0 and step % every == 0)


def _run(trainer: Trainer, batches: Batches, options: RunOptions) -> None:
    """Train to the last step; logs and signals begin and end here."""
    run_dir = Path(options.run_dir)
    image_size = batches.images.shape[1:]
    journal = Journal(run_dir, trainer, image_size) if trainer.process.is_main else None
    try:
        with Interrupts() as interrupts:
            _loop(trainer, batches, journal, options, interrupts)
    finally:
        if journal is not None:
            journal.tracker.close()


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
        log_due = any(
            is_due(trainer.step, every, config.steps)
            for every in (config.log.every, config.log.norms_every)
        )
        stopping = interrupts.signal is not None
        if trainer.process.world_size > 1:  # to agree, they have to wait: not after every step
            voting = log_due or trainer.step % VOTE_EVERY == 0
            stopping = voting and trainer.process.any(stopping)
        saving = stopping or is_due(trainer.step, options.checkpoint_every, config.steps)
        if log_due or saving:
            trainer.check_finite(run_dir)
        means = trainer.means() if log_due else None
        if journal is not None:
            journal.write(means)
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

    def write(self, means: dict[str, float] | None) -> None:
        """After every step, with the means where a log line is due; changes no training."""
        with self.tracker.not_training():
            self._write(means)

    def _write(self, means: dict[str, float] | None) -> None:
        trainer, config = self.trainer, self.trainer.config
        step, generator = trainer.step, trainer.final_generator
        self.tracker.advance()
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
