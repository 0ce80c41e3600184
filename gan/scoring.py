"""Scores images: extracts features, computes the numbers and records what they depend on.

`score` is the one way from images to a `ScoreRecord`. A `Scorer` keeps what a training run needs
for many of them. Nothing here draws from the global random state.
"""

import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.streams import generator
from gan import doubts, fidelity
from gan.extractors import Extractor, Features, Number, Scores, load_extractor, metrics
from gan.feature_cache import cached_features, sha256_of
from gan.keys import Keys
from gan.protocols import Protocol
from gan.records import Floor, Origin, ScoreRecord

Sample = Callable[[int, int], Tensor]  # (num, seed) -> (num, C, H, W) uint8


@dataclass(frozen=True)
class Reference:
    """The real side of every score of one run.

    Args:
        features: Of the `num_real` images that the protocol takes.
        protocol: With every number known, as `Protocol.fitted` returns it.
        floor: What the reference scores against itself, see `floor`.
        origin: Where the images come from.
        doubts: What they make doubtful, see `ScoreRecord`.
    """

    features: Features
    protocol: Protocol
    floor: Floor
    origin: Origin
    doubts: tuple[str, ...]


def subset(images: Tensor, num: int, *key: int | str) -> Tensor:
    """Return `num` of the images at random, a pure function of `key`; all, if there are no more.

    At random, because files come sorted by class.
    """
    if num == len(images):
        return images
    return images[torch.randperm(len(images), generator=generator("cpu", *key))[:num]]


def num_available(images: Tensor | Sample) -> int | None:
    """Return how many images there are; None for a generator, which has no end."""
    return len(images) if isinstance(images, Tensor) else None


def numbers(fake: Features, real: Features, protocol: Protocol) -> dict[Number, float]:
    """Compute everything that fake features against real ones, and the fakes' logits, give.

    protocol: Its sizes of splits and subsets count, its numbers of images do not.

    Returns:
        NaN for what cannot be computed, and for everything where a fake feature or logit is not
        finite: precision and recall would take such an image for a bad one.
    """
    if fake.num_not_finite:
        return dict.fromkeys(get_args(Number), math.nan)
    return _distances(fake, real, protocol) | _classifier_score(fake, protocol)


def floor(real: Features, protocol: Protocol, scores: Scores) -> Floor:
    """Score real images as if they were generated: about what a perfect generator would get.

    Two disjoint random halves are scored against each other. A Fréchet distance falls with the
    number of images, so this one lies above that of two samples of `num_real`. The classifier score
    is that of the whole reference.
    """
    n = len(real.features) // 2
    order = torch.randperm(len(real.features), generator=generator("cpu", "floor"))
    first, second = _rows(real, order[:n]), _rows(real, order[n : 2 * n])
    size = min(protocol.kid_subset_size, n)
    computed = _distances(first, second, replace(protocol, kid_subset_size=size))
    computed |= _classifier_score(real, protocol)
    doubted = (
        *doubts.of_distance(first, scores, "images of one half"),
        *doubts.of_distance(second, scores, "images of one half"),
        *doubts.of_numbers(computed, scores, len(real.features), protocol.is_splits),
    )
    return Floor(n, size, *_named(computed, scores), tuple(dict.fromkeys(doubted)))


def _rows(features: Features, indices: Tensor) -> Features:
    return features.map(lambda part: part[indices.to(part.device)])


def _distances(fake: Features, real: Features, protocol: Protocol) -> dict[Number, float]:
    fd = fidelity.frechet_distance(fake.features, real.features)
    kid, kid_std = fidelity.kernel_distance(
        fake.features, real.features, protocol.kid_subsets, protocol.kid_subset_size
    )
    precision, recall = fidelity.precision_recall(
        fake.features, real.features, protocol.prc_neighborhood
    )
    return {
        "frechet": fd,
        "kernel": kid,
        "kernel_std": kid_std,
        "precision": precision,
        "recall": recall,
    }


def _classifier_score(images: Features, protocol: Protocol) -> dict[Number, float]:
    if images.logits is None:
        return {}
    score, std = fidelity.classifier_score(images.logits, protocol.is_splits)
    return {"classifier": score, "classifier_std": std}


