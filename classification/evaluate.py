"""Measures how often a classifier is right about clean, attacked and corrupted images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from classification.attacks import frozen
from classification.autoattack import check_classes, check_tiles
from classification.calibration import confidences
from classification.certificate import SCORED, certified_record, certify, is_certified
from classification.corruption_sources import Corruption, check_size, made_here, official
from classification.corruptions import SEVERITIES
from classification.evaluated_images import subject_of
from classification.evaluation_options import CERTIFIED, CORRUPTIONS, Options
from classification.evaluation_record import (
    among,
    attack_record,
    chance_of,
    checks,
    clean_record,
    corruption_record,
    right_about,
    worst_cases,
    worst_of_both,
)
from classification.models import FORMAT, LoadedClassifier, load_classifier
from classification.named_attacks import Attack, Budget, attack_named, rank, stages_of
from classification.per_image import Rows, Subject, sha256_of
from classification.records import Certified, Checkpoint, EvaluatedData, Evaluation
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.experiment.exact import full_float32
from convnorm.experiment.run import checkpoint


def checkpoint_of(run: Path, which: Literal["best", "last"]) -> Path:
    """Return a run folder's checkpoint, or `run` itself if it is a file."""
    if not run.is_dir():
        return run
    file, last = run / f"{which}.pt", run / checkpoint.CHECKPOINT
    if file.is_file():
        return file
    hint = "a run folder of train_cls.py or a checkpoint file"
    if which == "best" and last.is_file():
        _refuse_gan(last)
        hint += "; where nothing was selected on a validation split, --checkpoint last"
    raise InputError(f"{file}: no such checkpoint; expected {hint}")


def load(file: Path, device: torch.device) -> LoadedClassifier:
    """Return the classifier of a checkpoint on `device`; InputError if it is none."""
    try:
        return load_classifier(file, device)
    except InputError:
        _refuse_gan(file)
        raise


def _refuse_gan(file: Path) -> None:
    try:
        checkpoint.load(file, FORMAT)
    except InputError as error:  # it names the format that was found
        if "convnorm-suite/gan/" in str(error):
            raise InputError(
                f"{file}: a GAN; expected a classifier of train_cls.py. What scores a GAN is "
                f"scripts/fid.py {file.parent} DATA"
            ) from None


@dataclass(frozen=True)
class Evaluated:
    """All that is known of a classifier on the images and with the settings of an evaluation.

    record: what was asked for now, and what was measured before in the same way. It is a function
        of the measurements, and does not depend on when, in which order or how fast they were made.
    right: per image, `positions` (N,) int64 in the split's file, and what
        `evaluation_record.right_about` returns.
    computed: the names of what was measured now, at least in part.
    """

    record: Evaluation
    right: dict[str, Tensor]
    computed: frozenset[str]


def evaluate(loaded: LoadedClassifier, options: Options, device: torch.device) -> Evaluated:
    """Measure a classifier that is on `device`.

    Images that the network gets wrong as they are count as wrong under every attack and are not
    attacked. Everything is computed in float32, without TF32. The folder `evaluation` beside the
    checkpoint keeps the results of single images, from which the same call goes on.

    Raises:
        InputError: An option, the data or the files of corruptions do not fit the classifier, or a
            file with results is damaged.
    """
    names = dict.fromkeys(options.attacks)
    no_attacks = (CERTIFIED, CORRUPTIONS)
    attacks = [attack_named(name, options.budget) for name in names if name not in no_attacks]
    for name in filter(stages_of, names):
        check_classes(name, len(loaded.classes))
    subject = subject_of(loaded, options, device)
    if "autoattack_l2" in names:
        check_tiles("autoattack_l2", *subject.images.images.shape[-2:])
    sources = _sources(options, subject.images)
    _make_folder(subject.folder)
    with full_float32(device), frozen(loaded.network):
        clean = _clean(subject)
        queue = subject.positions[clean["right"]]
        found = [(attack, _attack(subject, attack, queue)) for attack in attacks]
        certified, proven = _certified(subject, queue, clean, asked=CERTIFIED in names)
        if CORRUPTIONS in names:
            right = {source.name: _corruption(subject, source) for source in sources}
        else:
            right = _known_corruptions(subject, sources)
    others = [name for name in subject.names() if name not in names]
    found += _known_attacks(subject, others, options.budget, queue)
    found.sort(key=lambda item: rank(item[0]))
    n = len(subject.positions)
    attack_records = tuple(attack_record(attack, rows, n) for attack, rows in found)
    chance = chance_of(subject.images.labels[subject.positions])
    record = Evaluation(
        checkpoint=_checkpoint(loaded),
        data=EvaluatedData(
            name=loaded.config.data.name,
            split=options.split,
            n=n,
            images_sha256=subject.facts["images_sha256"],
            positions_sha256=sha256_of(subject.positions),
        ),
        chance=chance,
        batch_size=options.batch_size,
        seed=options.budget.seed,
        torch=str(torch.__version__),
        hardware=tuple(sorted(subject.hardware)),
        clean=clean_record(clean),
        attacks=attack_records,
        worst_cases=worst_cases(found, n),
        worst_of_both=worst_of_both(found, n),
        certified=certified,
        corruptions=corruption_record(right, sources) if right else None,
        checks=checks(attack_records, chance),
    )
    right_each = {"positions": subject.positions, **right_about(clean, found), **proven}
    return Evaluated(record, right_each, frozenset(subject.computed))


