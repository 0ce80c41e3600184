"""Which runs of a benchmark are done, which are left, and about how long these take."""

import sys
from collections import defaultdict
from dataclasses import dataclass

from convnorm.experiment.benchmark import attempt_records, reported
from convnorm.experiment.benchmark.attempt import AttemptRecord, fraction_done, is_trained
from convnorm.experiment.benchmark.attempt_records import attempts
from convnorm.experiment.benchmark.grid import Benchmark, Run
from convnorm.experiment.benchmark.reported import ReportedRun
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import State
from convnorm.experiment.run import checkpoint

GRID = "grid.yaml"  # as it was at the first start


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    fraction: of its training that is done, in [0, 1]. reason: why it failed.
    reported: what a report says of it, of a run that was taken over from one and has no folder.
    """

    run: Run
    state: State
    fraction: float
    reason: str = ""
    reported: ReportedRun | None = None


def check(benchmark: Benchmark) -> None:
    """Say which lines of attempts.jsonl are damaged; they are left out.

    Raises:
        InputError: The folder of a run, or reported.json, holds one of another config, or
            attempts.jsonl is no file.
    """
    reported.check(benchmark.folder, benchmark.runs)
    for run in benchmark.runs:
        check_folder(run)
    for found in attempt_records.damaged(benchmark.folder):
        print(f"{found}; the line is left out", file=sys.stderr)


def check_folder(run: Run) -> None:
    """Raise an InputError where the folder of a run holds one of another config."""
    if differing := checkpoint.in_the_way(run.folder, run.config):
        raise InputError(
            f"{run.folder} holds a run of another config ({'; '.join(differing)}); expected "
            "that of the benchmark, another --folder, or this one moved away"
        )


def survey(benchmark: Benchmark) -> list[Progress]:
    """Look at the folder of every run; a run that failed counts as failed until it is done."""
    pipeline, grid = benchmark.pipeline, benchmark.grid
    elsewhere = reported.read(benchmark.folder)
    last = {attempt.run: attempt for attempt in attempts(benchmark.folder)}
    found = []
    for run in benchmark.runs:
        fraction, attempt = fraction_done(run, pipeline), last.get(run.name)
        asked = run.folder, grid.attacks, grid.num
        if told := elsewhere.get((run.cell.name, run.seed)):
            found.append(Progress(run, "done", 1.0, reported=told))
        elif is_trained(run) and not pipeline.remaining_evaluations(*asked):
            found.append(Progress(run, "done", 1.0))
        elif attempt is not None and attempt.outcome == "failed":
            found.append(Progress(run, "failed", fraction, attempt.reason))
        else:
            state = "cut" if (run.folder / "config.yaml").exists() else "not begun"
            found.append(Progress(run, state, fraction))
    return found


def seconds_left(benchmark: Benchmark, progress: list[Progress], workers: int) -> float | None:
    """Estimate from the attempts so far how long the rest takes; None where there are none.

    Training and evaluating a run are taken to be as slow as for the other runs of its cell or,
    where there are none, for all runs.
    """
    cells = {item.run.name: item.run.cell.name for item in progress}
    found = [attempt for attempt in attempts(benchmark.folder) if attempt.run in cells]
    trained = [attempt for attempt in found if attempt.after > attempt.before]
    if not trained:
        return None
    evaluated = [attempt for attempt in found if attempt.evaluating > 0]
    left = []
    for item in progress:
        if item.state != "done":
            cell = item.run.cell.name
            training = _seconds_of_training([a for a in trained if cells[a.run] == cell] or trained)
            of_cell = [a for a in evaluated if cells[a.run] == cell] or evaluated
            evaluating = sum(a.evaluating for a in of_cell) / max(1, len(of_cell))
            left.append(training * (1 - item.fraction) + evaluating)
    return max(sum(left) / workers, max(left, default=0.0))


def expected_seconds(benchmark: Benchmark, progress: list[Progress]) -> dict[str, float | None]:
    """Return run's name -> the seconds until it is done; None where no attempt tells them.

    A run is taken to be as slow as the finished runs of its cell or, where there are none, as those
    of the slowest cell: time that was not enough is lost, and time that is left is not.
    """
    cells = {item.run.name: item.run.cell.name for item in progress}
    of_cell: dict[str, list[AttemptRecord]] = defaultdict(list)
    for attempt in attempts(benchmark.folder):
        if attempt.outcome == "done" and attempt.run in cells:
            of_cell[cells[attempt.run]].append(attempt)
    training = {
        cell: _seconds_of_training(found)
        for cell, found in of_cell.items()
        if any(attempt.after > attempt.before for attempt in found)
    }
    evaluating = {cell: max(a.evaluating for a in found) for cell, found in of_cell.items()}
    if not training:
        return dict.fromkeys(cells)
    slowest = max(training.values()), max(evaluating.values())
    return {
        item.run.name: training.get(item.run.cell.name, slowest[0]) * (1 - item.fraction)
        + evaluating.get(item.run.cell.name, slowest[1])
        for item in progress
    }


def _seconds_of_training(attempts: list[AttemptRecord]) -> float:
    """Estimate the seconds of a whole training from attempts that did fractions of one."""
    trained = sum(attempt.after - attempt.before for attempt in attempts)
    return sum(attempt.seconds - attempt.evaluating for attempt in attempts) / trained


def describe(benchmark: Benchmark, workers: int) -> str:
    """Return the plan as text: a line for all runs, then a line for each.

    workers: how many runs go on at a time.
    """
    progress = survey(benchmark)
    seconds = seconds_left(benchmark, progress, workers)
    counts = {
        state: sum(item.state == state for item in progress)
        for state in ("done", "cut", "failed", "not begun")
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    time = "" if counts["done"] == len(progress) else f"; time left: {about(seconds)}"
    width = max(len(item.run.name) for item in progress)
    lines = [f"{benchmark.name}: {len(progress)} runs: {told}{time}"]
    for item in progress:
        fraction = f" at {item.fraction:.0%}" if item.state in ("cut", "failed") else ""
        reason = f": {item.reason}" if item.reason else ""
        lines.append(f"  {item.run.name:{width}}  {item.state}{fraction}{reason}")
    return "\n".join(lines)


def about(seconds: float | None) -> str:
    """Return a time left in words."""
    if seconds is None:
        return "not known before the first run is done"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s"
