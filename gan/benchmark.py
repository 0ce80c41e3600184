"""How the benchmark reads the runs of GANs."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from convnorm.experiment.benchmark.pipeline import Pipeline, Result
from convnorm.experiment.benchmark.run_files import finished, hardware_of, norms
from convnorm.experiment.config import differences
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Cost, CurvePoint, Metric, When
from convnorm.experiment.run.tracking import read_lines
from gan.config import GanConfig
from gan.extractors import label
from gan.protocols import PROTOCOLS
from gan.scoring import Record

SCORES = ("FD", "KID", "precision", "recall", "CS")
LOWER, HIGHER = ("FD", "FID", "KID"), ("IS", "CS", "precision", "recall")


def fraction_done(config: GanConfig, line: dict[str, Any]) -> float:
    """The fraction of the training that is done at a line of log.jsonl, in [0, 1]."""
    return line["step"] / config.steps


def scores_of(config: GanConfig, attacks: Sequence[str]) -> dict[When, dict[str, Metric]]:
    """The names of the scores that runs of a config will have; InputError for any attack."""
    if attacks:
        raise InputError(f"attacks: {', '.join(attacks)} is not allowed; expected none on a GAN")
    if config.score.protocol == "none":
        return {}
    extractor = PROTOCOLS[config.score.protocol].extractor
    names = _metrics(label(score, extractor) for score in SCORES)
    return {"final": names} | ({} if config.score.select == "none" else {"selected": names})


def conditions(config: GanConfig, attacks: Sequence[str]) -> dict[str, Any]:
    """What of a config decides how its runs are measured; `attacks` is empty."""
    score = {"score.protocol": config.score.protocol, "score.select": config.score.select}
    return {**score, "score.weights": config.score.weights, "data": asdict(config.data)}


def read(run_dir: Path, attacks: Sequence[str]) -> Result:
    """Read a finished run from its files alone; `attacks` is empty.

    The selected scores are those reported at the step whose other draw, see ScoreConfig.select, has
    the lowest Fréchet distance. The cost is the discriminator's: it is what a normalizer changes.

    Raises:
        InputError: The run is not finished, has no scores, or is of an older version.
    """
    with finished(run_dir / "summary.json") as file:
        summary = json.loads(file.read_text())
        steps, hardware, commit = (summary[key] for key in ("steps", "hardware", "commit"))
        size = {key: summary[key]["discriminator"] for key in ("parameters", "macs")}
    with finished(run_dir / "log.jsonl") as file:
        log = {line["step"]: line for line in read_lines(file)}
        last = log[steps]
        cost = Cost(
            "discriminator",
            **size,
            steps=steps,
            **{key: last[key] for key in ("seconds", "peak_memory")},
        )
        times = [line["seconds"] for line in log.values()]
    with finished(run_dir / "metrics.jsonl") as file:
        records = _records(file)
        final = records[steps]
        distance = next(name for name in final["scores"] if name.split()[0] in ("FD", "FID"))
        curve = tuple(
            # A step between two log lines is as far in time as in steps.
            CurvePoint(step, float(np.interp(step, [0, *log], [0.0, *times])), value)
            for step, value in ((s, record["scores"][distance]) for s, record in records.items())
        )
        protocol, floor, versions = _protocol(final), _scores(final["floor"]), final["versions"]
        versions = {"commit": commit or "unknown", **versions}
        scores, selected = {"final": _scores(final["scores"])}, None
        if "selection" in final:
            selected = min(records, key=lambda step: _selection(records[step], distance))
            scores["selected"] = _scores(records[selected]["scores"])
    pictures = sorted((run_dir / "samples").glob("*.png"))
    return Result(
        metrics=_metrics(scores["final"]),
        scores=scores,
        selected_step=selected,
        curve_name=distance,
        curve=curve,
        norms=norms(log),
        protocol=protocol,
        floor=floor,
        cost=cost,
        hardware=hardware_of(hardware, summary["world_size"]),
        versions=versions,
        picture=pictures[-1] if pictures else None,
    )


def _records(file: Path) -> dict[int, Record]:
    """Step -> record; InputError if there is none, or they are not all of one protocol."""
    records = {record["step"]: record for record in read_lines(file)}
    if not records:
        raise InputError(f"{file}: holds no score; expected a run whose score.protocol is not none")
    *others, last = records.values()
    for record in others:
        if differing := differences(_protocol(record), _protocol(last)):
            raise InputError(
                f"{file}: step {record['step']} was not scored as the last one was "
                f"({'; '.join(differing)}); expected one protocol"
            )
    return records


def _scores(values: dict[str, float]) -> dict[str, float]:
    """The scores among the numbers of a record: no spreads over subsets, no sizes."""
    return {name: value for name, value in values.items() if _better(name)}


def _selection(record: Record, distance: str) -> float:
    value = record["selection"]["scores"][distance]
    return math.inf if math.isnan(value) else value


def _protocol(record: Record) -> dict[str, Any]:
    """All that two scores must have in common, beside the training that they compare."""
    return {
        **record["protocol"],
        "weights_sha256": record["extractor"]["weights_sha256"],
        "real_sha256": record["real"]["sha256"],
        "floor_images": record["floor"]["n"],
        "selection": _protocol(record["selection"]) if "selection" in record else None,
    }


def _better(name: str) -> str | None:
    """How values of a score compare; None for what is no score."""
    plain = re.fullmatch(r"(\w+)( \(.+\))?", name)
    score = plain[1] if plain else None
    return "lower" if score in LOWER else "higher" if score in HIGHER else None


def _metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Name -> how its values compare, of those names that are scores."""
    return {name: Metric(better) for name in names if (better := _better(name)) is not None}


GAN = Pipeline(
    name="gan",
    config=GanConfig,
    script="train_gan.py",
    fraction_done=fraction_done,
    scores=scores_of,
    conditions=conditions,
    remaining_evaluations=lambda run_dir, attacks: [],
    read=read,
)
