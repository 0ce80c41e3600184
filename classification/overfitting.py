"""How much the last weights of a run are worse than its best: robust overfitting.

By Rice, Wong & Kolter (ICML 2020): robust accuracy falls on while the training goes on. Both are
evaluated on the same images, so that their difference is known better than either.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from classification.benchmark import protocol_of
from classification.evaluation_files import load
from classification.evaluation_options import CERTIFIED
from classification.records import Evaluation
from convnorm.experiment.config import differences
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Interval
from convnorm.experiment.report import formats
from convnorm.experiment.run.checkpoint import BEST, CHECKPOINT
from convnorm.experiment.statistics import CONFIDENCE

OTHER = {BEST: CHECKPOINT, CHECKPOINT: BEST}
Flags = Mapping[str, np.ndarray]  # "clean" or an attack -> which images are right, (N,) bool


@dataclass(frozen=True)
class Gap:
    """last - best of an accuracy over the same `n` images, with its paired 95 % interval."""

    name: str
    difference: float
    interval: Interval
    n: int


def gap(name: str, last: np.ndarray, best: np.ndarray) -> Gap:
    """Compare by which of the same images, (n,) bool, each is right about.

    The interval is that of Bonett & Price (2012), Wald's for paired proportions after adding an
    image to either kind that only one is right about: it keeps its coverage where these are few,
    and has a width where there is none. It is of other images, not of other training seeds.
    """
    n, only_last, only_best = len(last), int((last & ~best).sum()), int((best & ~last).sum())
    up, down = ((count + 1) / (n + 2) for count in (only_last, only_best))
    half = norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    ends = max(-1.0, float(up - down - half)), min(1.0, float(up - down + half))
    return Gap(name, (only_last - only_best) / n, ends, n)


def counterpart(run_dir: Path, file: Path, record: Evaluation) -> tuple[Evaluation, Flags] | None:
    """Return what the run's other checkpoint has from the same settings; None where it has nothing.

    file: of `record`. What cannot be read, or is of other images, is told on standard error.
    """
    own = record.checkpoint.file
    if own not in OTHER:
        return None
    weights = run_dir / OTHER[own]
    there = file.with_name(weights.stem + file.name.removeprefix(Path(own).stem))
    if not there.is_file():
        return None
    try:
        other, right = load(weights, there)
    except InputError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None
    names = _common(record, other)
    if differing := differences(protocol_of(other, names), protocol_of(record, names)):
        told = f"left out: {there}: measured in another way, there and here: {'; '.join(differing)}"
        print(told, file=sys.stderr)
        return None
    return other, right


def _common(one: Evaluation, other: Evaluation) -> list[str]:
    known = {attack.name for attack in other.attacks}
    return [attack.name for attack in one.attacks if attack.name in known]


def overfitting(run_dir: Path, file: Path, record: Evaluation, right: Flags) -> list[str]:
    """Return a line for each accuracy that both checkpoints of a run have; none without the other.

    file, record, right: of the one that was evaluated now, as saved.
    """
    found = counterpart(run_dir, file, record)
    if found is None:
        return []
    here, there = (record, right), found
    last, best = (here, there) if record.checkpoint.file == CHECKPOINT else (there, here)
    epochs = [one[0].checkpoint.epoch for one in (last, best)]
    if last[0].checkpoint.step == best[0].checkpoint.step:
        return [f"robust overfitting: none can be: best.pt is of the last epoch, {epochs[0]}"]
    names = [name for name in right if name in there[1] and name != "positions"]
    gaps = [gap(name, *(np.asarray(one[1][name]) for one in (last, best))) for name in names]
    where = f"epoch {epochs[0]} against {epochs[1]}"
    if record.data.split == "validation":
        where += ", on the images that best was selected by"
    return [_line(each, where) for each in gaps]


def _line(found: Gap, where: str) -> str:
    is_attack = found.name not in ("clean", CERTIFIED)  # no attack finds what is certified
    what = "robust overfitting" if is_attack else f"{found.name} accuracy"
    under = f" under {found.name}" if is_attack else ""
    return (
        f"{what}: last - best = {100 * found.difference:+.2f} points "
        f"[{formats.accuracy_interval(found.interval)}]{under} ({where}, {found.n} images)"
    )
