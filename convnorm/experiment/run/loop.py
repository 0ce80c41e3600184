"""The loop around a training step: it logs, saves and stops between two steps."""

import json
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.config import RunOptions
from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.records import Segment
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.interrupts import Interrupts
from convnorm.experiment.run.tracking import Tracker

Loaded = TypeVar("Loaded")
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
    """What the main process measures and writes between two steps.

    The others can take part in what it measures, see `run`.
    """

    tracker: Tracker

    def write(self, means: dict[str, float] | None) -> None:
        """Measure and write what is due after a step, and leave the training as it is.

        means: of the steps since the last log line; None where no line is due.
        """


def located(data: DataConfig, options: RunOptions) -> DataConfig:
    """The data of a config, at the place that the options name if they do."""
    return data.at(options.data_root) if options.data_root else data


def load_on_all(load: Callable[[], Loaded], process: Process) -> Loaded:
    """Load something in every process, in the main one first: it downloads what is missing."""
    if process.is_main:
        loaded = load()
    process.barrier()
    return loaded if process.is_main else load()


def resume(trainer: Trainer, options: RunOptions, kind: str, now: Segment) -> tuple[Segment, ...]:
    """Go on from the checkpoint in the run's folder, if there is one; `kind` is its format.

    Returns the parts of the training: those before, and `now` if there are steps left.

    Raises InputError for a checkpoint of another format, config or training data, and for one that
    would go on with other numbers than before; see `RunOptions.allow_other_hardware`.
    """
    run_dir = Path(options.run_dir)
    last, before = run_dir / checkpoint.CHECKPOINT, ()
    if last.exists():
        state = checkpoint.load(last, kind)
        _check_identity(state, trainer, last)
        try:
            before = tuple(from_json(Segment, each, last) for each in state["segments"])
            trainer.state.load_state_dict(state)
        except InputError:
            raise
        except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{last}: not a complete checkpoint of this run ({reason})") from None
    step = trainer.state.step
    if not trainer.process.agree(step):
        raise InputError(f"run_dir: {run_dir} is not one folder that all processes share")
    if step == trainer.state.steps:
        return before
    if before and not options.allow_other_hardware:
        _check_hardware(before[-1], now, last)
    return (*before, replace(now, step=step))


def _check_identity(state: dict[str, Any], trainer: Trainer, last: Path) -> None:
    """Raise InputError where a checkpoint is not of the trainer's run."""
    step, steps = state.get("step"), trainer.state.steps
    try:
        there = json.loads(json.dumps(state["config"]))  # tuples are lists, as in config.yaml
    except (KeyError, TypeError, ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise InputError(f"{last}: holds no config; expected that of its run folder")
    there = checkpoint.completed(there, trainer.config)
    longer = trainer.config.extends(there)
    if differing := checkpoint.other_keys(there, trainer.config, longer):
        raise InputError(
            f"{last}: holds another config than its run folder ({'; '.join(differing)}); "
            "expected the same"
        )
    if type(step) is not int or not 0 <= step <= steps:
        raise InputError(f"{last}: step: {step!r}; expected one of 0 to {steps}")
    if state.get("data_sha256") != trainer.state.data_sha256:
        raise InputError(
            f"{last}: the run began with other training data; expected them in data.root"
        )


def _check_hardware(before: Segment, now: Segment, last: Path) -> None:
    """Raise InputError where all numbers would be others: draws, or the order of sums."""
    there, here = ((it.device, it.world_size) for it in (before, now))
    if there != here:
        words = [f"{n} process{'es' if n > 1 else ''} on {kind}" for kind, n in (there, here)]
        raise InputError(
            f"{last}: was trained by {words[0]}; expected the same, not {words[1]} "
            "(--allow_other_hardware goes on, and the run ends elsewhere)"
        )


def take_step(trainer: Trainer) -> None:
    """Draw, then update."""
    trainer.update(trainer.draw(trainer.state.step))
    trainer.state.step += 1


def is_due(step: int, every: int, steps: int) -> bool:
    """Return whether something is due: every `every` steps (0: never) and after the last step."""
    return step == steps or (every > 0 and step % every == 0)


def run(
    trainer: Trainer,
    journal: Journal | None,
    options: RunOptions,
    log_every: tuple[int, ...],
    segments: tuple[Segment, ...],
    attend: Callable[[], None] | None = None,
) -> None:
    """Train to the last step. At the first signal, save and raise Stopped.

    journal: the main process's; None in the others. log_every: intervals in steps; the journal
    gets means whenever one of them ends. segments: what `resume` returned, for the checkpoint.
    attend: what another process does while the main one's journal writes, after every step: its
    share of what the journal computes. None if the journal needs no help.
    """
    state, run_dir = trainer.state, Path(options.run_dir)
    if trainer.process.is_main:
        checkpoint.begin(run_dir, trainer.config)
    with Interrupts() as interrupts, closing(journal.tracker) if journal else nullcontext():
        while state.step < state.steps:
            take_step(trainer)
            log_due = any(is_due(state.step, every, state.steps) for every in log_every)
            stopping = interrupts.signal is not None
            if trainer.process.world_size > 1:  # to agree, they wait: not after every step
                voting = log_due or state.step % VOTE_EVERY == 0
                stopping = voting and trainer.process.any(stopping)
            saving = stopping or is_due(state.step, options.checkpoint_every, state.steps)
            if log_due or saving:
                state.check_finite(run_dir)
            _write(trainer, journal, log_due, attend)
            if saving:
                _save(trainer, run_dir, segments)
            if stopping and state.step < state.steps:
                raise Stopped(
                    f"stopped at step {state.step} of {state.steps} and saved in "
                    f"{options.run_dir}; the same command again resumes",
                    code=128 + (interrupts.signal or 15),
                )


def _write(
    trainer: Trainer, journal: Journal | None, log_due: bool, attend: Callable[[], None] | None
) -> None:
    """Let the journal measure and write what is due after a step."""
    means = trainer.state.means() if log_due else None
    if journal is not None:
        with journal.tracker.not_training():
            journal.tracker.advance()
            journal.write(means)
    elif attend is not None:
        attend()


def _save(trainer: Trainer, run_dir: Path, segments: tuple[Segment, ...]) -> None:
    saved = trainer.state.state_dict()  # in every process: parts of it may have to be gathered
    if trainer.process.is_main:
        saved["segments"] = [to_json(segment) for segment in segments]
        checkpoint.save(run_dir / checkpoint.CHECKPOINT, saved)
