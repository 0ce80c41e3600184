"""The loop around a training step: it logs, saves and stops between two steps."""

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

VOTE_EVERY = 10  # steps after which several processes agree, at the latest, to stop


class State(Protocol):
    """What the steps of a run change, and how many are done."""

    data_sha256: str  # of the training data, to notice other data behind the same name
    step: int  # how many are done
    steps: int  # how many there are

    def means(self) -> dict[str, float]:
        """What a log line says of the steps since the last call."""

    def check_finite(self, run_dir: Path) -> None:
        """Raise Stopped if a loss or a weight is NaN or infinite."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, with `format`, `config`, `data_sha256`."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer(Protocol):
    """What a pipeline brings: a state, and the step that changes it."""

    config: Any
    process: Process
    state: State

    def draw(self, step: int) -> Any:
        """Everything random in a step, its real images and its rates: a function of `step`."""

    def update(self, draws: Any) -> None:
        """Train by one step: a function of the draws and of tensors in `state`."""


class Journal(Protocol):
    """What the main process measures and writes between two steps."""

    tracker: Tracker

    def write(self, means: dict[str, float] | None) -> None:
        """Measure and write what is due after a step, and leave the training as it is.

        means: of the steps since the last log line; None where no line is due.
        """


def load_on_all(load: Callable[[], Images], process: Process) -> Images:
    """Load images in every process, the main one first: it downloads what is missing."""
    if process.is_main:
        images = load()
    process.barrier()
    return images if process.is_main else load()


def resume(trainer: Trainer, run_dir: Path, kind: str) -> None:
    """Go on from the checkpoint in the run's folder, if there is one; `kind` is its format.

    Raises InputError for a checkpoint of another format, config or training data.
    """
    last = run_dir / checkpoint.CHECKPOINT
    if last.exists():
        state = checkpoint.load(last, kind)
        if state.get("config") != asdict(trainer.config):
            raise InputError(f"{last}: holds another config than its run folder; expected the same")
        if state.get("data_sha256") != trainer.state.data_sha256:
            raise InputError(
                f"{last}: the run began with other training data; expected them in data.root"
            )
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
    """Return whether something is due: every `every` steps (0: never) and after the last step."""
    return step == steps or (every > 0 and step % every == 0)


def run(
    trainer: Trainer, journal: Journal | None, options: RunOptions, log_every: tuple[int, ...]
) -> None:
    """Train to the last step. At the first signal, save and raise Stopped.

    journal: the main process's; None in the others. log_every: intervals in steps; the journal
    gets means whenever one of them ends.
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
