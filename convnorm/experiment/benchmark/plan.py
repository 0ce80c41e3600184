"""What of a benchmark is done, what is left, and about how long that takes."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from convnorm.experiment.benchmark.attempt import is_trained, share_done
from convnorm.experiment.benchmark.grid import Benchmark, Run
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint

ATTEMPTS = "attempts.jsonl"
KEYS = {"run", "outcome", "seconds", "measuring", "from", "to"}  # of its lines
GRID = "grid.yaml"  # as it was at the first start


@dataclass(frozen=True)
class Progress:
    """Where a run stands. share: of its training, in [0, 1]; reason: why it failed."""

    run: Run
    state: Literal["done", "cut", "failed", "not begun"]
    share: float
    reason: str = ""


def check(benchmark: Benchmark) -> None:
    """Raise an InputError where the folder of a run holds one of another config."""
    for run in benchmark.runs:
        if differing := checkpoint.in_the_way(run.folder, run.config):
            raise InputError(
                f"{run.folder} holds a run of another config ({'; '.join(differing)}); expected "
                "that of the benchmark, another --folder, or this one moved away"
            )


def attempts(benchmark: Benchmark) -> list[dict[str, Any]]:
    """What Attempt returned so far, the oldest first; lines that were damaged are left out."""
    file = benchmark.folder / ATTEMPTS
    found = []
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and record.keys() >= KEYS:
            found.append(record)
    return found


def survey(benchmark: Benchmark) -> list[Progress]:
    """Look at the folder of every run; one that failed has failed until it is done."""
    pipeline, attacks = benchmark.pipeline, benchmark.grid.attacks
    last = {line["run"]: line for line in attempts(benchmark)}
    found = []
    for run in benchmark.runs:
        share, line = share_done(run, pipeline), last.get(run.name, {})
        if is_trained(run) and not pipeline.measurements(run.folder, attacks):
            found.append(Progress(run, "done", 1.0))
        elif line.get("outcome") == "failed":
            found.append(Progress(run, "failed", share, line["reason"]))
        else:
            state = "cut" if (run.folder / "config.yaml").exists() else "not begun"
            found.append(Progress(run, state, share))
    return found


def seconds_left(benchmark: Benchmark, progress: list[Progress], workers: int) -> float | None:
    """Estimate from the attempts so far how long the rest takes; None where there are none.

    A run is taken to be as slow, in training and in what is measured of it, as those of its cell
    were, or else as all were.
    """
    cells = {item.run.name: item.run.cell.name for item in progress}
    lines = [line for line in attempts(benchmark) if line["run"] in cells]
    trained = [line for line in lines if line["to"] > line["from"]]
    if not trained:
        return None
    measured = [line for line in lines if line["measuring"] > 0]
    left = []
    for item in progress:
        if item.state != "done":
            cell = item.run.cell.name
            rate = _rate([it for it in trained if cells[it["run"]] == cell] or trained)
            of_cell = [it for it in measured if cells[it["run"]] == cell] or measured
            measuring = sum(it["measuring"] for it in of_cell) / max(1, len(of_cell))
            left.append(rate * (1 - item.share) + measuring)
    return max(sum(left) / workers, max(left, default=0.0))


def _rate(lines: list[dict[str, Any]]) -> float:
    """Seconds for the whole of a training, by what attempts took for their shares of it."""
    shares = sum(line["to"] - line["from"] for line in lines)
    return sum(line["seconds"] - line["measuring"] for line in lines) / shares


def describe(benchmark: Benchmark, workers: int) -> str:
    """The plan as text: one line for all, then one a run; `workers` of them go on at a time."""
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
        share = f" at {item.share:.0%}" if item.state in ("cut", "failed") else ""
        reason = f": {item.reason}" if item.reason else ""
        lines.append(f"  {item.run.name:{width}}  {item.state}{share}{reason}")
    return "\n".join(lines)


def about(seconds: float | None) -> str:
    """A time left, in words."""
    if seconds is None:
        return "not known before the first is done"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s"
