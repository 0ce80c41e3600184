"""Reads two classifiers by what both were measured by: the same images, attacks and settings."""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from classification.benchmark import CHECKPOINTS, OTHERS, Measured, protocol_of, result_of
from classification.evaluation_files import load
from classification.evaluation_report import ball
from classification.records import Evaluation
from classification.trained_runs import read_training
from convnorm.experiment.benchmark.pair import Pairing
from convnorm.experiment.config import differences
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import When
from convnorm.experiment.run.checkpoint import EVALUATION


def read_pair(a: Path, b: Path) -> Pairing:
    """Read two trained runs with evaluations that both have, see `_most_alike`.

    Weights that one of the runs was not evaluated with count for none, and so do attacks.

    Raises:
        InputError: A run is not finished; the two were not evaluated with weights of one kind, or
            never on the same images with the same settings.
    """
    trainings = read_training(a), read_training(b)
    found = {when: (_evaluations(a, when), _evaluations(b, when)) for when in CHECKPOINTS}
    both = {when: pair for when, pair in found.items() if all(pair)}
    if not both:
        known = [_known(found, place) for place in (0, 1)]
        raise InputError(
            f"of {a}, {known[0]} was evaluated, of {b}, {known[1]}; expected the same of both "
            "(scripts/evaluate_cls.py)"
        )
    chosen = {when: _most_alike(a, b, when, *pair) for when, pair in both.items()}
    attacks = {when: _common(*(record for record, _ in pair)) for when, pair in chosen.items()}
    results = []
    for place, (run_dir, training) in enumerate(zip((a, b), trainings, strict=True)):
        own = {when: pair[place] for when, pair in chosen.items()}
        _check_steps(run_dir, training.steps, own)
        protocol = {when: protocol_of(record, attacks[when]) for when, (record, _) in own.items()}
        results.append(result_of(training, own, attacks, protocol))
    notes = [_measured(when, pair[0][0], attacks[when]) for when, pair in chosen.items()]
    notes += [
        _alone(when, place, pair, attacks) for when, pair in chosen.items() for place in (0, 1)
    ]
    return Pairing(*results, tuple(note for note in notes if note))


def _evaluations(run_dir: Path, when: When) -> list[Measured]:
    """All evaluations of a checkpoint that can be read, that of the usual settings first."""
    checkpoint, found = run_dir / CHECKPOINTS[when], []
    files = (run_dir / EVALUATION).glob(f"{checkpoint.stem}*.json")
    for file in sorted(files, key=lambda file: (file.stem != checkpoint.stem, file.name)):
        try:
            found.append(load(checkpoint, file))
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def _known(found: dict[When, tuple[list[Measured], ...]], place: int) -> str:
    names = [CHECKPOINTS[when] for when, pair in found.items() if pair[place]]
    return " and ".join(names) or "nothing"


def _most_alike(
    a: Path, b: Path, when: When, here: list[Measured], there: list[Measured]
) -> tuple[Measured, Measured]:
    """The best two evaluations among those that can be compared.

    Of test images before those that weights were selected on, of more images before fewer, then
    those with more attacks in common.
    """
    alike = [(one, other) for one, other in product(here, there) if not _differing(one, other)]
    if not alike:
        raise InputError(
            f"{a} and {b}: {CHECKPOINTS[when]} was not evaluated in the same way, there and here: "
            f"{'; '.join(_differing(here[0], there[0]))}; expected the same images and settings"
        )

    def rank(pair: tuple[Measured, Measured]) -> tuple[bool, int, int]:
        records = [record for record, _ in pair]
        data = records[0].data
        return data.split == "test", data.n, len(_common(*records))

    return max(alike, key=rank)


def _measured(when: When, record: Evaluation, attacks: Sequence[str]) -> str:
    """What the scores are of: a folder can hold evaluations of other images and budgets too."""
    common = [attack.settings for attack in record.attacks if attack.name in attacks]
    of_one_eps = [settings for settings in common if isinstance(settings.eps, float)]
    balls = dict.fromkeys(ball(settings.norm, settings.eps) for settings in of_one_eps)
    attacked = f", attacked within {' and '.join(balls)}" if balls else ""
    return f"{when}: on {record.data.n:,} {record.data.split} images{attacked}"


def _differing(one: Measured, other: Measured) -> list[str]:
    attacks = _common(one[0], other[0])
    return differences(protocol_of(one[0], attacks), protocol_of(other[0], attacks))


def _attacks(record: Evaluation) -> list[str]:
    others = [name for name in OTHERS if getattr(record, name)]
    return [attack.name for attack in record.attacks] + others


def _common(one: Evaluation, other: Evaluation) -> list[str]:
    return [name for name in _attacks(one) if name in _attacks(other)]


def _alone(
    when: When, place: int, pair: Sequence[Measured], attacks: dict[When, list[str]]
) -> str | None:
    """What one of the two runs alone was measured under, in a sentence."""
    names = [name for name in _attacks(pair[place][0]) if name not in attacks[when]]
    weights = CHECKPOINTS[when]
    return (
        f"{'AB'[place]} alone was evaluated under {', '.join(names)} ({weights})" if names else None
    )


def _check_steps(run_dir: Path, steps: dict[When, int], own: dict[When, Measured]) -> None:
    """A run that was killed and went on elsewhere can differ from what it wrote before."""
    for when, (record, _) in own.items():
        if record.checkpoint.step != steps.get(when):
            raise InputError(
                f"{run_dir / CHECKPOINTS[when]}: is of step {record.checkpoint.step}; expected "
                f"that of summary.json, {steps.get(when)}"
            )
