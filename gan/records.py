"""The record of a score: what generated images score against real ones, and under which conditions.

`convnorm.experiment.codec` writes and reads it; metrics.jsonl holds one a line.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from convnorm.experiment.codec import from_json
from convnorm.experiment.data.pixels import Size
from convnorm.experiment.records import Metric
from gan.distances import Extrapolation


@dataclass(frozen=True)
class ExtractorFacts:
    """The network whose features were compared.

    weights_sha256: of the file of its weights; of a network of timm, of its tensors, whatever file
        they came from. verified: whether these are the weights that the extractor's name stands
        for; false where nobody publishes their hash. details: of a network of timm, all that its
        features depend on beside them; empty for the others, whose name says it.
    """

    name: str
    weights_sha256: str
    verified: bool
    details: dict[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where images that are scored come from.

    source: a path, the name of a data set, or `training`. kind: statistics are the mean and
        covariance of real features, from a file. split: of a data set; None for images that have
        none. step, ema: of a generator, the updates it has had and whether its weights are
        averaged; None where they are not known. seed: of the images that a generator drew to stand
        in for real ones. resized_from: their size in pixels before they were resized to that of
        the other side. sha256: of the generator's checkpoint or, without one, of the images; None
        before they are scored; of statistics, of both in float64. extractor: of statistics, whether
        their file records which network made them, or only who gave it claims so.
    """

    source: str
    split: str | None = None
    step: int | None = None
    ema: bool | None = None
    seed: int | None = None
    resized_from: Size | None = None
    resized_by: str | None = None
    sha256: str | None = None
    found: str | None = None
    kind: Literal["images", "statistics"] = "images"
    extractor: Literal["recorded", "claimed"] | None = None


@dataclass(frozen=True)
class Floor:
    """What real images score against real ones: about what a perfect generator would get.

    num_images: in each of the two halves that are compared. scores, spreads, doubts: as in
        ScoreRecord.
    """

    num_images: int
    scores: dict[str, float | None]
    spreads: dict[str, float | None]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class ClassScore:
    """What the images that a generator was asked for as a class score against its real ones.

    distance, kernel: FD and KID, by the extractor of the record. floor, floor_kernel: of two halves
        of the real images. None where there are too few images, see `gan.class_scores`.
    """

    name: str
    num_fake: int
    num_real: int
    distance: float | None
    floor: float | None
    kernel: float | None
    floor_kernel: float | None


@dataclass(frozen=True)
class ScoreRecord:
    """What generated images score against real ones, and everything that the numbers depend on.

    protocol: the fields of a `gan.protocols.Protocol`, JSON-able, with every number known.
    metrics: score -> how its values compare, so that a reader needs no table of names.
    headline: which of the scores is the first to look at, and the one that a step is selected by.
    scores: score -> value; None where it is not a finite number.
    spreads: name -> how far a score of other images of the same generator would be: the standard
        error of KID, the standard deviation of IS over its splits. It says nothing about another
        training. None where there are too few images to have one.
    expected: score -> what equal distributions have, where that is known from the numbers of images
        alone.
    extrapolation: the Fréchet distance at infinitely many images; None where it was not asked for.
    doubts: sentences, each a reason not to take the scores at face value, see `gan.doubts`.
    floor: None where the real side is statistics. num_real: None where these do not say of how many
        images they are.
    seed: of the draw of the generated images.
    versions: package -> version.
    classes: of a conditional generator, the scores of each class by itself, in their order; none
        where the real images have no such classes.
    selection: what the same generator scores under the protocol by which a step is selected.
    """

    FORMAT: ClassVar = "convnorm-suite/score/4"

    protocol: dict[str, Any]
    extractor: ExtractorFacts
    metrics: dict[str, Metric]
    headline: str
    scores: dict[str, float | None]
    spreads: dict[str, float | None]
    doubts: tuple[str, ...]
    floor: Floor | None
    num_fake: int
    num_real: int | None
    fake: Origin
    real: Origin
    seed: int
    versions: dict[str, str]
    expected: dict[str, float]
    extrapolation: Extrapolation | None = None
    selection: "ScoreRecord | None" = None
    classes: tuple[ClassScore, ...] = ()

    @property
    def ranked(self) -> float | None:
        """The value of the headline."""
        return self.scores[self.headline]

    @property
    def floor_values(self) -> dict[str, float | None]:
        """What real images have of each score and spread; None where there is no such number."""
        if self.floor is None:
            return dict.fromkeys(self.scores | self.spreads)
        return self.floor.scores | self.floor.spreads

    @property
    def floor_title(self) -> str:
        """What the floor is of."""
        if self.floor is None:
            return "floor (none without real images)"
        return f"floor (two halves of {self.floor.num_images})"

    @property
    def all_doubts(self) -> tuple[str, ...]:
        """Its own, and those about the floor and the score to select by, which say so."""
        floor = () if self.floor is None else self.floor.doubts
        selection = () if self.selection is None else self.selection.doubts
        return (
            *self.doubts,
            *(f"floor: {doubt}" for doubt in floor),
            *(f"selection: {doubt}" for doubt in selection),
        )


def record_in(line: dict[str, Any], file: Path) -> ScoreRecord:
    """Return the record in a line of metrics.jsonl, `file`, which has its step as well."""
    return from_json(ScoreRecord, {k: v for k, v in line.items() if k != "step"}, file)
