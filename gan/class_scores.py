"""Scores of each class by itself: whether a conditional generator makes what it is asked for.

Intra-class FD is that of the images asked for as a class against the real ones of that class, the
intra-FID of Miyato & Koyama (2018, arXiv 1802.05637, section 4). A class has a fraction of all
images, and the bias of FD grows as they become fewer: so a class has one only where its images, and
each half of the real ones for the floor, outnumber the features. KID is unbiased and needs few.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convnorm.experiment.streams import generator
from gan.distances import FeatureSet, frechet_distance, kernel_distance
from gan.records import ClassScore

LEAST = 3  # images of a side, from which KID has a value and an error


@dataclass(frozen=True)
class ClassReference:
    """The real images of each class: their features, and what one half scores against the other.

    floors: FD and KID of each class.
    """

    names: tuple[str, ...]
    features: tuple[FeatureSet, ...]
    floors: tuple[tuple[float | None, float | None], ...]


def class_reference(features: Tensor, labels: Tensor, names: tuple[str, ...]) -> ClassReference:
    """Return the reference of real features (N, D) with labels (N,), the indices of `names`."""
    parts, floors = _by_class(features, labels, len(names)), []
    for name, part in zip(names, parts, strict=True):
        order = torch.randperm(len(part), generator=generator("cpu", "floor", name))
        order, n = order.to(features.device), len(part) // 2
        floors.append(_distances(*(FeatureSet(part[half]) for half in (order[:n], order[n:][:n]))))
    return ClassReference(names, tuple(map(FeatureSet, parts)), tuple(floors))


def class_scores(
    features: Tensor, labels: Tensor, reference: ClassReference
) -> tuple[ClassScore, ...]:
    """Score generated features (N, D) by the class (N,) that each image was asked for as."""
    parts, found = _by_class(features, labels, len(reference.names)), []
    rows = zip(reference.names, parts, reference.features, reference.floors, strict=True)
    for name, part, real, (floor, floor_kernel) in rows:
        fake = FeatureSet(part)
        distance, kernel = _distances(fake, real)
        # A distance without its floor says nothing.
        distance = None if floor is None else distance
        found.append(ClassScore(name, len(fake), len(real), distance, floor, kernel, floor_kernel))
    return tuple(found)


def _by_class(features: Tensor, labels: Tensor, num: int) -> list[Tensor]:
    return [features[labels.to(features.device) == label] for label in range(num)]


def _distances(fake: FeatureSet, real: FeatureSet) -> tuple[float | None, float | None]:
    """FD and KID; None for what there are too few images for, and for what is not finite."""
    fewest, width = min(len(fake), len(real)), real.features.shape[1]
    distance = frechet_distance(fake, real) if fewest > width else math.nan
    kernel = kernel_distance(fake, real).value if fewest >= LEAST else math.nan
    return tuple(value if math.isfinite(value) else None for value in (distance, kernel))
