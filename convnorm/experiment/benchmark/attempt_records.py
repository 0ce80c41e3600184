"""The lines of attempts.jsonl: what every attempt at a run of a benchmark came to."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from convnorm.experiment.benchmark.attempt import AttemptRecord
from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.errors import InputError

ATTEMPTS = "attempts.jsonl"
# Those of runs that were taken over: they tell nothing of how long a run takes here.
ELSEWHERE = "attempts_elsewhere.jsonl"


def attempts(folder: Path, name: str = ATTEMPTS) -> list[AttemptRecord]:
    """Return all attempts so far, the oldest first; damaged lines are left out.

    folder: of the benchmark. Raises InputError where the file cannot be one.
    """
    return [found for found in _lines(folder / name) if isinstance(found, AttemptRecord)]


def damaged(folder: Path) -> list[str]:
    """Return what is wrong with lines that are no records, one sentence for each."""
    lines = (found for name in (ATTEMPTS, ELSEWHERE) for found in _lines(folder / name))
    return [found for found in lines if isinstance(found, str)]


def _lines(file: Path) -> Iterator[AttemptRecord | str]:
    """Yield the record of each line, or what is wrong with it.

    A kill can tear a line in the middle of the file, as the next start goes on below it.
    """
    if not file.exists():
        return
    if not file.is_file():
        raise InputError(f"{file}: is no file; expected one with a line of JSON for each attempt")
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        if line.strip():
            try:
                yield from_json(AttemptRecord, json.loads(line.decode()), where)
            except InputError as error:
                yield str(error)
            except (ValueError, RecursionError):  # no UTF-8, no JSON, or nested without end
                yield f"{where}: not readable as JSON; expected the record of an attempt"


def append(folder: Path, record: AttemptRecord, name: str = ATTEMPTS) -> None:
    """Add the record of an attempt to a benchmark's folder."""
    path, line = folder / name, json.dumps(to_json(record)).encode()
    try:
        with path.open("a+b") as file:
            file.seek(-min(1, file.tell()), os.SEEK_END)
            cut = file.read() not in (b"", b"\n")  # by a kill
            file.write((b"\n" if cut else b"") + line + b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
