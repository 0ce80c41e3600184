"""The training of a classifier, and what a run leaves in its folder."""

import sys
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from classification import label_noise, memory
from classification.attacks import frozen, logits, pgd
from classification.config import ClassifierConfig
from classification.models import FORMAT
from classification.trainer import Trainer
from classification.training_data import (
    TrainingData,
    noise_report,
    training_data,
    without_test_images,
)
from convnorm.experiment import files
from convnorm.experiment.codec import to_json
from convnorm.experiment.config import RunOptions, to_yaml
from convnorm.experiment.data import Images, Pixels, load_images, parts_of
from convnorm.experiment.records import Segment
from convnorm.experiment.run import checkpoint, loop
from convnorm.experiment.run.cost import device_memory, macs, num_parameters
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.hardware import segment
from convnorm.experiment.run.loop import is_due
from convnorm.experiment.run.memory import check_memory
from convnorm.experiment.run.opening import opening
from convnorm.experiment.run.tracking import Tracker, has_step, read_lines
from convnorm.spectrum import by_name, layer_norms

GRID = 64  # training images in a picture
MISLABELLED = 1000  # training images with a wrong label that are scored at most
VALIDATION_BATCH = 500  # images in a forward pass


def train(config: ClassifierConfig, options: RunOptions, process: Process) -> dict[str, Any]:
    """Train, or resume, the run in `options.run_dir` and return its summary.

    Raises InputError, or Stopped where a signal, or a loss or weight that is NaN or infinite, ends
    the run early.
    """
    run_dir, now = Path(options.run_dir), segment(process)  # the clone may change meanwhile
    needed = memory.estimate(config, process.world_size)
    check_memory(needed, process.device, memory.KEYS)
    opened = checkpoint.open_run(run_dir, config, options.overwrite)
    with opened if process.is_main else nullcontext():
        located = loop.located(config.data, options)
        load = partial(load_images, located, "train", process.device)
        images = loop.load_on_all(load, process)
        data = training_data(config, images)
        trainer = Trainer(config, data, process)
        segments = loop.resume(trainer, options, FORMAT, now)
        if trainer.state.step > 0 and config.noise.kind != "none":
            label_noise.check(run_dir / checkpoint.NOISY_LABELS, data.noisy, config.noise)
        done_before = trainer.state.step == trainer.state.steps
        if not done_before:
            if process.is_main:
                _keep_noise(data, config, run_dir)
            journal = Journal(run_dir, trainer, data) if process.is_main else None
            if journal is not None:
                found = (
                    f"{images.found}; {len(data.train_positions)} to train on, "
                    f"{len(data.validation_positions)} held out"
                )
                networks, steps = {"classifier": trainer.state.network}, trainer.state.steps
                facts = found, images.place
                journal.tracker.tell(opening(run_dir, *facts, networks, segments, steps))
                if warning := without_test_images(located):
                    journal.tracker.tell(warning)
                journal.tracker.real_images(data.train.images, GRID)
            loop.run(trainer, journal, options, _log_intervals(trainer), segments)
        elif process.is_main:
            print(f"{run_dir}: all {trainer.state.steps} steps were done before", file=sys.stderr)
            if data.has_scores and not has_step(run_dir, trainer.state.steps):
                (run_dir / "summary.json").unlink(missing_ok=True)  # it is made again
                Journal(run_dir, trainer, data).score_again()
        summary = _summary(trainer, data, run_dir, segments)
        file = run_dir / "summary.json"
        if process.is_main and not (done_before and file.exists()):
            files.write_json(file, summary)
        return summary


def _keep_noise(data: TrainingData, config: ClassifierConfig, run_dir: Path) -> None:
    """Save the labels and print how many training labels are wrong."""
    if config.noise.kind == "none":
        return
    parts = (data.clean, data.noisy, data.train_positions, data.validation_positions)
    label_noise.save(run_dir / checkpoint.NOISY_LABELS, *parts, config.noise)
    report = noise_report(data, config)["train"]
    rate, actual = report["requested_rate"], report["actual_rate"]
    print(
        f"label noise: {config.noise.kind}, {'' if rate is None else f'rate {rate:g} requested, '}"
        f"{actual:.4f} of the {len(data.train.labels)} training labels are wrong",
        file=sys.stderr,
    )


def _log_intervals(trainer: Trainer) -> tuple[int, ...]:
    """The steps between log lines, between validations and between lines with norms."""
    config, per_epoch = trainer.config, trainer.batches.per_epoch
    epochs = [config.select.every] + [config.log.norms_every] * (config.log.norms_every > 0)
    return config.log.every, *(every * per_epoch for every in epochs)


