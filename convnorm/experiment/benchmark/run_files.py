"""Reads what the files of finished runs have in common in all pipelines, or says what they lack."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convnorm.experiment.codec import from_json
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import NormPoint, Norms, Segment

# Names in a log line -> names in Result.norms.
NORMS = {"operator_norm": "operator", "matrix_norm": "matrix", "rms_singular_value": "rms"}


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
    except (TypeError, ValueError):
        raise InputError(f"{file}: damaged; {expected}") from None


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
