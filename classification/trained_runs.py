"""Reads the files that the training of a classifier left, without any evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path

from classification.config import ClassifierConfig
from convnorm.experiment.benchmark.run_files import (
    Log,
    by_step,
    finished,
    gaps,
    read_log,
    segments,
)
from convnorm.experiment.config import read as read_config
from convnorm.experiment.records import CurvePoint, Segment, When


@dataclass(frozen=True)
class Training:
    """What the files of a trained run say, without any evaluation.

    steps: of the weights that are evaluated. noise: when -> the scores of wrong labels, where there
    are some. curve_name, curve: the score by which weights were selected. parts: of the training.
    data_sha256: of the training data; None in a run of before it was told.
    """

    steps: dict[When, int]
    noise: dict[When, dict[str, float]]
    curve_name: str
    curve: tuple[CurvePoint, ...]
    log: Log
    parts: tuple[Segment, ...]
    doubts: tuple[str, ...]
    data_sha256: str | None


def read_training(run_dir: Path) -> Training:
    """Read a trained run; InputError where a file is missing or lacks something."""
    config = read_config(ClassifierConfig, run_dir / "config.yaml")
    metric = config.select.metric
    with finished(run_dir / "summary.json") as file:
        summary = json.loads(file.read_text())
        steps: dict[When, int] = {"final": summary["steps"]}
        best = {}  # step -> scores of the selected weights
        if summary["best"] is not None:
            steps["selected"] = summary["best"]["step"]
            best = {steps["selected"]: summary["best"]["scores"]}
        size = {key: summary[key] for key in ("parameters", "macs", "steps")}
        parts = segments(summary, file)
        every = config.select.every * (steps["final"] // summary["epochs"])
        log_end, metrics_end = summary["log"], summary["metrics"]
    with finished(run_dir / "metrics.jsonl") as file:
        validated = {step: line["scores"] for step, line in by_step(file, metrics_end).items()}
        doubts = gaps(file, validated, every, steps["final"]) if metrics_end else ()
        validated = best | validated
        noise = {when: _of_noise(validated[step]) for when, step in steps.items() if metrics_end}
    cost = {"network": "classifier", **size}
    log = read_log(run_dir / "log.jsonl", log_end, config.log.every, **cost)
    curve = tuple(
        CurvePoint(step, log.seconds(step), found[metric])
        for step, found in sorted(validated.items())
        if metric in found
    )
    name = f"validation {metric}"
    data = summary.get("data_sha256")
    return Training(steps, noise, name, curve, log, parts, doubts + log.doubts, data)


def _of_noise(scores: dict[str, float]) -> dict[str, float]:
    return {key: scores[key] for key in ("memorized", "recovered") if key in scores}
