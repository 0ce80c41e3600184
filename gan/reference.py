"""The real side of scores, and the numbers that features have against it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from convnorm.experiment.data import Pixels, taken
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import ALONE, Process
from convnorm.experiment.streams import generator
from gan import doubts, fidelity
from gan.class_scores import ClassReference, class_reference
from gan.distances import (
    FULL,
    FeatureSet,
    corrected,
    frechet,
    frechet_bias,
    frechet_distance,
    kernel_distance,
    neighborhoods,
)
from gan.extraction import Extracted, Sample, extract
from gan.extractor import Extractor, Features
from gan.feature_cache import cached_features, sha256_of
from gan.protocols import Protocol
from gan.records import Floor, Origin
from gan.score_names import Number, Scores
from gan.statistics_files import Statistics


@dataclass(frozen=True)
class Reference:
    """The real side of every score of one run.

    Args:
        features: Of the `num_real` images that the protocol takes, or what a file says of them.
        protocol: With every number known, as `Protocol.fitted` returns it.
        floor, bias: What the reference scores against itself, see `floor`; None and NaN where there
            are no features.
        origin: Where the images come from.
        doubts: What they make doubtful, see `ScoreRecord`.
        classes: The same images by their class; None where no classes are asked for.
        digests: Of the images, see `doubts.digests_of`; none of statistics.
    """

    features: FeatureSet | Statistics
    protocol: Protocol
    floor: Floor | None
    bias: float
    origin: Origin
    doubts: tuple[str, ...]
    classes: ClassReference | None = None
    digests: frozenset[bytes] = frozenset()


def subset(images: Pixels, num: int, *key: int | str) -> Pixels:
    """Return `num` of the images at random, a pure function of `key`; all, if there are no more.

    At random, because files come sorted by class.
    """
    if num == len(images):
        return images
    return taken(images, torch.randperm(len(images), generator=generator("cpu", *key))[:num])


def num_available(images: Pixels | Sample | Statistics) -> int | None:
    """Return how many images there are; None for a generator, which has no end, and for statistics
    that do not say.
    """
    if isinstance(images, Statistics):
        return images.num_images
    return len(images) if isinstance(images, Pixels) else None


def numbers(fake: FeatureSet, logits: Tensor | None, reference: Reference) -> dict[Number, float]:
    """Compute everything that generated images give against the reference.

    fake, logits: Their features and class logits, finite.

    Returns:
        NaN for what cannot be computed; against statistics, those of `score_names.of_statistics`.
    """
    real, protocol = reference.features, reference.protocol
    if isinstance(real, Statistics):
        distances = {"frechet": frechet(fake.gaussian, real.gaussian, real.root)}
    else:
        distances = _distances(fake, real, protocol, reference.bias)
    return distances | _classifier_score(logits, protocol)


def floor(real: Features, protocol: Protocol, scores: Scores) -> tuple[Floor, float]:
    """Score real images as if they were generated: about what a perfect generator would get.

    Two disjoint random halves are scored against each other. A Fréchet distance falls with the
    number of images, so this one lies above that of two samples of `num_real`. The classifier score
    is that of the whole reference.

    Returns:
        The floor, and the bias of Fréchet distances, see `distances.frechet_bias`; NaN where there
        are too few images on either side.
    """
    n = len(real.features) // 2
    order = torch.randperm(len(real.features), generator=generator("cpu", "floor"))
    order = order.to(real.features.device)
    first, second = (FeatureSet(real.features[half]) for half in (order[:n], order[n : 2 * n]))
    enough = protocol.num_fake is None or protocol.num_fake >= FULL * first.features.shape[1]
    bias = frechet_bias(first, second) if enough else math.nan
    computed = _distances(first, second, protocol, bias)
    computed |= _classifier_score(real.logits, protocol)
    # Where the corrected distance is missing, every score says so.
    own = {number: score for number, score in scores.items() if number != "frechet_corrected"}
    doubted = (
        *doubts.of_distance(first, scores, "images of one half"),
        *doubts.of_distance(second, scores, "images of one half"),
        *doubts.of_numbers(computed, own, len(real.features), protocol.is_splits),
    )
    return Floor(n, *named(computed, scores), tuple(dict.fromkeys(doubted))), bias


def _distances(
    fake: FeatureSet, real: FeatureSet, protocol: Protocol, bias: float
) -> dict[Number, float]:
    distance = frechet_distance(fake, real)
    kernel = kernel_distance(fake, real)
    near = neighborhoods(fake, real, protocol.prc_neighborhood, protocol.coverage_neighborhood)
    return {
        "frechet": distance,
        "frechet_corrected": corrected(distance, fake, real, bias),
        "kernel": kernel.value,
        "kernel_error": kernel.error,
        **near._asdict(),
    }


def _classifier_score(logits: Tensor | None, protocol: Protocol) -> dict[Number, float]:
    if logits is None:
        return {}
    score, std = fidelity.classifier_score(logits, protocol.is_splits)
    return {"classifier": score, "classifier_std": std}


def named(
    computed: dict[Number, float], scores: Scores
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return the scores and the spreads, under the names that the extractor gives them.

    What is not finite, as many a score of equal images is, becomes None.
    """
    found: tuple[dict, dict] = {}, {}
    for number, score in scores.items():
        value = computed[number]
        found[score.metric is None][score.name] = value if math.isfinite(value) else None
    return found


