"""Measures how often a classifier is right about clean, attacked and corrupted images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from classification.attacks import frozen
from classification.autoattack import check_classes
from classification.corruption_sources import Corruption, made_here, official
from classification.corruptions import SEVERITIES
from classification.evaluation_record import (
    attack_record,
    checks,
    clean_record,
    corruption_record,
    right_about,
    worst_cases,
)
from classification.models import LoadedClassifier
from classification.named_attacks import Attack, Budget, attack_named
from classification.per_image import Rows, Subject, sha256_of
from classification.records import Checkpoint, EvaluatedData, Evaluation
from classification.splits import split
from classification.training_data import sha256_of as sha256_of_file
from convnorm.experiment.config import require
from convnorm.experiment.data import Images, load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from convnorm.experiment.streams import generator

CORRUPTIONS = "corruptions"  # among the names of attacks


@dataclass(frozen=True)
class Options:
    """What is measured.

    attacks: names, see `named_attacks.NAMES`; the clean accuracy is always measured.
    split: validation is what the run held out of its training file, with the file's own labels.
    num: a random subset of so many images, drawn with `budget.seed`; None for all.
    batch_size: images at a time; AutoAttack's result depends on it.
    data_root: where the data are, if not where they were in training.
    corruptions_dir: of the official CIFAR-10-C or CIFAR-100-C, in place of corruptions made here.
    """

    attacks: tuple[str, ...] = ("fgsm", "pgd20", "sweep")
    budget: Budget = field(default_factory=Budget)
    split: Literal["test", "validation"] = "test"
    num: int | None = None
    batch_size: int = 250
    data_root: str | None = None
    corruptions_dir: Path | None = None

    def __post_init__(self):
        require(self.num is None or self.num >= 1, "num", self.num, "1 or more")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        if self.corruptions_dir is not None:
            folder = str(self.corruptions_dir)
            asked = CORRUPTIONS in self.attacks
            require(asked, "corruptions_dir", folder, "corruptions among the attacks")
            require(self.split == "test", "corruptions_dir", folder, "the test split, as they are")


def checkpoint_of(run: Path, which: Literal["best", "last"]) -> Path:
    """Return a run folder's checkpoint, or `run` itself if it is a file."""
    if not run.is_dir():
        return run
    file = run / {"best": checkpoint.BEST, "last": checkpoint.CHECKPOINT}[which]
    if file.is_file():
        return file
    hint = "a run folder of train_cls.py or a checkpoint file"
    if which == "best" and (run / checkpoint.CHECKPOINT).is_file():
        hint += "; where nothing was selected on a validation split, --checkpoint last"
    raise InputError(f"{file}: no such checkpoint; expected {hint}")


def evaluate(
    loaded: LoadedClassifier, options: Options, device: torch.device
) -> tuple[Evaluation, dict[str, Tensor]]:
    """Measure a classifier that is on `device`; return a record and what it counts, per image.

    The record does not depend on when or how fast it was made. Per image: `positions` (N,) int64 in
    the split's file, and what `evaluation_record.right_about` returns.

    Images that the network gets wrong as they are count as wrong under every attack and are not
    attacked. Everything is computed in float32, without TF32. The folder `evaluation` beside the
    checkpoint keeps the results of single images, from which the same call goes on.

    Raises:
        InputError: An option, the data or the files of corruptions do not fit the classifier.
    """
    names = dict.fromkeys(options.attacks)
    attacks = [attack_named(name, options.budget) for name in names if name != CORRUPTIONS]
    if any(name.startswith("autoattack") for name in names):
        check_classes(len(loaded.classes))
    subject = _subject(loaded, options, device)
    sources = _sources(options, subject.images) if CORRUPTIONS in names else []
    _make_folder(subject.folder)
    with _exact(), frozen(loaded.network):
        clean = _clean(subject)
        queue = subject.positions[clean["right"]]
        found = [(attack, _attack(subject, attack, queue)) for attack in attacks]
        right = {source.name: _corruption(subject, source) for source in sources}
    n = len(subject.positions)
    attack_records = tuple(attack_record(attack, rows, n) for attack, rows in found)
    chance = 1 / len(loaded.classes)
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
        corruptions=corruption_record(right, sources) if sources else None,
        checks=checks(attack_records, chance),
    )
    return record, {"positions": subject.positions, **right_about(clean, found)}


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


