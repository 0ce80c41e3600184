"""Noisy training labels, drawn from the clean ones as in the literature on label noise."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from classification import human_labels
from convnorm.experiment import files
from convnorm.experiment.config import require
from convnorm.experiment.config.fields import LARGEST_SEED, bounded, check_ranges, choosing
from convnorm.experiment.errors import InputError
from convnorm.experiment.streams import generator

DRAWN = ("symmetric", "symmetric_exclusive", "pair", "asymmetric", "asymmetric_as_published")
KINDS = ("none", *DRAWN, *human_labels.KINDS)

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Patrini et al., CVPR 2017: the classes that are mistaken for another, in the order of the labels.
CIFAR10_MISTAKES = {
    "bird": "airplane",
    "cat": "dog",
    "deer": "horse",
    "dog": "cat",
    "truck": "automobile",
}
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
CIFAR100 = tuple(sorted(sum(CIFAR100_SUPERCLASSES.values(), ())))  # the order of its labels


@dataclass(frozen=True)
class NoiseConfig:
    """Which labels become wrong, and how many.

    Of all N labels, round(rate * N) random ones are drawn. The kind decides what replaces them:

    symmetric: uniform over all C classes, the true one included, so that only a fraction of
    rate * (1 - 1/C) changes (Liu et al., NeurIPS 2020, and ConvNorm).
    symmetric_exclusive: uniform over the other classes (Patrini et al., CVPR 2017).
    pair: the next class, modulo C (Han et al., NeurIPS 2018).
    asymmetric: a similar class, on CIFAR only (Patrini et al.): on CIFAR-10 five of the ten
    classes have one, so that rate / 2 change; on CIFAR-100 it is the next in the superclass.
    asymmetric_as_published: the same with the errors of ConvNorm's code: each rule of CIFAR-10
    applies to what earlier rules have changed, which turns cats to dogs and back; CIFAR-100's
    superclasses are runs of five labels in alphabetical order.

    Or none is drawn, and all are those that people gave (Wei et al., ICLR 2022), from a `file`:
    human_worst, human_aggregate, human_random1 to 3 of CIFAR-10N, human_fine of CIFAR-100N.

    Args:
        kind: what replaces a label.
        rate: the fraction of the labels that are drawn; at 0 every kind leaves them as they are.
        seed: of the noise alone, so that runs of different training seeds have the same labels.
        file: CIFAR-10_human.pt or CIFAR-100_human.pt, which is the user's own copy.
    """

    PLACE: ClassVar = ("file",)  # of labels; which they are, a run knows by noisy_labels.npz

    kind: Literal[KINDS] = choosing(
        "none",
        {"none": ()}
        | dict.fromkeys(DRAWN, ("rate", "seed"))
        | dict.fromkeys(human_labels.KINDS, ("file",)),
    )
    rate: float = bounded(0.0, least=0, most=1)
    seed: int = bounded(0, least=0, most=LARGEST_SEED)
    file: str | None = None

    def __post_init__(self):
        require(self.kind in KINDS, "noise.kind", self.kind, f"one of {', '.join(KINDS)}")
        check_ranges(self, "noise")
        if self.kind not in DRAWN:
            require(self.rate == 0, "noise.rate", self.rate, f"0 where noise.kind is {self.kind}")
        if self.kind in human_labels.KINDS:
            wanted = f"the path of {human_labels.file_of(self.kind)}"
            require(bool(self.file), "noise.file", self.file, wanted)


def noisy_labels(labels: Tensor, classes: Sequence[str], config: NoiseConfig) -> Tensor:
    """Draw the noisy labels of a training file.

    Call it on the whole file, before a part is chosen, so that an image has the same label in
    every part. With one seed, labels that change at some rate also change at any higher rate
    (except where asymmetric_as_published turns a cat to a dog and back).

    Args:
        labels: (N,) int64 on the CPU, the clean ones.
        classes: The names of the classes, by which CIFAR-10 and CIFAR-100 are recognized.

    Returns:
        (N,) int64, new; the global random state is neither read nor changed.

    Raises:
        InputError: The kind is not defined for these classes.
    """
    if config.kind == "none":
        return labels.clone()
    require(len(classes) > 1, "noise.kind", config.kind, "none for data of one class")
    if config.kind in human_labels.KINDS:
        number, _ = human_labels.KINDS[config.kind]
        known = {10: CIFAR10, 100: CIFAR100}[number]
        is_defined = tuple(classes) == known
        require(
            is_defined, "noise.kind", config.kind, f"another for data that are not CIFAR-{number}"
        )
        return human_labels.read(Path(config.file), config.kind, labels)
    random = generator("cpu", config.seed, "label noise", "which")
    if config.kind == "asymmetric_as_published" and tuple(sorted(classes)) == CIFAR10:
        return _chained(labels, classes, config.rate, random)
    is_drawn = _drawn(len(labels), config.rate, random)
    return torch.where(is_drawn, _wrong(labels, classes, config), labels)


def _drawn(num: int, rate: float, random: torch.Generator) -> Tensor:
    """Which of `num` labels are drawn, (num,) bool: exactly round(rate * num), equally likely."""
    is_drawn = torch.zeros(num, dtype=torch.bool)
    is_drawn[torch.randperm(num, generator=random)[: round(rate * num)]] = True
    return is_drawn


def _wrong(labels: Tensor, classes: Sequence[str], config: NoiseConfig) -> Tensor:
    """Return the label that each image gets if it is drawn."""
    C = len(classes)
    random = generator("cpu", config.seed, "label noise", "what")
    match config.kind:
        case "symmetric":
            return torch.randint(C, labels.shape, generator=random)
        case "symmetric_exclusive":
            return (labels + torch.randint(1, C, labels.shape, generator=random)) % C
        case "pair":
            return (labels + 1) % C
    mistakes = _mistakes(classes, config.kind)
    return torch.tensor([classes.index(mistakes.get(name, name)) for name in classes])[labels]


def _mistakes(classes: Sequence[str], kind: str) -> dict[str, str]:
    """True class -> the class that asymmetric noise takes it for."""
    if tuple(sorted(classes)) == CIFAR10:
        return CIFAR10_MISTAKES
    if tuple(sorted(classes)) != CIFAR100:
        shown = ", ".join(classes[:3])
        raise InputError(
            f"noise.kind: {kind!r} is defined for cifar10 and cifar100, known by the names of "
            f"their classes; expected another kind for these {len(classes)} classes ({shown}, ...)"
        )
    groups = list(CIFAR100_SUPERCLASSES.values())
    if kind == "asymmetric_as_published":
        groups = [CIFAR100[first : first + 5] for first in range(0, 100, 5)]
    return {group[j]: group[(j + 1) % 5] for group in groups for j in range(5)}


def _chained(
    labels: Tensor, classes: Sequence[str], rate: float, random: torch.Generator
) -> Tensor:
    """Apply CIFAR-10's rules one after another, each to the result of the one before."""
    noisy = labels.clone()
    for true, wrong in CIFAR10_MISTAKES.items():
        positions = (noisy == classes.index(true)).nonzero().flatten()
        noisy[positions[_drawn(len(positions), rate, random)]] = classes.index(wrong)
    return noisy


