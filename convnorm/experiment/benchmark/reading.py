"""Reads the files that finished runs of all pipelines have, or says what they lack."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convnorm.experiment.errors import InputError

# Names in a log line -> names in Result.norms.
NORMS = {"operator_norm": "operator", "matrix_norm": "matrix", "rms_singular_value": "rms"}


@contextmanager
def finished(file: Path) -> Iterator[Path]:
    """Read `file` in here: what it lacks becomes an InputError of one line."""
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


def on(hardware: str, world_size: int) -> str:
    """Result.hardware of so many processes."""
    return hardware if world_size == 1 else f"{hardware}, in {world_size} processes"


def norms(log: dict[int, dict[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Result.norms from step -> line of log.jsonl."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for step, line in log.items():
        for key, value in line.items():
            kind, _, layer = key.partition("/")
            if kind in NORMS:
                found.setdefault(NORMS[kind], {}).setdefault(layer, []).append((step, value))
    return found
