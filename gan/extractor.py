"""What an extractor is: a network whose features and class logits are compared."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from convnorm.experiment.exact import full_float32
from gan.keys import Keys
from gan.records import ExtractorFacts
from gan.score_names import FROM_FEATURES, FROM_LOGITS, Number, Scores, renamed
from gan.weight_files import Forward, Loaded

GPU_BATCH = 128  # images that a network sees at a time


class Features(NamedTuple):
    """What scores are computed from: `features` (N, D) and `logits` (N, K) or None, in float32."""

    features: Tensor
    logits: Tensor | None

    @classmethod
    def joined(cls, parts: Iterable[tuple[Tensor, Tensor | None]]) -> "Features":
        """Put together what is known of parts of the images."""
        features, logits = zip(*parts, strict=True)
        return cls(torch.cat(features), None if logits[0] is None else torch.cat(logits))

    @property
    def num_not_finite(self) -> int:
        """How many images have a feature or a logit that is NaN or infinite."""
        finite = [part.isfinite().all(dim=1) for part in self if part is not None]
        return int((~torch.stack(finite).all(dim=0)).sum())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """Return what `change` makes of the features and of the logits, if there are any."""
        return Features(*(None if part is None else change(part) for part in self))


@dataclass(frozen=True)
class ExtractorSpec:
    """What is known of an extractor before its weights are loaded.

    Args:
        name: What protocols and records call it.
        scores: The scores that it has with the weights that its name stands for.
        headline: Which of them is the first to look at, and the one that a step is selected by.
        load: Takes a file of weights (None for its own), a device, whether weights other than
            those that its name stands for are accepted, and what errors call these settings.
            Returns what `Loaded` has.
        is_positive: Whether no feature is ever below 0.
        has_known_weights: Whether there is a hash by which weights can be verified. Where there is
            none, scores have their names with any weights, and a doubt says which these are.
        cpu_batch: How many images a CPU sees at a time.
    """

    name: str
    scores: Scores
    headline: Number
    load: Callable[[Path | None, torch.device, bool, Keys], Loaded]
    is_positive: bool = False
    has_known_weights: bool = True
    cpu_batch: int = GPU_BATCH

    def unverified_scores(self) -> Scores:
        """Return its scores with other weights, under names that say so."""
        plain = FROM_FEATURES | FROM_LOGITS
        return renamed(
            f"{{}} (unverified {self.name})", {number: plain[number] for number in self.scores}
        )


@dataclass(frozen=True)
class Extractor:
    """A network whose weights are loaded.

    Args:
        weights_sha256, verified, details: See `ExtractorFacts`.
        device: Where `forward` expects images and leaves features.
        batch_size: How many images the network sees at a time.
    """

    spec: ExtractorSpec
    weights_sha256: str
    verified: bool
    forward: Forward
    device: torch.device
    batch_size: int = GPU_BATCH
    details: dict[str, str | int | float] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Features:
        """Return the features and logits, on `device`, of (N, C, H, W) uint8 images."""
        with torch.no_grad(), full_float32(self.device):
            batches = images.split(self.batch_size)
            return Features.joined(self.forward(batch.to(self.device)) for batch in batches)

    @property
    def scores(self) -> Scores:
        """The scores that it has, under the names that its weights permit."""
        named = self.verified or not self.spec.has_known_weights
        return self.spec.scores if named else self.spec.unverified_scores()

    @property
    def headline(self) -> str:
        """The name of the score that is the first to look at."""
        return self.scores[self.spec.headline].name

    @property
    def facts(self) -> ExtractorFacts:
        """What a record says of it."""
        return ExtractorFacts(self.spec.name, self.weights_sha256, self.verified, self.details)
