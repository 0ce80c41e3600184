"""How the benchmark reads the runs of GANs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from convnorm.experiment.benchmark.pipeline import Pipeline, Result
from convnorm.experiment.benchmark.run_files import (
    by_step,
    finished,
    gains,
    gaps,
    norms,
    read_log,
    segments,
)
from convnorm.experiment.config import differences
from convnorm.experiment.config import read as read_config
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import CurvePoint, Metric, When
from convnorm.experiment.run.loop import is_due
from gan.config import GanConfig
from gan.extractors import scores_with
from gan.keys import REPORTED
from gan.matching import SCALE
from gan.memory import estimate
from gan.models import FORMAT
from gan.records import ScoreRecord, record_in
from gan.score_config import ScoreConfig
from gan.score_names import metrics
from gan.selection import selection_score


def fraction_done(config: GanConfig, line: dict[str, Any]) -> float:
    """The fraction of the training that is done at a line of log.jsonl, in [0, 1]."""
    return line["step"] / config.steps


def scores_of(config: GanConfig, attacks: Sequence[str]) -> dict[When, dict[str, Metric]]:
    """The names of the scores that runs of a config will have; InputError for any attack.

    Where weights are accepted that may not define FID, their file is read: it decides the names.
    """
    if attacks:
        raise InputError(f"attacks: {', '.join(attacks)} is not allowed; expected none on a GAN")
    protocol = config.score.reported
    if protocol is None:
        return {}
    weights = Path(config.score.weights) if config.score.allow_unverified_weights else None
    names = metrics(scores_with(protocol.extractor, weights, REPORTED))
    return {"final": names} | ({} if config.score.selecting is None else {"selected": names})


def conditions(config: GanConfig, attacks: Sequence[str]) -> dict[str, Any]:
    """What of a config decides how its runs are measured; `attacks` is empty."""
    of_a_score = [field.name for field in fields(ScoreConfig) if field.name != "every"]
    score = {f"score.{name}": getattr(config.score, name) for name in of_a_score}
    return {**score, "data": asdict(config.data)}


def read(run_dir: Path, attacks: Sequence[str] = (), num: None = None) -> Result:
    """Read a finished run from its files alone; `attacks` is empty and `num` is None.

    The selected scores are those reported at the step whose other draw, see ScoreConfig.select, has
    the best headline: the step of best.pt. The cost is the discriminator's: it is what a normalizer
    changes.

    Raises:
        InputError: The run is not finished, has no scores, none that is a number to select by, or
            is of an older version.
    """
    with finished(run_dir / "summary.json") as file:
        summary = json.loads(file.read_text())
        steps, parts = summary["steps"], segments(summary, file)
        size = {key: summary[key]["discriminator"] for key in ("parameters", "macs")}
        log_end, metrics_end, best = summary["log"], summary["metrics"], summary["best"]
    config = read_config(GanConfig, run_dir / "config.yaml")
    cost = {"network": "discriminator", **size, "steps": steps}
    log = read_log(run_dir / "log.jsonl", log_end, config.log.every, **cost)
    doubts = log.doubts
    with finished(run_dir / "log.jsonl"):
        gain = gains(log.lines)
    with finished(run_dir / "metrics.jsonl") as file:
        lines = by_step(file, metrics_end)
        told = set(lines)
        if lines and best is not None:
            lines.setdefault(best["step"], best)
        records = _records(dict(sorted(lines.items())), file)
        # An end that was none any more when the run was made longer is no point of its curve.
        records = {s: it for s, it in records.items() if is_due(s, config.score.every, steps)}
        doubts += gaps(file, told, config.score.every, steps)
        final = records[steps]
        curve = tuple(
            CurvePoint(step, log.seconds(step), _scores(record)[final.headline])
            for step, record in records.items()
        )
        scores, selected = {"final": _scores(final)}, None
        doubts += final.all_doubts
        if final.selection is not None:
            selected = _selected(records, file)
            scores["selected"] = _scores(records[selected])
            doubts += records[selected].all_doubts
    pictures = sorted((run_dir / "samples").glob("step*.png"))
    return Result(
        metrics=final.metrics,
        scores=scores,
        selected_step=selected,
        curve_name=final.headline,
        curve=curve,
        norms=norms(log.lines),
        protocol=_protocol(final),
        floor={name: it for name, it in final.floor.scores.items() if it is not None},
        cost=log.cost,
        segments=parts,
        versions=final.versions,
        picture=pictures[-1] if pictures else None,
        doubts=tuple(dict.fromkeys(doubts)),
        learned=not _is_nothing_like_real(final),
        gain=gain,
        data_sha256=summary.get("data_sha256"),
    )


def _records(lines: dict[int, dict[str, Any]], file: Path) -> dict[int, ScoreRecord]:
    """Step -> record; InputError if there is none, or they are not all of one protocol."""
    records = {step: record_in(line, file) for step, line in lines.items()}
    if not records:
        raise InputError(f"{file}: holds no score; expected a run whose score.protocol is not none")
    last = list(records.values())[-1]
    for step, record in records.items():
        if differing := differences(_protocol(record), _protocol(last)):
            raise InputError(
                f"{file}: step {step} was not scored as the last one was "
                f"({'; '.join(differing)}); expected one protocol"
            )
    return records


def _selected(records: dict[int, ScoreRecord], file: Path) -> int:
    """The step whose other draw is best; InputError where that is a number at no step."""
    step = min(records, key=lambda step: selection_score(records[step]))
    if math.isinf(selection_score(records[step])):
        raise InputError(
            f"{file}: {records[step].selection.headline} on data held out is a number at no step; "
            "expected one to select by"
        )
    return step


def _scores(record: ScoreRecord) -> dict[str, float]:
    """The scores with NaN for what is no number, which the benchmark refuses with its name.

    Without what not even real images have: the protocol has too few images for it.
    """
    known = record.floor.scores
    return {
        name: math.nan if it is None else it
        for name, it in record.scores.items()
        if it is not None or known[name] is not None or name == record.headline
    }


def _is_nothing_like_real(record: ScoreRecord) -> bool:
    """Whether no generated image lies where real ones do, as after a handful of steps."""
    return any(it == 0 for name, it in record.scores.items() if name.startswith("precision"))


def _protocol(record: ScoreRecord) -> dict[str, Any]:
    """All that two scores must have in common, beside the training that they compare."""
    return {
        **record.protocol,
        "weights_sha256": record.extractor.weights_sha256,
        "real_sha256": record.real.sha256,
        "floor_images": record.floor.num_images,
        "selection": None if record.selection is None else _protocol(record.selection),
    }


GAN = Pipeline(
    name="gan",
    config=GanConfig,
    script="train_gan.py",
    format=FORMAT,
    memory=estimate,
    fraction_done=fraction_done,
    scores=scores_of,
    conditions=conditions,
    remaining_evaluations=lambda run_dir, attacks, num: [],
    read=read,
    matching=SCALE,
)
