"""The training of a GAN, and what a run leaves in its folder."""

import json
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from convnorm.experiment import files
from convnorm.experiment.codec import to_json
from convnorm.experiment.config import RunOptions, to_yaml
from convnorm.experiment.data import DataConfig, Images, load_images
from convnorm.experiment.records import Segment
from convnorm.experiment.run import capture, checkpoint, loop
from convnorm.experiment.run.cost import device_memory, macs, num_parameters
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.hardware import segment
from convnorm.experiment.run.loop import is_due
from convnorm.experiment.run.memory import check_memory
from convnorm.experiment.run.opening import opening
from convnorm.experiment.run.tracking import Tracker, has_step, read_lines
from convnorm.spectrum import by_name, layer_norms
from gan import memory
from gan.config import GanConfig
from gan.gain import probe_of
from gan.keys import REPORTED, SELECTING, Keys
from gan.models import FORMAT, Prior, asked_for, generate, sample
from gan.protocols import Protocol
from gan.records import ScoreRecord
from gan.runs import kept, step_file
from gan.scoring import Scorer
from gan.selection import restore, selection_score
from gan.trainer import Trainer
from gan.training_images import training_images

GRID = 64  # images in a grid of samples
COLUMNS = 8  # of such a grid


def train(config: GanConfig, options: RunOptions, process: Process) -> dict[str, Any]:
    """Train, or resume, the run in `options.run_dir` and return its summary.

    Raises InputError, or Stopped where a signal, or a loss or weight that is NaN or infinite, ends
    the run early.
    """
    run_dir = Path(options.run_dir)
    # The clone may change meanwhile.
    now = segment(process, sync_batch_norm=config.train.sync_batch_norm)
    data = loop.located(config.data, options)
    if config.train.capture == "graph":
        capture.check(process)
    needed = memory.estimate(config, process.world_size)
    check_memory(needed, process.device, memory.KEYS)
    opened = checkpoint.open_run(run_dir, config, options.overwrite)
    with opened if process.is_main else nullcontext():
        load = partial(load_images, data, "train", process.device)
        loaded = loop.load_on_all(load, process)
        images = training_images(loaded, config)
        trainer = Trainer(config, images, process)
        segments = loop.resume(trainer, options, FORMAT, now)
        if process.is_main:
            _rewind(run_dir, trainer)
        done_before = trainer.state.step == config.steps
        if not done_before:
            scores = RunScores(trainer, data)
            journal = Journal(run_dir, trainer, data, scores) if process.is_main else None
            if journal is not None:
                networks = {"generator": trainer.generator, "discriminator": trainer.discriminator}
                facts = images.found, images.place
                lines = opening(run_dir, *facts, networks, segments, config.steps)
                journal.begin(lines, images)
            intervals = config.log.every, config.log.norms_every, config.log.gain_every
            loop.run(trainer, journal, options, intervals, segments, scores.attend)
        else:
            if process.is_main:
                print(f"{run_dir}: all {config.steps} steps were done before", file=sys.stderr)
            if config.score.protocol != "none" and _has_lost_scores(run_dir, trainer):
                _score_again(run_dir, trainer, data)
        summary = _summary(trainer, run_dir, segments)
        file = run_dir / "summary.json"
        if process.is_main and not (done_before and file.exists()):
            files.write_json(file, summary)
        return summary


def _rewind(run_dir: Path, trainer: Trainer) -> None:
    """Leave no weights of steps that are still to come."""
    state, config = trainer.state, trainer.config
    if config.score.selecting is not None:
        restore(run_dir, state.best_model())
    for step, file in kept(run_dir).items():
        if step > state.step:
            file.unlink()


def _has_lost_scores(run_dir: Path, trainer: Trainer) -> bool:
    """Whether the main process finds no scores of the last step in the folder of a finished run."""
    process = trainer.process
    return process.any(process.is_main and not has_step(run_dir, trainer.config.steps))


def _score_again(run_dir: Path, trainer: Trainer, data: DataConfig) -> None:
    """Write the score of the last step, which the files of a finished run have lost."""
    scores = RunScores(trainer, data)
    if not trainer.process.is_main:
        scores.attend()
        return
    (run_dir / "summary.json").unlink(missing_ok=True)  # it is made again
    Journal(run_dir, trainer, data, scores).score_again()


class RunScores:
    """The scores of a run, which all its processes compute together.

    data: where the real images are.
    """

    def __init__(self, trainer: Trainer, data: DataConfig):
        config = trainer.config
        self.trainer, self.data = trainer, data
        self.prior = Prior(config.model.z_dim, trainer.state.num_classes)
        self.reported = self._scorer(config.score.reported, REPORTED)
        self.selecting = self._scorer(config.score.selecting, SELECTING)

    def _scorer(self, protocol: Protocol | None, keys: Keys) -> Scorer | None:
        """Load what a protocol needs: whatever is missing is found before training starts."""
        if protocol is None:
            return None
        config = self.trainer.config
        return Scorer(
            protocol,
            self.data,
            self.trainer.process,
            keys=keys,
            weights=Path(config.score.weights) if config.score.weights else None,
            allow_unverified=config.score.allow_unverified_weights,
            by_class=config.model.conditional != "none" and keys is REPORTED,
        )

    @property
    def due(self) -> bool:
        """Whether there is one after this step."""
        config = self.trainer.config
        step = self.trainer.state.step
        return self.reported is not None and is_due(step, config.score.every, config.steps)

    def attend(self) -> None:
        """Do the share of a process that is not the main one in the scores that are due."""
        if self.due:
            self.measure()

    def measure(self) -> ScoreRecord | None:
        """Return the score that is reported, with the one by which a step can be selected in it.

        All processes have to call it; it is None in all but the main one.
        """
        state, config = self.trainer.state, self.trainer.config
        facts = {"step": state.step, "ema": state.ema is not None}
        asked = partial(asked_for, self.prior) if config.model.conditional != "none" else None
        nearest = not config.train.dequantize
        draw = partial(sample, state.final_generator, self.prior, nearest=nearest)
        record = self.reported(draw, config.seed, labels=asked, **facts)
        if self.selecting is None:
            return record
        other = self.selecting(partial(draw, stream="selection"), config.seed, **facts)
        return None if record is None else replace(record, selection=other)


