"""From images to a score record: features, numbers, and everything the numbers depend on.

A chain of small steps: an extractor's features -> `scores` and `floor` -> `score`; a `Scorer` keeps
what a training run needs for many records. Nothing here draws from the global random state.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.streams import generator
from gan import fidelity
from gan.extractors import Extractor, Features, cached_features, load_extractor, sha256_of
from gan.protocols import Protocol, protocol_named

Sample = Callable[[int, int], Tensor]  # (num, seed) -> (num, C, H, W) uint8
Record = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """The real side of every score of one run.

    Args:
        features: Of the `num_real` images that the protocol takes.
        protocol: With every number known, as `Protocol.fitted` returns it.
        floor: What the reference scores against itself, see `floor`.
        source: JSON-able facts about the images, among them `source`, `split` and `sha256`.
    """

    features: Features
    protocol: Protocol
    floor: dict[str, float]
    source: Mapping[str, Any]


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


def scores(
    fake: Features, real: Features, protocol: Protocol, label: Callable[[str], str]
) -> dict[str, float]:
    """Score fake features against real ones.

    Args:
        protocol: Its sizes of splits and subsets count, its numbers of images do not.
        label: Turns the plain names FD, KID, KID std, CS, CS std, precision and recall into those
            that the extractor permits. A std is over KID's subsets or IS's splits of one sample:
            it says nothing about another seed.
    """
    return _named(_distances(fake, real, protocol) | _classifier_score(fake, protocol), label)


def floor(real: Features, protocol: Protocol, label: Callable[[str], str]) -> dict[str, float]:
    """Score real images as if they were generated: about what a perfect generator would get.

    Two disjoint random halves are scored against each other. A Fréchet distance falls with the
    number of images, so this one lies above that of two samples of `num_real`. The classifier score
    is that of the whole reference.

    Returns:
        The labels of `scores`, and `n` and `kid_subset_size`: images in a half and a KID subset.
    """
    n = len(real.features) // 2
    order = torch.randperm(len(real.features), generator=generator("cpu", "floor"))
    first, second = (
        Features(real.features[half], real.logits[half])
        for half in (order[:n].to(real.features.device), order[n : 2 * n].to(real.features.device))
    )
    size = min(protocol.kid_subset_size, n)
    distances = _distances(first, second, replace(protocol, kid_subset_size=size))
    named = _named(distances | _classifier_score(real, protocol), label)
    return {"n": n, "kid_subset_size": size, **named}


def _distances(fake: Features, real: Features, protocol: Protocol) -> dict[str, float]:
    fd = fidelity.frechet_distance(fake.features, real.features)
    kid, kid_std = fidelity.kernel_distance(
        fake.features, real.features, protocol.kid_subsets, protocol.kid_subset_size
    )
    precision, recall = fidelity.precision_recall(
        fake.features, real.features, protocol.prc_neighborhood
    )
    return {"FD": fd, "KID": kid, "KID std": kid_std, "precision": precision, "recall": recall}


def _classifier_score(images: Features, protocol: Protocol) -> dict[str, float]:
    score, std = fidelity.classifier_score(images.logits, protocol.is_splits)
    return {"CS": score, "CS std": std}


def _named(plain: dict[str, float], label: Callable[[str], str]) -> dict[str, float]:
    return {label(name): value for name, value in plain.items()}


def reference_of(
    real: Tensor | Sample,
    protocol: Protocol,
    extractor: Extractor,
    *,
    source: Mapping[str, Any],
    seed: int = 0,
    cache_dir: Path | None = None,
) -> Reference:
    """Extract the features of the real side, or read them from the cache, and score its floor.

    Args:
        real: (N, C, H, W) uint8 images, or a generator to stand in for them, drawn with `seed`.
        source: What the record says about them; their `sha256` is added if it is not there.
        cache_dir: See `cached_features`.

    Raises:
        InputError: Fewer images than the protocol needs, or a cache folder that is not writable.
    """
    protocol = protocol.fitted(num_available(real))
    if isinstance(real, Tensor):
        sha256 = sha256_of(real)
        # The same subset for every seed and run, so that all are held against one reference.
        images = subset(real, protocol.num_real, "reference", sha256)
        source = {"sha256": sha256, **source}
        features = cached_features(images, extractor, cache_dir)
    else:
        images = real(protocol.num_real, seed)
        source = {"seed": seed, "sha256": sha256_of(images), **source}
        features = extractor(images)
    return Reference(features, protocol, floor(features, protocol, extractor.label), source)


def score(
    fake: Tensor | Sample,
    reference: Reference,
    extractor: Extractor,
    *,
    seed: int,
    source: Mapping[str, Any],
) -> Record:
    """Score generated images against `reference` and return a JSON-able record.

    Args:
        fake: A generator's `sample(num, seed)` or (N, C, H, W) uint8 images, of which a random
            subset drawn with `seed` is taken.
        source: What the record says about the fakes: source, step, ema, sha256. The hash of the
            images that were scored is added where `sha256` is not given.

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
    return {
        "protocol": asdict(protocol),
        "extractor": {
            "name": extractor.name,
            "weights_sha256": extractor.weights_sha256,
            "verified": extractor.verified,
        },
        "scores": scores(features, reference.features, protocol, extractor.label),
        "floor": reference.floor,
        "num_fake": protocol.num_fake,
        "num_real": protocol.num_real,
        "fake": {"step": None, "ema": None, "sha256": sha256_of(images), **source},
        "real": dict(reference.source),
        "seed": seed,
        "versions": {
            "torch": torch.__version__,
            "torch_fidelity": fidelity.VERSION,
            "python": platform.python_version(),
        },
    }


class Scorer:
    """Scores a run's generator, as often as wanted, against the data that it is trained on.

    Building it is the preflight: whatever could be missing is found before training starts.
    """

    def __init__(
        self,
        protocol_name: str,
        data_config: DataConfig,
        device: torch.device | str,
        *,
        weights: Path | None = None,
        allow_unverified: bool = False,
        cache_dir: Path | None = None,
        num_real: int | None = None,
        num_fake: int | None = None,
    ) -> None:
        """Load the extractor and the reference.

        Args:
            weights, allow_unverified: See `load_extractor`.
            cache_dir: See `reference_of`.
            num_real, num_fake: Other numbers than the protocol's; its name then says so.

        Raises:
            InputError: No such protocol, no weights, no data or too few images.
        """
        sizes = {"num_real": num_real, "num_fake": num_fake}
        wanted = {key: value for key, value in sizes.items() if value is not None}
        wanted["image_size"] = data_config.image_size
        protocol = protocol_named(protocol_name).changed(**wanted)
        images = load_images(data_config, protocol.split).images
        protocol = protocol.fitted(len(images))  # first: the weights may be a long download
        self.extractor = load_extractor(
            protocol.extractor, device, weights=weights, allow_unverified=allow_unverified
        )
        self.reference = reference_of(
            images,
            protocol,
            self.extractor,
            source={"source": data_config.name, "split": protocol.split},
            cache_dir=cache_dir,
        )

    def __call__(
        self, sample: Sample, seed: int, *, step: int | None = None, ema: bool | None = None
    ) -> Record:
        """Score `sample(num, seed)`, a generator after `step` updates, averaged if `ema`."""
        source = {"source": "training", "step": step, "ema": ema}
        return score(sample, self.reference, self.extractor, seed=seed, source=source)
