"""Carries out one run of a benchmark: trains it, or resumes it, then evaluates it."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from convnorm.experiment.benchmark.grid import Benchmark, Run
from convnorm.experiment.benchmark.pipeline import Pipeline
from convnorm.experiment.config import ROOT
from convnorm.experiment.run.locking import is_held
from convnorm.experiment.run.tracking import last_line

CHILD = Path(__file__).with_name("child.py")
# Exit codes after a request to stop, which a script may have noted or not.
STOPPED = {sign for n in (signal.SIGINT, signal.SIGTERM) for sign in (-n, 128 + n)}


@dataclass(frozen=True)
class Command:
    """A script of the suite with its arguments, run by several `processes` through torchrun."""

    script: str
    arguments: tuple[str, ...]
    processes: int = 1

    @property
    def _torchrun(self) -> list[str]:
        return ["--standalone", f"--nproc_per_node={self.processes}"]

    def __str__(self) -> str:
        """As it is typed."""
        start = ["torchrun", *self._torchrun] if self.processes > 1 else ["python"]
        return shlex.join([*start, f"scripts/{self.script}", *self.arguments])

    @property
    def words(self) -> list[str]:
        """As a process is started with it, which ends when the one that starts it does."""
        script = [str(ROOT / "scripts" / self.script), *self.arguments]
        start = ["-m", "torch.distributed.run", *self._torchrun] if self.processes > 1 else []
        return [sys.executable, str(CHILD), *start, *script]


def is_trained(run: Run) -> bool:
    """Whether training has ended, so that at most evaluations are left."""
    return (run.folder / "summary.json").exists()


def fraction_done(run: Run, pipeline: Pipeline) -> float:
    """The fraction of the run's training that is done and logged, in [0, 1]."""
    if is_trained(run):
        return 1.0
    line = last_line(run.folder / "log.jsonl")
    try:
        return pipeline.fraction_done(run.config, line) if line else 0.0
    except (KeyError, TypeError):  # a line that lacks something; the run itself will say so
        return 0.0


@dataclass(frozen=True)
class AttemptRecord:
    """How an attempt went: a line of attempts.jsonl.

    outcome: stopped, where something from outside ended it. reason: why it failed or was stopped.
    seconds: in all. evaluating: those of them that came after the training.
    before, after: the fraction of the training that was done.
    """

    run: str
    outcome: Literal["done", "failed", "stopped"]
    reason: str
    seconds: float
    evaluating: float
    before: float
    after: float


def lost(run: str, outcome: Literal["failed", "stopped"], reason: str) -> AttemptRecord:
    """The record of an attempt that left none of its own."""
    return AttemptRecord(run, outcome, reason, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Ended:
    """An attempt that is over. where: a person finds what it said there."""

    record: AttemptRecord
    where: str


@dataclass
class Attempt:
    """One run to be carried out by commands in processes of their own.

    processes: how many train the run together. device: auto, cpu or cuda. environment: variables
        of the commands, besides ours.
    """

    benchmark: Benchmark
    run: Run
    processes: int = 1
    device: str = "auto"
    environment: dict[str, str] = field(default_factory=dict)
    _stopping: bool = field(default=False, init=False)
    _child: subprocess.Popen | None = field(default=None, init=False)

    @property
    def label(self) -> str:
        """The run's name as part of a file's."""
        return f"{self.run.cell.slug}-seed{self.run.seed}"

    @property
    def log(self) -> Path:
        """The file with the output of the commands."""
        return self.benchmark.folder / "logs" / f"{self.label}.txt"

    def __call__(self) -> AttemptRecord:
        """Do what is left of the run."""
        self._wait_for_others()
        began, before = time.monotonic(), fraction_done(self.run, self.benchmark.pipeline)
        reason, evaluating = "", 0.0
        for command in self._commands():
            since = time.monotonic()
            reason = self._execute(command)
            if command.script != self.benchmark.pipeline.script:
                evaluating += time.monotonic() - since
            if reason:
                break
        outcome = "done" if not reason else "stopped" if self._stopping else "failed"
        return AttemptRecord(
            run=self.run.name,
            outcome=outcome,
            reason=reason,
            seconds=time.monotonic() - began,
            evaluating=evaluating,
            before=before,
            after=fraction_done(self.run, self.benchmark.pipeline),
        )

    def stop(self) -> None:
        """Let the run save and end; may be called from another thread, and before it begins."""
        self._stopping = True
        if (child := self._child) is not None:
            child.terminate()

    def _wait_for_others(self) -> None:
        """Wait for a run whose benchmark was killed: it goes on to its next step and saves."""
        if is_held(self.run.folder):
            print(f"{self.run.name}: waits for the process that still has it", file=sys.stderr)
        while is_held(self.run.folder) and not self._stopping:
            time.sleep(1)

    def _commands(self) -> Iterator[Command]:
        """Yield one after another, as the evaluations depend on what the training leaves."""
        pipeline, grid = self.benchmark.pipeline, self.benchmark.grid
        device = () if self.device == "auto" else ("--device", self.device)
        if not is_trained(self.run):
            yield Command(pipeline.script, (*self.run.arguments, *device), self.processes)
        left = pipeline.remaining_evaluations(self.run.folder, grid.attacks, grid.num)
        for script, *arguments in left:
            yield Command(script, (*arguments, *device))

    def _execute(self, command: Command) -> str:
        """Run a command to its end; return why it failed, or "" if it did not."""
        if self._stopping:
            return "stopped"
        variables = {**os.environ, **self.environment, "CONVNORM_PARENT": str(os.getpid())}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a+", errors="replace") as log:
            print(f"$ {command}", file=log, flush=True)
            begin = log.tell()
            with subprocess.Popen(
                command.words,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C comes to us alone, and we pass it on
            ) as self._child:
                if self._stopping:  # was asked for in the meantime
                    self._child.terminate()
                code = self._child.wait()
            self._child = None
            log.seek(begin)
            said = [line for line in map(str.strip, log) if line]
        if code == 0:
            return ""
        # Someone else can ask for it: scancel sends SIGTERM to all processes of a job.
        self._stopping |= code in STOPPED
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        last = (errors or said or ["nothing"])[-1]
        return last if code > 0 else f"killed by {signal.Signals(-code).name}; it last said: {last}"
