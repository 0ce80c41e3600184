"""The record of a score: what generated images score against real ones, and under which conditions.

`convnorm.experiment.codec` writes and reads it; metrics.jsonl holds one a line.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from convnorm.experiment.records import Metric


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
    resized_by: str | None = None
    sha256: str | None = None
    found: str | None = None


@dataclass(frozen=True)
class Floor:
    """What real images score against real ones: about what a perfect generator would get.

    num_images: in each of the two halves that are compared. kid_subset_size: images in a subset.
    scores, spreads, doubts: as in ScoreRecord.
    """

    num_images: int
    kid_subset_size: int
    scores: dict[str, float | None]
    spreads: dict[str, float | None]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRecord:
    """What generated images score against real ones, and everything that the numbers depend on.

    protocol: the fields of a `gan.protocols.Protocol`, JSON-able, with every number known.
    metrics: score -> how its values compare, so that a reader needs no table of names.
    distance: which of the scores is the Fréchet distance.
    scores: score -> value; None where it is not a finite number.
    spreads: name -> standard deviation over the subsets or splits of one sample, which says nothing
        about another seed; None where these are too few or have too much in common to have one.
    doubts: sentences, each a reason not to take the scores at face value, see `gan.doubts`.
    seed: of the draw of the generated images.
    versions: package -> version.
    selection: what the same generator scores under the protocol by which a step is selected.
    """

    FORMAT: ClassVar = "convnorm-suite/score/2"

    protocol: dict[str, Any]
    extractor: ExtractorFacts
    metrics: dict[str, Metric]
    distance: str
    scores: dict[str, float | None]
    spreads: dict[str, float | None]
    doubts: tuple[str, ...]
    floor: Floor
    num_fake: int
    num_real: int
    fake: Origin
    real: Origin
    seed: int
    versions: dict[str, str]
    selection: "ScoreRecord | None" = None

    @property
    def all_doubts(self) -> tuple[str, ...]:
        """Its own, and those about the floor and the score to select by, which say so."""
        selection = () if self.selection is None else self.selection.doubts
        return (
            *self.doubts,
            *(f"floor: {doubt}" for doubt in self.floor.doubts),
            *(f"selection: {doubt}" for doubt in selection),
        )
