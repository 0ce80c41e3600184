"""The file of a device's results: a part of the bench is written beside the parts there already."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnorm.experiment import files
from convnorm.experiment.errors import InputError

PARTS = "parts"
DESCRIBED = {"device": str, "hardware": str, "tiny": bool, "torch": str}  # what every part says
EXPECTED = "a file that bench_speed.py --json wrote"


@dataclass(frozen=True)
class Identity:
    """What all parts of a file have in common, as their ratios stand in one table."""

    device: str
    hardware: str
    tiny: bool


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return name -> part of a file of results; InputError where it is none."""
    content = files.read(file, EXPECTED)
    try:
        parts = json.loads(content)[PARTS]
        for part in parts.values():
            if not all(isinstance(part[key], kind) for key, kind in DESCRIBED.items()):
                raise TypeError
        return parts
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"--json: {file} is not {EXPECTED}; nothing was changed") from None


def parts_beside(file: Path, name: str, identity: Identity) -> dict[str, dict[str, Any]]:
    """Return the other parts that a file has, none where there is no file.

    Raises InputError where they were measured elsewhere than `identity` says, or at sizes that are
    no benchmark.
    """
    if not file.exists():
        return {}
    parts = {other: part for other, part in read(file).items() if other != name}
    for other, part in parts.items():
        there = Identity(part["device"], part["hardware"], part["tiny"])
        if there != identity:
            raise InputError(
                f"--json: {file} has {other!r} of {_words(there)}; expected {_words(identity)}, or "
                "another file"
            )
    return parts


def write(file: Path, parts: dict[str, dict[str, Any]]) -> None:
    """Write the parts of a file."""
    files.write_json(file, {PARTS: parts})


def _words(identity: Identity) -> str:
    tiny = ", tiny" if identity.tiny else ""
    return f"{identity.device} ({identity.hardware}{tiny})"