@contextmanager
def _exact() -> Iterator[None]:
    """Compute in float32 proper, and the same each time, on a GPU too."""
    flags = {"benchmark": False, "deterministic": True, "allow_tf32": False}
    with torch.backends.cudnn.flags(enabled=True, **flags):
        yield


# ------------------------------------------------------------------------------- the images


def _subject(loaded: LoadedClassifier, options: Options, device: torch.device) -> Subject:
    data = loaded.config.data
    if options.data_root is not None:
        elsewhere = data.name != "digits"
        require(elsewhere, "data_root", options.data_root, "none: the digits come with the suite")
        data = replace(data, root=options.data_root)
    images = load_images(data, "train" if options.split == "validation" else "test")
    _check_fit(loaded, images)
    if options.split == "validation" and sha256_of_file(images) != loaded.data_sha256:
        raise InputError(
            f"data.root: {data.root} has other training data than the run had, so what was held "
            "out is not known; expected the same file, or --split test"
        )
    positions = _positions(loaded, options, images)
    folder = loaded.file.parent / checkpoint.EVALUATION
    facts = {
        "checkpoint_sha256": loaded.sha256,
        "images_sha256": images.sha256(),
        "labels_sha256": sha256_of(images.labels),
        "batch_size": options.batch_size,
        "device": device.type,
        "torch": str(torch.__version__),
    }
    return Subject(loaded.network, images, positions, device, options.batch_size, folder, facts)


def _sources(options: Options, images: Images) -> list[Corruption]:
    if options.corruptions_dir is None:
        return made_here(images, options.budget.seed)
    return official(images, options.corruptions_dir)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from None


def _check_fit(loaded: LoadedClassifier, images: Images) -> None:
    channels, known = images.images.shape[1], loaded.classes
    if channels != loaded.channels:
        raise InputError(
            f"{loaded.file}: a network for {loaded.channels} channels; the images have {channels}"
        )
    if images.classes != known:
        raise InputError(
            f"{loaded.file}: a network for the {len(known)} classes {_shown(known)}; "
            f"the images have the {len(images.classes)} classes {_shown(images.classes)}"
        )


def _shown(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:10]) + ", ..." * (len(classes) > 10)


def _positions(loaded: LoadedClassifier, options: Options, images: Images) -> Tensor:
    positions = torch.arange(len(images.labels))
    if options.split == "validation":
        positions = split(images.labels, loaded.config.split)[1]
        if len(positions) == 0:
            raise InputError(
                "split: validation has no image, as the run's split.validation is 0; expected test"
            )
    if options.num is None:
        return positions
    if options.num > len(positions):
        raise InputError(
            f"num: {options.num} is not allowed; expected at most the {len(positions)} images "
            f"of the {options.split} split"
        )
    random = generator("cpu", options.budget.seed, "evaluation")
    return positions[torch.randperm(len(positions), generator=random)[: options.num]].sort().values


# ------------------------------------------------------------------------ the measurements


def _clean(subject: Subject) -> Rows:
    """`right`, and `right5` if there are more classes than 5: the label is among the first 5."""

    def compute(positions: Tensor) -> Rows:
        y = subject.labels(positions)
        with torch.no_grad():
            logits = subject.network(subject.pixels(positions))
        if not logits.isfinite().all():
            raise InputError("the network's outputs are not finite; expected one that has learned")
        rows = {"right": logits.argmax(1) == y}
        if logits.shape[1] > 5:
            rows["right5"] = rows["right"] | (logits.topk(5).indices == y[:, None]).any(1)
        return rows

    return subject.rows("clean", {}, subject.positions, compute)


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