class Journal:
    """Measures and writes what is due at a step: log lines, norms, validation scores, best.pt."""

    def __init__(self, run_dir: Path, trainer: Trainer, data: TrainingData):
        self.run_dir, self.trainer = run_dir, trainer
        device = trainer.process.device
        self.validation = None if data.validation is None else data.validation.to(device)
        mislabelled, clean = data.mislabelled(MISLABELLED)
        self.mislabelled, self.clean_labels = mislabelled.to(device), clean.to(device)
        self.tracker = Tracker(
            run_dir, trainer.state.step, trainer.state.steps, to_yaml(trainer.config), device
        )

    def write(self, means: dict[str, float] | None) -> None:
        """Write what is due after a step; `means` is None unless a log line is due."""
        trainer, config = self.trainer, self.trainer.config
        step, steps, per_epoch = trainer.state.step, trainer.state.steps, trainer.batches.per_epoch
        if means is not None:
            values = {"epoch": step / per_epoch, **means}
            norms_every = config.log.norms_every * per_epoch
            if norms_every > 0 and is_due(step, norms_every, steps):
                norms = layer_norms(trainer.state.network, trainer.state.image_shape)
                values |= by_name(norms)
            self.tracker.log(step, values)
        if is_due(step, config.select.every * per_epoch, steps):
            grid = (trainer.state.seen[:GRID] * 255).round().to(torch.uint8)
            self.tracker.images(step, grid.cpu())
            with frozen(trainer.state.final_network):  # one computation of gains for all scores
                self._validate()

    def score_again(self) -> None:
        """Write the scores of the last step, which the files of a finished run have lost."""
        with closing(self.tracker), frozen(self.trainer.state.final_network):
            self._score(self._scores())

    def _validate(self) -> None:
        """Score the network, and keep it if it is the best so far."""
        state, metric, scores = (
            self.trainer.state,
            self.trainer.config.select.metric,
            self._scores(),
        )
        if scores:
            self._score(scores)
        if metric in scores and (
            state.best is None or scores[metric] > state.best["scores"][metric]
        ):
            state.best = {"epoch": state.epoch, "step": state.step, "scores": scores}
            checkpoint.save(self.run_dir / checkpoint.BEST, state.model_state())

    def _score(self, scores: dict[str, float]) -> None:
        state = self.trainer.state
        self.tracker.score(state.step, {"epoch": state.epoch, "scores": scores})

    def _scores(self) -> dict[str, float]:
        """Accuracies on validation images, and fractions of the wrong labels, if there are any."""
        metric, scores = self.trainer.config.select.metric, {}
        if self.validation is not None:
            right = self._predictions(self.validation.images) == self.validation.labels
            scores["accuracy"] = _fraction(right)
            if metric == "pgd10":
                scores["pgd10"] = _fraction(self._withstand(self.validation, right))
        if len(self.mislabelled.labels):
            wrong = self._predictions(self.mislabelled.images)
            scores["memorized"] = _fraction(wrong == self.mislabelled.labels)
            scores["recovered"] = _fraction(wrong == self.clean_labels)
        return scores

    def _predictions(self, images: Pixels) -> torch.Tensor:
        """Predicted classes (N,) of uint8 images."""
        network, device = self.trainer.state.final_network, self.trainer.process.device
        parts = parts_of(images, VALIDATION_BATCH)
        batches = (part.to(device).float() / 255 for part in parts)
        return torch.cat([logits(network, x, VALIDATION_BATCH).argmax(1) for x in batches])

    def _withstand(self, images: Images, right: torch.Tensor) -> torch.Tensor:
        """Which images (N,) are `right` and stay so under PGD with 10 steps of eps / 4."""
        network, eps, right = self.trainer.state.final_network, self.trainer.eps, right.clone()
        for indices in right.nonzero().flatten().split(VALIDATION_BATCH):
            x = images.images[indices].to(right.device).float() / 255
            labels = images.labels[indices]
            attack = {"norm": "linf", "eps": eps, "step_size": eps / 4, "steps": 10}
            x_adv = pgd(network, x, labels, indices=indices.tolist(), **attack)
            right[indices] = logits(network, x_adv, VALIDATION_BATCH).argmax(1) == labels
        return right


def _fraction(flags: torch.Tensor) -> float:
    """How many of the flags (N,) are true, in [0, 1]."""
    return flags.double().mean().item()


def _summary(
    trainer: Trainer, data: TrainingData, run_dir: Path, segments: tuple[Segment, ...]
) -> dict[str, Any]:
    """Return what the run trained on, what was selected, and its last log line and scores.

    macs: of one image, counted in a batch of the run's size.
    """
    state, device = trainer.state, trainer.process.device
    size = (trainer.config.train.batch_size, *state.image_shape)
    log, metrics = (read_lines(run_dir / name) for name in ("log.jsonl", "metrics.jsonl"))
    return {
        "steps": state.step,
        "epochs": state.epoch,
        "data_sha256": state.data_sha256,
        "parameters": num_parameters(state.network),
        "macs": macs(state.network, torch.zeros(size, device=device)),
        "train_images": len(data.train.labels),
        "validation_images": len(data.validation_positions),
        "noise": noise_report(data, trainer.config),
        "device_memory": device_memory(device) or None,
        "segments": [to_json(each) for each in segments],
        "best": state.best,
        "log": log[-1] if log else None,
        "metrics": metrics[-1] if metrics else None,
    }
