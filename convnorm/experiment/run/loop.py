"""The loop around a training step: log lines, checkpoints and signals come between two steps."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from convnorm.experiment.config import RunOptions
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.interrupts import Interrupts
from convnorm.experiment.run.tracking import Tracker

VOTE_EVERY = 10  # at most so many steps before several processes agree on a signal


class State(Protocol):
    """What the steps of a run change, and how many are done."""

    data_sha256: str  # of the training data, to notice other data behind the same name
    step: int  # how many are done
    steps: int  # how many there are

    def means(self) -> dict[str, float]:
        """What is logged, over the steps since the last call."""

    def check_finite(self, run_dir: Path) -> None:
        """Raise Stopped where a loss or a weight is no number."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, with `format`, `config` and `data_sha256`."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer(Protocol):
    """What a pipeline brings: its state, and how a step changes it."""

    config: Any
    process: Process
    state: State

    def draw(self, step: int) -> Any:
        """All that is random in a step, its real images and its rates: a function of `step`."""

    def update(self, draws: Any) -> None:
        """Train by one step: a function of the draws and of tensors in `state`."""


class Journal(Protocol):
    """What the main process measures and writes between two steps."""

    tracker: Tracker

    def write(self, means: dict[str, float] | None) -> None:
        """After every step, with the means where a log line is due; changes no training."""


def load_on_all(load: Callable[[], Images], process: Process) -> Images:
    """Load images in every process: one downloads, then the others find the files."""
    if process.is_main:
        images = load()
    process.barrier()
    return images if process.is_main else load()


def resume(trainer: Trainer, run_dir: Path, kind: str) -> None:
    """Take over the checkpoint of format `kind` in the run's folder, if there is one."""
    last = run_dir / checkpoint.CHECKPOINT
    if last.exists():
        state = checkpoint.load(last, kind)
        if state.get("config") != asdict(trainer.config):
            raise InputError(f"{last}: is of another config than the run folder; expected its own")
        if state.get("data_sha256") != trainer.state.data_sha256:
            raise InputError(f"{last}: the run began with other training data than data.root has")
        try:
            trainer.state.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{last}: not a complete checkpoint of this run ({reason})") from None
    if not trainer.process.agree(trainer.state.step):
        raise InputError(f"run_dir: {run_dir} is not one folder that all processes share")


def take_step(trainer: Trainer) -> None:
    """Draw, then update."""
    trainer.update(trainer.draw(trainer.state.step))
    trainer.state.step += 1


def is_due(step: int, every: int, steps: int) -> bool:
    """Every `every` steps and after the last one; with 0, only after the last one."""
    return step == steps or (every > 0 and step % every == 0)


def run(
    trainer: Trainer, journal: Journal | None, options: RunOptions, log_every: tuple[int, ...]
) -> None:
    """Train to the last step, or to the first signal, and raise Stopped for that.

    journal: of the main process, None in the others; log_every: the intervals at whose ends it
    is given means.
    """
    state = trainer.state
    with Interrupts() as interrupts, closing(journal.tracker) if journal else nullcontext():
        while state.step < state.steps:
            take_step(trainer)
            log_due = any(is_due(state.step, every, state.steps) for every in log_every)
            stopping = interrupts.signal is not None
            if trainer.process.world_size > 1:  # to agree, they wait: not after every step
                voting = log_due or state.step % VOTE_EVERY == 0
                stopping = voting and trainer.process.any(stopping)
            saving = stopping or is_due(state.step, options.checkpoint_every, state.steps)
            _between_steps(trainer, journal, Path(options.run_dir), log_due, saving)
            if stopping and state.step < state.steps:
                raise Stopped(
                    f"stopped at step {state.step} of {state.steps} and saved in "
                    f"{options.run_dir}; the same command again resumes",
                    code=128 + (interrupts.signal or 15),
                )


def _between_steps(
    trainer: Trainer, journal: Journal | None, run_dir: Path, log_due: bool, saving: bool
) -> None:
    if log_due or saving:
        trainer.state.check_finite(run_dir)
    means = trainer.state.means() if log_due else None
    if journal is not None:
        with journal.tracker.not_training():
            journal.tracker.advance()
            journal.write(means)
    if saving:
        saved = trainer.state.state_dict()  # in every process: parts of it may have to be gathered
        if trainer.process.is_main:
            checkpoint.save(run_dir / checkpoint.CHECKPOINT, saved)
