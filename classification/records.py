"""What an evaluation of a classifier hands on; `convnorm.experiment.codec` writes and reads it."""

from dataclasses import dataclass
from typing import ClassVar

from classification.attacks import Norm
from convnorm.experiment.records import Interval, Summary


@dataclass(frozen=True)
class Accuracy:
    """The fraction of `n` images that a network is right about, with its 95 % interval.

    correct: how many; None where `value` is a mean over several looks at each image.
    """

    value: float
    interval: Interval
    correct: int | None
    n: int


@dataclass(frozen=True)
class Clean:
    """The images as they are.

    top5: None where a network has no more than 5 classes.
    ece: expected calibration error, in [0, 1]. nll: negative log-likelihood, in nats. See
        `calibration`; both are None in records from before they were measured.
    """

    top1: Accuracy
    top5: Accuracy | None
    ece: float | None = None
    nll: Summary | None = None


@dataclass(frozen=True)
class AttackSettings:
    """All that decides the result of an attack beside the network and the images.

    eps: the norm of the change; a sweep has several. What an attack does not have is None.
    """

    norm: Norm
    eps: float | tuple[float, ...]
    seed: int | None = None
    step_size: float | None = None
    steps: int | None = None
    step_size_of_eps: float | None = None
    restarts: int | None = None
    basis: str | None = None
    max_queries: int | None = None
    version: str | None = None
    pyautoattack: str | None = None


@dataclass(frozen=True)
class SweepPoint:
    """The accuracy at one eps of a sweep."""

    eps: float
    accuracy: Accuracy


@dataclass(frozen=True)
class Queries:
    """How often SimBA asked the network about each of the `n` images that it fooled."""

    n: int
    mean: float | None
    median: float | None


@dataclass(frozen=True)
class AttackRecord:
    """One attack on all images.

    num_attacked: how many images were right before; the others count as wrong.
    accuracy: None for a sweep, which has `points` instead.
    stages: of AutoAttack and of its first stages, name -> the accuracy after the stage.
    queries: of SimBA.
    """

    name: str
    settings: AttackSettings
    num_attacked: int
    accuracy: Accuracy | None
    points: tuple[SweepPoint, ...]
    stages: dict[str, Accuracy]
    queries: Queries | None


@dataclass(frozen=True)
class WorstCase:
    """The accuracy under all attacks within a budget: an image counts if it withstands each."""

    norm: Norm
    eps: float
    attacks: tuple[str, ...]
    accuracy: Accuracy


@dataclass(frozen=True)
class WorstOfBoth:
    """The same over both norms: an image counts if it withstands every attack under each.

    eps: norm -> of its attacks.
    """

    eps: dict[Norm, float]
    attacks: tuple[str, ...]
    accuracy: Accuracy


@dataclass(frozen=True)
class CertifiedPoint:
    """The share of images that are right whatever changes them within an l2 radius."""

    radius: float
    accuracy: Accuracy


@dataclass(frozen=True)
class Certified:
    """What is proven of a network, see `certificate`.

    lipschitz: bound of the logits from the pixels in [0, 1], under l2; None where none is known,
        so that no image is certified. proof: how it is proven, or why there is none.
    """

    lipschitz: float | None
    proof: str
    points: tuple[CertifiedPoint, ...]


@dataclass(frozen=True)
class CorruptionSource:
    """Where the images of a corruption come from: made here, or a file with this SHA-256.

    note: in which way those made here are not the original's, even with its constants.
    """

    name: str
    source: str
    seed: int | None = None
    pillow: str | None = None
    sha256: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Corruptions:
    """Accuracies on corrupted images.

    accuracies: corruption -> one for each of `severities`. mean_by_severity, mean: over the
        corruptions `mean_over`. mean_extra: over the others, None where there are none.
    """

    severities: tuple[int, ...]
    accuracies: dict[str, tuple[Accuracy, ...]]
    mean_by_corruption: dict[str, Accuracy]
    mean_over: tuple[str, ...]
    mean_by_severity: tuple[Accuracy, ...]
    mean: Accuracy
    sources: tuple[CorruptionSource, ...]
    mean_extra: Accuracy | None = None


@dataclass(frozen=True)
class Check:
    """Something that robustness which is real would pass, and whether it was passed."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Checkpoint:
    """The weights that were evaluated, and how they were trained."""

    file: str
    sha256: str
    step: int
    epoch: int
    arch: str
    normalizer: str
    adversary: str
    seed: int


@dataclass(frozen=True)
class EvaluatedData:
    """The images: `n` of a split."""

    name: str
    split: str
    n: int
    images_sha256: str
    positions_sha256: str


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of a classifier on the same images with the same settings.

    chance: the share of the largest class among the images, the accuracy of the best blind guess.
    seed: of the random numbers of the evaluation.
    worst_of_both: None unless there are attacks under both norms.
    right_sha256: of the .npz file beside the record that says which images the network is right
        about; None before the evaluation is saved.
    """

    FORMAT: ClassVar = "convnorm-suite/evaluation/2"

    checkpoint: Checkpoint
    data: EvaluatedData
    chance: float
    batch_size: int
    seed: int
    torch: str
    hardware: tuple[str, ...]
    clean: Clean
    attacks: tuple[AttackRecord, ...]
    worst_cases: tuple[WorstCase, ...]
    corruptions: Corruptions | None
    checks: tuple[Check, ...]
    right_sha256: str | None = None
    worst_of_both: WorstOfBoth | None = None
    certified: Certified | None = None
