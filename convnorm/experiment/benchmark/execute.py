"""Carries out the runs that are left of a benchmark and shows how far they are."""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.benchmark.attempt import Attempt, Ended, fraction_done
from convnorm.experiment.benchmark.attempt_records import append
from convnorm.experiment.benchmark.deadline import may_begin
from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.plan import (
    GRID,
    Progress,
    about,
    expected_seconds,
    seconds_left,
    survey,
)
from convnorm.experiment.config import to_yaml
from convnorm.experiment.errors import Stopped
from convnorm.experiment.run.interrupts import Interrupts
from convnorm.experiment.run.locking import locked

POLL = 0.5  # seconds


class Executor(Protocol):
    """Where attempts are carried out, `workers` at a time: a `LocalExecutor` or a `Cluster`."""

    workers: int
    seconds_left: float  # as long as it may be used

    def has_room(self) -> bool:
        """Whether another attempt can be submitted now."""
        ...

    def submit(self, attempt: Attempt) -> None: ...

    def wait(self, seconds: float) -> None:
        """Wait for something to end, at most so long."""
        ...

    def ended(self) -> Iterator[Ended]:
        """Yield what has ended since; it is noted by the time that the next one is asked for."""
        ...

    def stop(self) -> None: ...


def execute(benchmark: Benchmark, executor: Executor, processes: int, device: str) -> None:
    """Carry out all runs that are not done, each by `processes` on a `device`.

    Adds a line to attempts.jsonl for each run that ends on its own. A run that fails does not stop
    the others. A run that would not end in the time of the executor is not begun, and those that go
    on at its end save and stop.

    Raises:
        InputError: Another process is carrying them out, or a cluster refuses them.
        Stopped: After a Ctrl-C or SIGTERM, as soon as the runs that were going on have saved; or
            where there was not enough time for all runs.
    """
    with locked(benchmark.folder, "folder"):
        for ended in executor.ended():  # on a cluster, while nobody waited for it
            print(_noted(benchmark, ended), file=sys.stderr)
        progress = survey(benchmark)
        left = [item.run for item in progress if item.state != "done"]
        if left:
            _register(benchmark, progress)
            _execute(benchmark, executor, [Attempt(benchmark, r, processes, device) for r in left])


def _register(benchmark: Benchmark, progress: Sequence[Progress]) -> None:
    """Keep the grid of the first start: a report tells whether it was changed since then.

    Where runs were taken over first, their scores were known already.
    """
    file = benchmark.folder / GRID
    if not file.exists() and all(item.state == "not begun" for item in progress):
        content = to_yaml(benchmark.grid).encode()
        files.write(file, lambda opened: opened.write(content))


def _execute(benchmark: Benchmark, executor: Executor, attempts: list[Attempt]) -> None:
    stopping = False
    with Interrupts() as interrupts, _bar(len(attempts)) as bar:
        session = _Session(benchmark, executor, attempts, bar)
        try:
            session.begin(interrupts)
            while session.going:
                session.note_ended(stopping)
                if not stopping and (why := _reason_to_stop(interrupts, executor)):
                    stopping = True
                    bar.write(f"{why}: the runs save and end", file=sys.stderr)
                    executor.stop()
                if not stopping:
                    session.begin(interrupts)
                if session.going:
                    executor.wait(POLL)
        except BaseException:  # a full disk, a second Ctrl-C: no run goes on without us
            executor.stop()
            raise
    if interrupts.signal is not None:
        raise Stopped("stopped; the same command again goes on", 128 + interrupts.signal)
    if stopping:
        raise Stopped("stopped, as the time is over; the same command again goes on", code=1)
    if session.waiting:
        runs = "run is" if len(session.waiting) == 1 else "runs are"
        raise Stopped(
            f"{len(session.waiting)} {runs} left, which would not have ended in the time given; "
            "the same command again goes on",
            code=1,
        )


def _reason_to_stop(interrupts: Interrupts, executor: Executor) -> str:
    """Why the runs that go on have to stop now; "" as long as they need not."""
    if interrupts.signal is not None:
        return "stopping"
    return "stopping, as the time is over" if executor.seconds_left <= 0 else ""


class _Session:
    """The attempts that wait for their turn, and those that go on, by their run's name."""

    def __init__(
        self, benchmark: Benchmark, executor: Executor, attempts: list[Attempt], bar: tqdm
    ):
        self.waiting = list(attempts)
        self.going: dict[str, Attempt] = {}
        self._benchmark, self._executor, self._bar = benchmark, executor, bar
        self._expected = self._seconds_expected()

    def _seconds_expected(self) -> dict[str, float | None]:
        """Run's name -> the seconds until it is done, where they matter."""
        if math.isinf(self._executor.seconds_left):
            return {}
        return expected_seconds(self._benchmark, survey(self._benchmark))

    def begin(self, interrupts: Interrupts) -> None:
        """Submit attempts, as many as there is room for, of those that would end in time."""
        executor = self._executor
        for attempt in list(self.waiting):
            if interrupts.signal is not None or not executor.has_room():
                return
            if may_begin(self._expected.get(attempt.run.name), executor.seconds_left):
                executor.submit(attempt)
                self.waiting.remove(attempt)
                self.going[attempt.run.name] = attempt

    def note_ended(self, stopping: bool) -> None:
        """Note what has ended since, and tell how far all are."""
        before = len(self.going)
        for ended in self._executor.ended():
            self.going.pop(ended.record.run, None)  # none: of a run that the grid has no more
            told = _noted(self._benchmark, ended)
            if not (stopping and ended.record.outcome == "stopped"):
                self._bar.write(told, file=sys.stderr)
        left, total = len(self.going) + len(self.waiting), self._bar.total
        if len(self.going) < before:
            self._expected = self._seconds_expected()
            if left and not stopping:
                progress = survey(self._benchmark)
                seconds = seconds_left(self._benchmark, progress, self._executor.workers)
                self._bar.write(f"{left} of {total} runs left: {about(seconds)}", file=sys.stderr)
        pipeline = self._benchmark.pipeline
        self._bar.n = (
            total - left + sum(fraction_done(a.run, pipeline) for a in self.going.values())
        )
        self._bar.refresh()


def _bar(total: int) -> tqdm:
    shape = "{l_bar}{bar}| {n:.2f} of {total} runs [{elapsed}]"
    return tqdm(total=total, bar_format=shape, disable=None, file=sys.stderr)


def _noted(benchmark: Benchmark, ended: Ended) -> str:
    """Add an attempt to attempts.jsonl unless it was stopped; return what to tell."""
    record = ended.record
    if record.outcome == "stopped":
        return f"{record.run}: stopped: {record.reason}; the next start goes on"
    append(benchmark.folder, record)
    if record.outcome == "failed":
        return f"{record.run}: FAILED: {record.reason} ({ended.where})"
    return f"{record.run}: done in {record.seconds:.0f} s"