def describe(clean: Tensor, noisy: Tensor, num_classes: int, config: NoiseConfig) -> dict[str, Any]:
    """Describe the requested and the actual noise of all labels, or of a part, ready for JSON.

    Returns:
        kind, seed, requested_rate (None where people gave the labels); images: N; actual_rate: the
        fraction of labels that changed; class_rates: the same of each true class (0 for one without
        images); sha256: of the noisy labels as little-endian int64.
    """
    counts = torch.bincount(clean, minlength=num_classes)
    changed = torch.bincount(clean[clean != noisy], minlength=num_classes)
    return {
        "kind": config.kind,
        "seed": config.seed,
        "requested_rate": config.rate if config.kind in DRAWN else None,
        "images": len(clean),
        "actual_rate": int(changed.sum()) / max(len(clean), 1),
        "class_rates": (changed.double() / counts.clamp(min=1)).tolist(),
        "sha256": hashlib.sha256(noisy.numpy().astype("<i8")).hexdigest(),
    }


def save(
    path: Path,
    clean: Tensor,
    noisy: Tensor,
    train: Tensor,
    validation: Tensor,
    config: NoiseConfig,
) -> None:
    """Write the labels of the whole training file as .npz, atomically; equal labels, equal bytes.

    Its arrays, one entry an image: indices, the position in the file; clean; noisy; split: train,
    validation or unused. Its scalars: kind, rate (the requested one), seed.
    """
    part = np.full(len(clean), "unused", "<U10")
    part[train.numpy()] = "train"
    part[validation.numpy()] = "validation"
    arrays = {
        "indices": np.arange(len(clean)),
        "clean": clean.numpy(),
        "noisy": noisy.numpy(),
        "split": part,
        "kind": np.array(config.kind),
        "rate": np.array(config.rate),
        "seed": np.array(config.seed),
    }
    files.write(path, lambda file: np.savez_compressed(file, **arrays))


def check(path: Path, noisy: Tensor, config: NoiseConfig) -> None:
    """Raise InputError where `save` wrote other labels to `path`; none if there is no such file."""
    try:
        with np.load(path) as saved:
            before = saved["noisy"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, BadZipFile):
        before = None
    if not np.array_equal(before, noisy.numpy()):
        raise InputError(
            f"{path}: not the labels that noise.kind {config.kind} gives now; expected those that "
            f"the run began with{' in noise.file' if config.file else ''}"
        )
