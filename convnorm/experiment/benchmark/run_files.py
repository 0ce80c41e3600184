"""Reads what the files of finished runs have in common in all pipelines, or says what they lack."""

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnorm.experiment.codec import from_json
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Cost, GainPoint, NormPoint, Norms, Segment
from convnorm.experiment.run.board import GAIN
from convnorm.experiment.run.tracking import read_lines

# Names in a log line -> names in Result.norms.
NORMS = {
    "operator_norm": "operator",
    "matrix_norm": "matrix",
    "rms_singular_value": "rms",
    "stable_rank": "stable_rank",
}


@contextmanager
def finished(file: Path) -> Iterator[Path]:
    """Read `file` under this: what it lacks becomes an InputError of one line."""
    expected = "expected that of a finished run of this version"
    try:
        yield file
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; {expected}") from None
    except KeyError as error:
        missing = f"the line of step {error}" if isinstance(error.args[0], int) else error
        raise InputError(f"{file}: lacks {missing}; {expected}") from None
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
        raise InputError(f"{file}: damaged; {expected}") from None


def by_step(file: Path, last: dict[str, Any] | None) -> dict[int, dict[str, Any]]:
    """Read log.jsonl or metrics.jsonl as step -> record, in the order of the steps.

    last: the last record as summary.json has it, for a file that was cut; None where it has none.
    """
    found = {line["step"]: line for line in read_lines(file)}
    if last is not None:
        found.setdefault(last["step"], last)
    return dict(sorted(found.items()))


def gaps(file: Path, found: Collection[int], every: int, steps: int) -> tuple[str, ...]:
    """Say how many records a file lacks, in a sentence for `Result.doubts`, if it does.

    found: the steps that it has. every: the steps between two records; 0 for the last one alone.
    """
    due = {*range(every, steps, every), steps} if every > 0 else {steps}
    missing = sorted(due.difference(found))
    if not missing:
        return ()
    where = f"step {missing[0]}" if len(missing) == 1 else f"steps {missing[0]} to {missing[-1]}"
    return (f"{file.name} lacks {len(missing)} of {len(due)} records ({where})",)


@dataclass(frozen=True)
class Log:
    """The log of a finished run.

    lines: step -> line. cost: of the whole training. doubts: what the file lacks.
    """

    lines: dict[int, dict[str, Any]]
    cost: Cost
    doubts: tuple[str, ...]
    _seconds: tuple[float, ...]

    def seconds(self, step: int) -> float:
        """The training time at a step; between two lines, it is as far in time as in steps."""
        known = {0: 0.0, **dict(zip(self.lines, self._seconds, strict=True))}
        return float(np.interp(step, [*known], [*known.values()]))


def read_log(file: Path, last: dict[str, Any] | None, every: int, **cost: Any) -> Log:
    """Read log.jsonl, or say what it lacks.

    last: see `by_step`. every: the steps between two lines. cost: what of `Cost` it does not have.
    """
    with finished(file):
        lines = by_step(file, last)
        doubts = gaps(file, lines, every, cost["steps"])
        end = lines[cost["steps"]]
        whole = Cost(**cost, **{key: end[key] for key in ("seconds", "peak_memory")})
        return Log(lines, whole, doubts, tuple(line["seconds"] for line in lines.values()))


def segments(summary: dict[str, Any], file: Path) -> tuple[Segment, ...]:
    """Return the parts of a run's training from the content of summary.json, `file`."""
    found = tuple(from_json(Segment, each, f"{file}: segments") for each in summary["segments"])
    if not found:
        raise InputError(f"{file}: segments: none; expected those of a finished run")
    return found


def norms(log: dict[int, dict[str, Any]]) -> Norms:
    """Collect the singular values of all layers from the lines of log.jsonl, by step."""
    found = defaultdict(lambda: defaultdict(list))
    for step, line in log.items():
        for key, value in line.items():
            kind, _, layer = key.partition("/")
            if kind in NORMS:
                found[NORMS[kind]][layer].append(NormPoint(step, value))
    return {
        kind: {layer: tuple(points) for layer, points in layers.items()}
        for kind, layers in found.items()
    }


def gains(log: dict[int, dict[str, Any]]) -> tuple[GainPoint, ...]:
    """Collect the gains of a discriminator from the lines of log.jsonl, by step."""
    return tuple(
        GainPoint(step, *(float(line[key]) for key in GAIN))
        for step, line in log.items()
        if GAIN[0] in line
    )
