"""How the benchmark evaluates and reads the runs of classifiers."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from classification.certificate import SCORED
from classification.config import ClassifierConfig
from classification.evaluation_files import load, record_file
from classification.evaluation_options import CERTIFIED, CORRUPTIONS, Options
from classification.memory import estimate
from classification.models import FORMAT
from classification.named_attacks import Budget, attack_named
from classification.records import Evaluation
from classification.trained_runs import Training, read_training
from convnorm.experiment.benchmark.pipeline import Pipeline, Result
from convnorm.experiment.benchmark.run_files import norms
from convnorm.experiment.codec import to_json
from convnorm.experiment.config import differences
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Metric, When
from convnorm.experiment.run.checkpoint import BEST, CHECKPOINT

# A record, and which images the network is right about by the name of an attack, (N,) bool.
Measured = tuple[Evaluation, dict[str, np.ndarray]]
OTHERS = (CERTIFIED, CORRUPTIONS)  # among the names of attacks
CALIBRATION = ("ECE", "NLL")  # of the clean images
CHECKPOINTS: dict[When, str] = {"final": CHECKPOINT, "selected": BEST}


def fraction_done(config: ClassifierConfig, line: dict[str, Any]) -> float:
    """The fraction of the training that is done at a line of log.jsonl, in [0, 1]."""
    return line["epoch"] / config.train.epochs


def scores_of(config: ClassifierConfig, attacks: Sequence[str]) -> dict[When, dict[str, Metric]]:
    """The names of the scores that runs of a config have after an evaluation under `attacks`.

    Raises:
        InputError: A name is not that of an attack.
    """
    for name in attacks:
        if name not in OTHERS:
            attack_named(name, Budget())
    names = ["clean", *(name for name in attacks if name in OTHERS or _has_accuracy(name))]
    names += CALIBRATION
    names += [] if config.noise.kind == "none" else ["memorized", "recovered"]
    metrics = _metrics(names)
    return {"final": metrics} | ({"selected": metrics} if config.split.validation > 0 else {})


def conditions(config: ClassifierConfig, attacks: Sequence[str]) -> dict[str, Any]:
    """The part of a config that decides how its runs are evaluated.

    The eps of the training is among it: attacks are as strong.
    """
    eps = {"adversary.eps": config.adversary.eps} if attacks else {}
    return {"data": asdict(config.data), "select.metric": config.select.metric, **eps}


def remaining_evaluations(
    run_dir: Path, attacks: Sequence[str], num: int | None = None
) -> list[list[str]]:
    """The commands without which `read` would refuse a trained run."""
    commands = []
    for name in CHECKPOINTS.values():
        file = run_dir / name
        if name == BEST and not file.exists():
            continue  # nothing was held out to select by
        try:
            _evaluation(file, attacks, num)
        except InputError:
            command = ["evaluate_cls.py", str(run_dir), "--checkpoint", file.stem]
            command += [] if num is None else ["--num", str(num)]
            commands.append([*command, "--attacks", *attacks])
    return commands


def read(run_dir: Path, attacks: Sequence[str], num: int | None = None) -> Result:
    """Read a trained and evaluated run from its files alone.

    Scores are accuracies on test images, "clean" and by the names of attacks ("certified" at an l2
    radius of 36/255), and the calibration of the clean ones, "ECE" and, in nats, "NLL". Where there
    are wrong labels, "memorized" and "recovered" are the fractions of the training images with one
    for which the network predicts that label, or the right one.

    num: of how many test images the evaluation is, None for all.

    Raises:
        InputError: A file is missing, lacks something, or is not of the run's weights.
    """
    training = read_training(run_dir)
    evaluations = {
        when: _evaluation_at(step, run_dir / CHECKPOINTS[when], attacks, num)
        for when, step in training.steps.items()
    }
    records = {when: record for when, (record, _) in evaluations.items()}
    protocol = _common_protocol(run_dir, records, attacks)
    return result_of(training, evaluations, dict.fromkeys(evaluations, attacks), protocol)


def result_of(
    training: Training,
    evaluations: dict[When, Measured],
    attacks: dict[When, Sequence[str]],
    protocol: dict[str, Any],
) -> Result:
    """Put a training and evaluations of it together.

    attacks: when -> those of the evaluation that count. protocol: see `Result`.
    """
    records = {when: record for when, (record, _) in evaluations.items()}
    scores = {
        when: _scores(record, attacks[when]) | training.noise.get(when, {})
        for when, record in records.items()
    }
    names = dict.fromkeys(name for found in scores.values() for name in found)
    return Result(
        # Calibration is known of a run and not of another where records are of several versions.
        metrics=_metrics([*names, *CALIBRATION, training.curve_name]),
        scores=scores,
        selected_step=training.steps.get("selected"),
        curve_name=training.curve_name,
        curve=training.curve,
        norms=norms(training.log.lines),
        protocol=protocol,
        floor={},
        cost=training.log.cost,
        segments=training.parts,
        versions={},
        right={
            when: {name: each[name] for name in ("clean", *attacks[when]) if name in each}
            for when, (_, each) in evaluations.items()
        },
        doubts=training.doubts + _failed_checks(records) + _unproven(records),
        learned="final" not in records or _has_learned(records["final"]),
        data_sha256=training.data_sha256,
    )


def _has_learned(record: Evaluation) -> bool:
    """Whether the accuracy can be told from that of the best blind guess."""
    return record.clean.top1.interval[0] > record.chance


def _failed_checks(records: dict[When, Evaluation]) -> tuple[str, ...]:
    return tuple(
        f"{when} weights, {check.name}: {check.detail}"
        for when, record in records.items()
        for check in record.checks
        if not check.passed
    )


def _unproven(records: dict[When, Evaluation]) -> tuple[str, ...]:
    """Where a certified accuracy of 0 says nothing of the network."""
    return tuple(
        f"{when} weights, certified: {record.certified.proof}"
        for when, record in records.items()
        if record.certified and record.certified.lipschitz is None
    )


def _evaluation(file: Path, attacks: Sequence[str], num: int | None) -> Measured:
    """Read the evaluation of a checkpoint; InputError if it does not have all of `attacks`."""
    record, per_image = load(file, record_file(file, Options(num=num), Budget.eps))
    there = {attack.name for attack in record.attacks}
    there |= {name for name in OTHERS if getattr(record, name)}
    if lacking := [name for name in attacks if name not in there]:
        raise InputError(
            f"{file}: not evaluated with {', '.join(lacking)}; expected evaluate_cls.py "
            f"--checkpoint {file.stem}{'' if num is None else f' --num {num}'} "
            f"--attacks {' '.join(attacks)}"
        )
    return record, per_image


def _evaluation_at(step: int, file: Path, attacks: Sequence[str], num: int | None) -> Measured:
    """The same; InputError if the checkpoint is not of this step.

    A run that was killed and went on elsewhere can differ from what it wrote before.
    """
    record, per_image = _evaluation(file, attacks, num)
    found = record.checkpoint.step
    if found != step:
        raise InputError(f"{file}: is of step {found}; expected that of summary.json, {step}")
    return record, per_image


def _scores(record: Evaluation, attacks: Sequence[str]) -> dict[str, float]:
    found = {"clean": record.clean.top1}
    found |= {attack.name: attack.accuracy for attack in record.attacks if attack.accuracy}
    if record.corruptions:
        found[CORRUPTIONS] = record.corruptions.mean
    if record.certified:
        found[CERTIFIED] = record.certified.points[0].accuracy
    scores = {name: found[name].value for name in ("clean", *attacks) if name in found}
    clean = record.clean
    return scores | ({} if clean.nll is None else {"ECE": clean.ece, "NLL": clean.nll.mean})


def protocol_of(record: Evaluation, attacks: Sequence[str]) -> dict[str, Any]:
    """All that two accuracies must have in common, beside the training that they compare."""
    protocol = {
        "data": to_json(record.data),
        "chance": record.chance,
        "batch_size": record.batch_size,
        "seed": record.seed,
        "attacks": {
            attack.name: _given(attack.settings)
            for attack in record.attacks
            if attack.name in attacks
        },
    }
    if CERTIFIED in attacks:
        protocol[CERTIFIED] = {"norm": "l2", "radius": SCORED}
    if CORRUPTIONS in attacks:
        corruptions = record.corruptions
        protocol[CORRUPTIONS] = {
            "mean_over": list(corruptions.mean_over),
            "severities": list(corruptions.severities),
            "sources": {source.name: _given(source) for source in corruptions.sources},
        }
    return protocol


def _common_protocol(
    run_dir: Path, records: dict[When, Evaluation], attacks: Sequence[str]
) -> dict[str, Any]:
    """The protocol of all evaluations of a run; InputError if they have two."""
    first, *others = (protocol_of(record, attacks) for record in records.values())
    for other in others:
        if differing := differences(first, other):
            raise InputError(
                f"{run_dir}: its last.pt and best.pt were evaluated differently "
                f"({'; '.join(differing)}); expected the same options of evaluate_cls.py"
            )
    return first


def _given(settings: Any) -> dict[str, Any]:
    """The fields of a record that are not None, as JSON."""
    return {key: value for key, value in to_json(settings).items() if value is not None}


def _metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Name -> how its values compare: most are accuracies."""
    lower = {"memorized", *CALIBRATION}
    return {n: Metric("lower" if n in lower else "higher", percent=n != "NLL") for n in names}


def _has_accuracy(attack: str) -> bool:
    """Whether an attack has one accuracy; a sweep has many."""
    return not isinstance(attack_named(attack, Budget()).settings["eps"], list)


CLASSIFICATION = Pipeline(
    name="classification",
    config=ClassifierConfig,
    script="train_cls.py",
    format=FORMAT,
    memory=estimate,
    scores=scores_of,
    conditions=conditions,
    fraction_done=fraction_done,
    remaining_evaluations=remaining_evaluations,
    read=read,
)