def reference_of(
    real: Pixels | Sample | Statistics,
    protocol: Protocol,
    extractor: Extractor,
    *,
    origin: Origin,
    seed: int = 0,
    cache_dir: Path | None = None,
    process: Process = ALONE,
    labels: Tensor | None = None,
    classes: tuple[str, ...] = (),
) -> Reference | None:
    """Extract the features of the real side, or read them from the cache, and score its floor.

    Several processes that call it share the extraction; the others than the main one get None.

    Args:
        real: (N, C, H, W) uint8 images; or a generator to stand in for them, drawn with `seed`; or
            statistics of their features.
        origin: Where they come from; a missing `sha256` is filled in, as is a generator's seed.
        cache_dir: See `cached_features`.
        labels, classes: Of images, each one's class (N,) and the names of the classes, where
            classes are to be scored by themselves.

    Raises:
        InputError: Fewer images than the protocol needs, a cache folder that is not writable,
            weights that make features of the images that are not finite, or statistics that cannot
            be of the extractor's features.
    """
    if isinstance(real, Statistics):
        return _reference_of_statistics(real, protocol, extractor, origin)
    protocol = protocol.fitted(num_available(real))
    if isinstance(real, Pixels):
        sha256 = sha256_of(real)
        # The same subset for every seed and run, so that all are held against one reference.
        images = subset(real, protocol.num_real, "reference", sha256)
        origin = replace(origin, sha256=origin.sha256 or sha256)
        features = cached_features(images, extractor, cache_dir, process)
        extracted = None if features is None else Extracted(images, features)
    else:
        parts = real(protocol.num_real, seed, process.turns)
        extracted = extract(parts, protocol.num_real, extractor, process)
        origin = replace(origin, seed=seed)
    if extracted is None:
        return None
    images, features = extracted
    if num := features.num_not_finite:
        raise InputError(
            f"extractor {extractor.spec.name}: its features of {num} of {len(images)} real images "
            f"are not finite; expected other weights (these have SHA-256 "
            f"{extractor.weights_sha256})"
        )
    points, by_class = FeatureSet(features.features), None
    if labels is not None:
        chosen = subset(labels, protocol.num_real, "reference", sha256)
        by_class = class_reference(points.features, chosen, classes)
    digests = doubts.digests_of(images)
    return Reference(
        points,
        protocol,
        *floor(features, protocol, extractor.scores),
        replace(origin, sha256=origin.sha256 or sha256_of(images)),
        doubts.of_images(digests, points, extractor.scores, "real images"),
        by_class,
        frozenset(digests),
    )


def _reference_of_statistics(
    real: Statistics, protocol: Protocol, extractor: Extractor, origin: Origin
) -> Reference:
    real.require_extractor(extractor, protocol.image_size)
    return Reference(
        real.to(extractor.device),
        protocol.changed(reference="statistics").fitted(real.num_images, protocol.num_fake),
        None,
        math.nan,
        replace(
            origin,
            kind="statistics",
            sha256=real.sha256(),
            extractor="claimed" if real.made_by is None else "recorded",
        ),
        doubts.of_statistics_file(real, extractor.scores),
    )
