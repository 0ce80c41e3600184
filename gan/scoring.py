"""Scores images: extracts features, computes the numbers and records what they depend on.

`score` is the one way from images to a `ScoreRecord`. A `Scorer` keeps what a training run needs
for many of them. Nothing here draws from the global random state.
"""

import math
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from convnorm.experiment.data import DataConfig, Pixels, load_images, parts_of
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import ALONE, Process
from convnorm.experiment.run.loop import load_on_all
from gan import doubts, fidelity
from gan.class_scores import class_scores
from gan.distances import (
    FULL,
    Extrapolation,
    FeatureSet,
    expected_coverage,
    extrapolated,
)
from gan.extraction import Extracted, Labels, Sample, extract
from gan.extractor import Extractor, Features
from gan.extractors import load_extractor
from gan.feature_cache import sha256_of
from gan.keys import Keys
from gan.models import PART
from gan.protocols import Protocol
from gan.records import ClassScore, Origin, ScoreRecord
from gan.reference import Reference, named, numbers, reference_of, subset
from gan.score_names import Number, Scores, metrics, of_statistics


def score(
    fake: Pixels | Sample,
    reference: Reference,
    extractor: Extractor,
    *,
    seed: int,
    origin: Origin,
    extrapolate: bool = False,
    labels: Labels | None = None,
) -> ScoreRecord:
    """Score generated images against `reference`.

    Args:
        fake: A generator's `Sample` or (N, C, H, W) uint8 images, of which a random subset drawn
            with `seed` is taken.
        origin: Where they come from; a missing `sha256` becomes that of the images scored.
        extrapolate: Also compute the Fréchet distance at infinitely many images.
        labels: Of a conditional generator, what it is asked for in a `Sample`; each class is then
            scored by itself too, where the reference has them.

    Raises:
        InputError: There are fewer images than the protocol needs, or than can be extrapolated.
    """
    protocol = reference.protocol
    if extrapolate and not isinstance(reference.features, FeatureSet):
        raise InputError("FD cannot be extrapolated against statistics; expected real images")
    if isinstance(fake, Pixels):
        protocol.fitted(protocol.num_real, len(fake))
        parts = parts_of(subset(fake, protocol.num_fake, seed, "fakes"), PART)
    else:
        parts = fake(protocol.num_fake, seed, ALONE.turns)
    extracted = extract(parts, protocol.num_fake, extractor, ALONE)
    asked = None if labels is None else labels(protocol.num_fake, seed)
    return _record(
        extracted, reference, extractor, seed, origin, extrapolate=extrapolate, labels=asked
    )


def _record(
    fake: Extracted,
    reference: Reference,
    extractor: Extractor,
    seed: int,
    origin: Origin,
    *,
    extrapolate: bool = False,
    labels: Tensor | None = None,
) -> ScoreRecord:
    """Score generated images that have their features; see `score`. labels: (num_fake,)."""
    protocol, names, headline = reference.protocol, extractor.scores, extractor.headline
    knows_features = isinstance(reference.features, FeatureSet)
    if not knows_features:
        names = of_statistics(names)
        headline = names["frechet"].name
    images, features = fake
    points = FeatureSet(features.features)
    computed, doubted = _measured(images, points, features, reference, names)
    scores, spreads = named(computed, names)
    return ScoreRecord(
        protocol=protocol.facts,
        extractor=extractor.facts,
        metrics=metrics(names),
        headline=headline,
        scores=scores,
        spreads=spreads,
        doubts=(
            *doubts.of_weights(extractor.facts, extractor.spec.has_known_weights),
            *doubted,
            *reference.doubts,
            *doubts.of_numbers(computed, names, len(images), protocol.is_splits),
        ),
        floor=reference.floor,
        num_fake=protocol.num_fake,
        num_real=protocol.num_real,
        fake=replace(origin, sha256=origin.sha256 or sha256_of(images)),
        real=reference.origin,
        seed=seed,
        versions=versions(),
        expected=expected_scores(names, protocol) if knows_features else {},
        extrapolation=_extrapolated(points, reference, seed) if extrapolate else None,
        classes=_by_class(features, labels, reference),
    )