class Journal:
    """Measures and writes what is due at a step: log lines, gains, norms, samples, scores, weights.

    data: where real images are that the gain is measured on.
    """

    def __init__(self, run_dir: Path, trainer: Trainer, data: DataConfig, scores: RunScores):
        config, state = trainer.config, trainer.state
        self.run_dir, self.trainer, self.data, self.scores = run_dir, trainer, data, scores
        is_conditional = config.model.conditional != "none"  # then a row shows a class
        key = config.seed, "grid"
        prior = scores.prior
        self.grid = prior.by_class(COLUMNS, *key) if is_conditional else prior.draw(GRID, *key)
        self.tracker = Tracker(
            run_dir, state.step, config.steps, to_yaml(config), trainer.process.device
        )

    def begin(self, lines: str, images: Images) -> None:
        """Tell a person `lines`, and write what is known before the first step.

        images: those that are trained on.
        """
        trainer = self.trainer
        with self.tracker.not_training():
            self.tracker.tell(lines)
            self.tracker.real_images(images.images, GRID)
            self.probe = probe_of(trainer.config, self.data, images, trainer.process.device)
            if not self.probe.held_out:
                self.tracker.tell(
                    "gain: measured on training images, as no others of their kind are there"
                )
            if trainer.state.step == 0 and not self.tracker.has_lines:
                self.tracker.log(0, self._gain())

    def _gain(self) -> dict[str, float]:
        return self.probe(self.trainer.discriminator, self.trainer.generator).logged

    def write(self, means: dict[str, float] | None) -> None:
        """Write what is due after a step; `means` is None unless a log line is due."""
        trainer, config = self.trainer, self.trainer.config
        step, generator = trainer.state.step, trainer.state.final_generator
        if means is not None:
            values = dict(means)
            if is_due(step, config.log.gain_every, config.steps):
                values |= self._gain()
            if is_due(step, config.log.norms_every, config.steps):
                values |= by_name(layer_norms(trainer.discriminator, trainer.image_shape))
            self.tracker.log(step, values)
        if is_due(step, config.log.samples_every, config.steps):
            nearest = not config.train.dequantize
            self.tracker.images(step, generate(generator, self.grid, nearest=nearest), COLUMNS)
        if self.scores.due:
            self._select(self.scores.measure())
        every = config.checkpoints.every
        if every > 0 and step % every == 0:
            file = step_file(self.run_dir, step)
            file.parent.mkdir(exist_ok=True)
            checkpoint.save(file, trainer.state.model_state())

    def score_again(self) -> None:
        """Write the score of the last step."""
        with closing(self.tracker):
            self.tracker.score(self.trainer.state.step, to_json(self.scores.measure()))

    def _select(self, record: ScoreRecord) -> None:
        """Write a score, and the weights to best.pt if they are the best so far."""
        state = self.trainer.state
        line = json.loads(json.dumps(to_json(record)))  # a checkpoint holds plain values only
        self.tracker.score(state.step, line)
        if record.selection is not None and state.select(selection_score(record), line):
            checkpoint.save(self.run_dir / checkpoint.BEST, state.best_model())


def _summary(trainer: Trainer, run_dir: Path, segments: tuple[Segment, ...]) -> dict[str, Any]:
    """Return what the run cost, and its last log line and scores.

    macs: of one image, counted in a batch of the run's size. best: the score at the step of
    best.pt; None where nothing was selected.
    """
    best = trainer.state.best[-1] if trainer.state.best else None
    log, metrics = (read_lines(run_dir / name) for name in ("log.jsonl", "metrics.jsonl"))
    train, generator, discriminator = trainer.config.train, trainer.generator, trainer.discriminator
    device = trainer.process.device
    z = torch.zeros(train.generator_batch_size, trainer.config.model.z_dim, device=device)
    images = torch.zeros(train.batch_size, *trainer.image_shape, device=device)
    labels = torch.zeros(max(len(z), len(images)), dtype=torch.long, device=device)
    work = {
        "generator": macs(generator, z, labels[: len(z)]),
        "discriminator": macs(discriminator, images, labels[: len(images)]),
    }
    return {
        "steps": trainer.state.step,
        "data_sha256": trainer.state.data_sha256,
        "parameters": {
            "generator": num_parameters(generator),
            "discriminator": num_parameters(discriminator),
        },
        "macs": work,
        "device_memory": device_memory(device) or None,
        "segments": [to_json(each) for each in segments],
        "best": None if best is None else {"step": best.step, **best.record},
        "log": log[-1] if log else None,
        "metrics": metrics[-1] if metrics else None,
    }
