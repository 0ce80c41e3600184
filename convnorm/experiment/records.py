"""The records that runs, benchmarks and reports hand to each other."""

from dataclasses import dataclass
from typing import Any, Literal

When = Literal["final", "selected"]


@dataclass(frozen=True)
class Measure:
    """A number that runs are compared by; `percent`: a share in [0, 1], shown in percent."""

    better: Literal["lower", "higher"]
    percent: bool = False


@dataclass(frozen=True)
class Cost:
    """What a run took.

    network: the one with the normalizer. parameters: how many it has. macs: multiply-adds of its
        forward pass, an image of the run's batch. seconds: of training, without scores and
        pictures. peak_memory: bytes, of the GPU's memory or, on a CPU, of the process; None where
        it was not recorded.
    """

    network: str
    parameters: int
    macs: int
    steps: int
    seconds: float
    peak_memory: int | None


@dataclass(frozen=True)
class ExtractorFacts:
    """The network whose features were compared.

    weights_sha256: of the file of its weights. verified: whether that file holds the weights that
        the extractor's name stands for.
    """

    name: str
    weights_sha256: str
    verified: bool


@dataclass(frozen=True)
class Origin:
    """Where images that are scored come from.

    source: a path, the name of a data set, or `training`. split: of a data set; None for images
        that have none. step, ema: of a generator, the updates it has had and whether its weights
        are averaged; None where they are not known. seed: of the images that a generator drew to
        stand in for real ones. resized_from: their height in pixels before they were resized to
        that of the other side. sha256: of the generator's checkpoint or, without one, of the
        images; None before they are scored.
    """

    source: str
    split: str | None = None
    step: int | None = None
    ema: bool | None = None
    seed: int | None = None
    resized_from: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Floor:
    """What real images score against real ones: about what a perfect generator would get.

    num_images: in each of the two halves that are compared. kid_subset_size: images in a subset.
    scores, spreads: as in ScoreRecord.
    """

    num_images: int
    kid_subset_size: int
    scores: dict[str, float]
    spreads: dict[str, float]


@dataclass(frozen=True)
class ScoreRecord:
    """What generated images score against real ones, and everything that the numbers depend on.

    protocol: the fields of a `gan.protocols.Protocol`, JSON-able, with every number known.
    metrics: score -> how its values compare, so that a reader needs no table of names.
    distance: which of the scores is the Fréchet distance.
    scores: score -> value.
    spreads: name -> standard deviation over the subsets or splits of one sample; it says nothing
        about another seed.
    seed: of the draw of the generated images.
    versions: package -> version.
    selection: what the same generator scores under the protocol by which a step is selected.
    """

    protocol: dict[str, Any]
    extractor: ExtractorFacts
    metrics: dict[str, Measure]
    distance: str
    scores: dict[str, float]
    spreads: dict[str, float]
    floor: Floor
    num_fake: int
    num_real: int
    fake: Origin
    real: Origin
    seed: int
    versions: dict[str, str]
    selection: "ScoreRecord | None" = None