def _by_class(
    features: Features, labels: Tensor | None, reference: Reference
) -> tuple[ClassScore, ...]:
    """Score each class by itself, where both sides have classes and all features are finite."""
    if labels is None or reference.classes is None or features.num_not_finite:
        return ()
    return class_scores(features.features, labels, reference.classes)


def versions() -> dict[str, str]:
    """Return package -> version of what numbers depend on."""
    return {
        "torch": str(torch.__version__),
        "torch_fidelity": fidelity.VERSION,
        "python": platform.python_version(),
    }


def _measured(
    images: Tensor, points: FeatureSet, features: Features, reference: Reference, names: Scores
) -> tuple[dict[Number, float], tuple[str, ...]]:
    """Return the numbers of generated images, and what makes these images doubtful."""
    if num := features.num_not_finite:
        # Not even precision: such an image would be taken for a bad one.
        doubt = f"{num} of {len(images)} fake images have features that are not finite"
        return dict.fromkeys(get_args(Number), math.nan), (doubt,)
    computed = numbers(points, features.logits, reference)
    digests = doubts.digests_of(images)
    return computed, (
        *doubts.of_images(digests, points, names, "fake images"),
        *doubts.of_both_sides(digests, reference.digests),
    )


def expected_scores(names: Scores, protocol: Protocol) -> dict[str, float]:
    """Return score -> what equal distributions have, as far as numbers of images tell it."""
    k = protocol.coverage_neighborhood
    return {names["coverage"].name: expected_coverage(protocol.num_fake, protocol.num_real, k)}


def _extrapolated(fake: FeatureSet, reference: Reference, seed: int) -> Extrapolation:
    found = extrapolated(fake, reference.features, seed)
    if found is None:
        least = math.ceil(4 * FULL * fake.features.shape[1])
        raise InputError(
            f"FD cannot be extrapolated from {len(fake)} fake and {len(reference.features)} real "
            f"images; expected at least {least} of each"
        )
    return found


class Scorer:
    """Scores a run's generator, as often as wanted, against the data that it is trained on.

    It is built before training starts, so that whatever is missing is found then. All processes of
    the run build one and call it at the same steps: each makes its share of the images and of their
    features, and the main one computes the scores.
    """

    def __init__(
        self,
        protocol: Protocol,
        data_config: DataConfig,
        process: Process,
        *,
        keys: Keys,
        weights: Path | None = None,
        allow_unverified: bool = False,
        cache_dir: Path | None = None,
        by_class: bool = False,
    ) -> None:
        """Load the extractor and the reference.

        Args:
            protocol: Its images have the size of the data's, whatever it says.
            keys: What errors call the settings.
            weights, allow_unverified: See `load_extractor`.
            cache_dir: See `reference_of`.
            by_class: Whether each class is scored by itself too, as of a conditional generator.

        Raises:
            InputError: No weights, no data or too few images.
        """
        protocol = protocol.changed(image_size=data_config.image_size)
        loaded = load_on_all(partial(load_images, data_config, protocol.split), process)
        # First: the weights may be a long download.
        self.protocol = protocol.fitted(len(loaded.images), keys=keys)
        load = partial(
            load_extractor,
            self.protocol.extractor,
            process.device,
            weights=weights,
            allow_unverified=allow_unverified,
            keys=keys,
        )
        self.process, self.extractor = process, load_on_all(load, process)
        self.reference = reference_of(
            loaded.images,
            self.protocol,
            self.extractor,
            origin=Origin(data_config.name, protocol.split, found=loaded.found),
            cache_dir=cache_dir,
            process=process,
            labels=loaded.labels if by_class else None,
            classes=loaded.classes if by_class else (),
        )

    def __call__(
        self,
        sample: Sample,
        seed: int,
        *,
        step: int | None = None,
        ema: bool | None = None,
        labels: Labels | None = None,
    ) -> ScoreRecord | None:
        """Score `sample`, a generator after `step` updates, averaged if `ema`; labels: see `score`.

        Returns None in all processes but the main one.
        """
        num = self.protocol.num_fake
        parts = sample(num, seed, self.process.turns)
        extracted = extract(parts, num, self.extractor, self.process)
        if extracted is None:
            return None
        origin = Origin("training", step=step, ema=ema)
        asked = None if labels is None else labels(num, seed)
        return _record(extracted, self.reference, self.extractor, seed, origin, labels=asked)
