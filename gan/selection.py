"""Which step of a run is selected, and the weights of it that are kept.

best.pt is written as soon as a step does better than all before. A kill can come before last.pt
knows of it, and on a GPU the resumed run may score that step otherwise. So last.pt holds the
selected weights too, and `restore` makes best.pt again what it was where the run goes on.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from gan.models import FORMAT
from gan.records import ScoreRecord


@dataclass(frozen=True)
class Selected:
    """A step that was selected.

    score: see `selection_score`. record: the step's line of metrics.jsonl. weights: of the
    generator and its average, on the CPU.
    """

    step: int
    score: float
    record: dict[str, Any]
    weights: dict[str, Any]


def selection_score(record: ScoreRecord) -> float:
    """Return what a step is selected by: lower is better, infinite where it is no finite number.

    It is the headline of the other draw, see ScoreConfig.select; the record must have one.
    """
    other = record.selection
    value = other.ranked
    if value is None or not math.isfinite(value):
        return math.inf
    return value if other.metrics[other.headline].better == "lower" else -value


def restore(run_dir: Path, model: dict[str, Any] | None) -> None:
    """Make best.pt what it was where the run goes on; None if nothing was selected by then."""
    file = run_dir / checkpoint.BEST
    if model is None:
        file.unlink(missing_ok=True)
        return
    try:
        there = checkpoint.load(file, FORMAT)
        same = all(there[key] == model[key] for key in ("step", "config"))
    except (InputError, KeyError):  # missing or damaged
        same = False
    if not same:
        checkpoint.save(file, model)