def _named(
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
    real: Tensor | Sample,
    protocol: Protocol,
    extractor: Extractor,
    *,
    origin: Origin,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> Reference:
    """Extract the features of the real side, or read them from the cache, and score its floor.

    Args:
        real: (N, C, H, W) uint8 images, or a generator to stand in for them, drawn with `seed`.
        origin: Where they come from; a missing `sha256` is filled in, as is a generator's seed.
        cache_dir: See `cached_features`.

    Raises:
        InputError: Fewer images than the protocol needs, a cache folder that is not writable, or
            weights that make features of the images that are not finite.
    """
    protocol = protocol.fitted(num_available(real))
    if isinstance(real, Tensor):
        sha256 = sha256_of(real)
        # The same subset for every seed and run, so that all are held against one reference.
        images = subset(real, protocol.num_real, "reference", sha256)
        origin = replace(origin, sha256=origin.sha256 or sha256)
        features = cached_features(images, extractor, cache_dir)
    else:
        images = real(protocol.num_real, seed)
        origin = replace(origin, seed=seed, sha256=origin.sha256 or sha256_of(images))
        features = extractor(images)
    if num := features.num_not_finite:
        raise InputError(
            f"extractor {extractor.spec.name}: its features of {num} of {len(images)} real images "
            f"are not finite; expected other weights (these have SHA-256 "
            f"{extractor.weights_sha256})"
        )
    return Reference(
        features,
        protocol,
        floor(features, protocol, extractor.scores),
        origin,
        doubts.of_images(images, features, extractor.scores, "real images"),
    )


def score(
    fake: Tensor | Sample,
    reference: Reference,
    extractor: Extractor,
    *,
    seed: int,
    origin: Origin,
) -> ScoreRecord:
    """Score generated images against `reference`.

    Args:
        fake: A generator's `sample(num, seed)` or (N, C, H, W) uint8 images, of which a random
            subset drawn with `seed` is taken.
        origin: Where they come from; a missing `sha256` becomes that of the images scored.

    Raises:
        InputError: There are fewer images than the protocol needs.
    """
    protocol = reference.protocol
    if isinstance(fake, Tensor):
        protocol.fitted(protocol.num_real, len(fake))
        images = subset(fake, protocol.num_fake, seed, "fakes")
    else:
        images = fake(protocol.num_fake, seed)
    features = extractor(images)
    computed = numbers(features, reference.features, protocol)
    scores, spreads = _named(computed, extractor.scores)
    return ScoreRecord(
        protocol=asdict(protocol),
        extractor=extractor.facts,
        metrics=metrics(extractor.scores),
        distance=extractor.scores["frechet"].name,
        scores=scores,
        spreads=spreads,
        doubts=(
            *doubts.of_images(images, features, extractor.scores, "fake images"),
            *reference.doubts,
            *doubts.of_numbers(computed, extractor.scores, len(images), protocol.is_splits),
        ),
        floor=reference.floor,
        num_fake=protocol.num_fake,
        num_real=protocol.num_real,
        fake=replace(origin, sha256=origin.sha256 or sha256_of(images)),
        real=reference.origin,
        seed=seed,
        versions={
            "torch": torch.__version__,
            "torch_fidelity": fidelity.VERSION,
            "python": platform.python_version(),
        },
    )


class Scorer:
    """Scores a run's generator, as often as wanted, against the data that it is trained on.

    It is built before training starts, so that whatever is missing is found then.
    """

    def __init__(
        self,
        protocol: Protocol,
        data_config: DataConfig,
        device: torch.device | str,
        *,
        keys: Keys,
        weights: Path | None = None,
        allow_unverified: bool = False,
        cache_dir: Path | None = None,
    ) -> None:
        """Load the extractor and the reference.

        Args:
            protocol: Its images have the size of the data's, whatever it says.
            keys: What errors call the settings.
            weights, allow_unverified: See `load_extractor`.
            cache_dir: See `reference_of`.

        Raises:
            InputError: No weights, no data or too few images.
        """
        protocol = protocol.changed(image_size=data_config.image_size)
        loaded = load_images(data_config, protocol.split)
        images = loaded.images
        # First: the weights may be a long download.
        protocol = protocol.fitted(len(images), keys=keys)
        self.extractor = load_extractor(
            protocol.extractor,
            device,
            weights=weights,
            allow_unverified=allow_unverified,
            keys=keys,
        )
        self.reference = reference_of(
            images,
            protocol,
            self.extractor,
            origin=Origin(data_config.name, protocol.split, found=loaded.found),
            cache_dir=cache_dir,
        )

    def __call__(
        self, sample: Sample, seed: int, *, step: int | None = None, ema: bool | None = None
    ) -> ScoreRecord:
        """Score `sample(num, seed)`, a generator after `step` updates, averaged if `ema`."""
        origin = Origin("training", step=step, ema=ema)
        return score(sample, self.reference, self.extractor, seed=seed, origin=origin)