def _checkpoint(loaded: LoadedClassifier) -> Checkpoint:
    config = loaded.config
    return Checkpoint(
        file=loaded.file.name,
        sha256=loaded.sha256,
        step=loaded.step,
        epoch=loaded.epoch,
        arch=config.model.arch,
        normalizer=config.normalizer.kind,
        adversary=config.adversary.kind,
        seed=config.seed,
    )


def _sources(options: Options, images: Images) -> list[Corruption]:
    if options.corruptions_dir is not None:
        return official(images, options.corruptions_dir)
    if CORRUPTIONS in options.attacks:
        check_size(images)
    return made_here(images, options.budget.seed)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from None


# ------------------------------------------------------------------------ the measurements


def _clean(subject: Subject) -> Rows:
    """`right`, `right5` if there are more classes than 5, and `confidences` of the images.

    right5: the label is among the first 5.
    """

    def compute(positions: Tensor) -> Rows:
        y = subject.labels(positions)
        with torch.no_grad():
            logits = subject.network(subject.pixels(positions))
        if not logits.isfinite().all():
            raise InputError("the network's outputs are not finite; expected one that has learned")
        rows = {"right": logits.argmax(1) == y, **confidences(logits, y)}
        if logits.shape[1] > 5:
            rows["right5"] = rows["right"] | (logits.topk(5).indices == y[:, None]).any(1)
        return rows

    # Measurements from before the confidences were kept have no settings, and are made anew.
    return subject.rows("clean", {"confidences": True}, subject.positions, compute)


def _attack(subject: Subject, attack: Attack, queue: Tensor) -> Rows:
    """`fooled_at` and what else the attack finds, for the images of `queue`."""

    def compute(positions: Tensor) -> Rows:
        x, y = subject.pixels(positions), subject.labels(positions)
        return attack.run(subject.network, x, y, positions)

    rows = subject.rows(attack.name, attack.settings, queue, compute)
    return rows if len(queue) else {"fooled_at": torch.empty(0)}


def _corruption(subject: Subject, source: Corruption) -> Tensor:
    """Whether the network is right, (N, severities) bool."""

    def compute(positions: Tensor) -> Rows:
        y, right = subject.labels(positions), []
        for severity in SEVERITIES:
            x = subject.as_input(source.images(positions, severity))
            with torch.no_grad():
                right.append(subject.network(x).argmax(1) == y)
        return {"right": torch.stack(right, dim=1)}

    return subject.rows(source.name, source.settings, subject.positions, compute)["right"]


def _certified(
    subject: Subject, queue: Tensor, clean: Rows, asked: bool
) -> tuple[Certified | None, Rows]:
    """What is proven, and of which of all images by name; nothing if not asked, now or before."""
    rows = certify(subject, queue) if asked else subject.known(CERTIFIED, {}, queue)
    if rows is None:
        return None, {}
    record = certified_record(subject, rows, len(subject.positions))
    return record, {CERTIFIED: among(clean["right"], is_certified(rows, SCORED))}


# ---------------------------------------------------------------- what was measured before


def _known_attacks(
    subject: Subject, names: list[str], budget: Budget, queue: Tensor
) -> list[tuple[Attack, Rows]]:
    """Those of `names` that are the names of attacks and were measured within this budget."""
    found = []
    for name in names:
        try:
            attack = attack_named(name, budget)
        except InputError:
            continue  # a corruption, or an attack whose package is not there any more
        rows = subject.known(name, attack.settings, queue)
        found += [] if rows is None else [(attack, rows)]
    return found


def _known_corruptions(subject: Subject, sources: list[Corruption]) -> dict[str, Tensor]:
    """Nothing unless all of them are there: their mean is one number."""
    rows = [subject.known(each.name, each.settings, subject.positions) for each in sources]
    if any(each is None for each in rows):
        return {}
    return {source.name: each["right"] for source, each in zip(sources, rows, strict=True)}
