"""The gain that `normalizer.scale` leads to: how it is measured, and where it cannot be set."""

import math
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from convnorm.experiment.benchmark.pipeline import Matching
from convnorm.experiment.benchmark.run_files import by_step, finished, gains
from convnorm.experiment.data import DataConfig, Images, load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import How
from convnorm.experiment.statistics import plateau
from convnorm.normalizers import Normalizer, normalized_layers
from gan.config import GanConfig
from gan.gain import probe_of
from gan.models import build
from gan.score_config import ScoreConfig

# Of networks at the first step and, the first of them, of pilot runs; far from those of any grid.
SEEDS = (1_000_003, 1_000_004, 1_000_005)
PART = 5  # a pilot run is so much shorter than the run that it stands for
PROBES = 20  # of a plateau, at least, where it has so many steps
NO_SCORE = {f"score.{name}": value for name, value in asdict(ScoreConfig()).items()}


def check(config: GanConfig, how: How) -> tuple[str, ...]:
    """Return what is to be said of a gain that is matched; InputError where no factor sets it."""
    normalizer = config.normalizer
    if config.model.gradient_normalization:
        raise InputError(
            f"{how}: model.gradient_normalization divides by the gain, and normalizer.scale "
            "changes nothing; expected a discriminator without it"
        )
    if how == "init_matched":
        if normalizer.mixes_batch:
            raise InputError(
                f"{how}: normalizer.kind {normalizer.kind!r} brings BatchNorm, which at the first "
                "step has seen no data; expected plateau_matched"
            )
        if not normalizer.ignores_scale:
            return (
                f"the weights of {normalizer.kind} have a scale of their own, which can undo the "
                "factor: the gain is matched at the first step alone",
            )
        return ()
    if config.steps < PART:
        raise InputError(f"{how}: steps: {config.steps} is too few; expected {PART} or more")
    every = _gain_every(config)
    num = config.steps // PART // every - (math.ceil(config.steps / 10 / every) - 1)
    return (f"the plateau is a mean over {num} steps only",) if num < PROBES else ()


def relevant(config: GanConfig, how: How) -> dict[str, Any]:
    """All of a config that the gain depends on, without the factor, the seed and the data's place.

    At the first step that is the data and the networks; later, all that acts on the training.
    """
    values = asdict(config)
    for key in ("score", "log", "checkpoints", "seed"):
        del values[key]
    del values["normalizer"]["scale"]
    for name in DataConfig.PLACE:
        del values["data"][name]
    at_start = ("data", "model", "normalizer")
    return values if how == "plateau_matched" else {key: values[key] for key in at_start}


def gain_at_start(config: GanConfig) -> float:
    """Return exp of the mean log gain before the first step, over `SEEDS`.

    Networks are those that a run begins with, power iterations included.
    """
    training, logs = _training_images(config.data), []
    for seed in SEEDS:
        seeded = replace(config, seed=seed)
        probe = probe_of(seeded, config.data, training, "cpu")
        generator, discriminator = build(seeded, training.images.shape[1], len(training.classes))
        logs.append(
            _log(probe(discriminator, generator).mean, f"seed {seed}, before the first step")
        )
    return math.exp(math.fsum(logs) / len(logs))


@cache
def _training_images(data: DataConfig) -> Images:
    return load_images(data, "train")


def _log(gain: float, where: str) -> float:
    if not (math.isfinite(gain) and gain > 0):
        raise InputError(f"{where}: the gain is {gain}; expected a number above 0")
    return math.log(gain)


def depth(config: GanConfig) -> int:
    """Return how many layers of the discriminator have the factor."""
    # Images of one channel, and any number of classes, take as many layers.
    _, discriminator = build(config, 3, num_classes=2)
    return max(1, sum(1 for _ in normalized_layers(discriminator)))


def pilot(config: GanConfig) -> dict[str, Any]:
    """Return what the pilot run of a config does in another way: it ends early and scores nothing.

    Its steps are the first ones of the run itself: whatever changes with the steps does so over
    `optim.decay_steps`.
    """
    steps, over = config.steps, config.optim.decay_steps
    return {
        "steps": steps // PART,
        "optim.decay_steps": steps if over is None else over,
        **NO_SCORE,
        "log.every": max(1, steps // 100),
        "log.gain_every": _gain_every(config),
        "log.norms_every": steps,
        "log.samples_every": steps,
        "checkpoints.every": 0,
    }


def _gain_every(config: GanConfig) -> int:
    return max(1, config.steps // (10 * PROBES))


def plateau_of(config: GanConfig, folder: Path) -> float:
    """Return exp of the mean log gain over 10 to 20 % of the steps of a run, from its pilot run."""
    file = folder / "log.jsonl"
    with finished(file):
        points = [(point.step, point.mean) for point in gains(by_step(file, None))]
    for step, gain in points:
        _log(gain, f"{file}, step {step}")
    if (found := plateau(points, config.steps)) is None:
        raise InputError(
            f"{file}: has no gain at 10 to 20 % of {config.steps} steps; expected the log of a "
            "finished pilot run, or none, which runs it again"
        )
    return found


_RANGE = {field.name: field.metadata.get("range") for field in fields(Normalizer)}["scale"]

SCALE = Matching(
    key="normalizer.scale",
    least=_RANGE.least,
    most=_RANGE.most,
    seeds=SEEDS,
    check=check,
    relevant=relevant,
    at_start=gain_at_start,
    depth=depth,
    pilot=pilot,
    plateau=plateau_of,
)
