"""What a ranking is: the scores of images that get worse step by step, and their conditions."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from convnorm.experiment.records import Metric
from gan.records import ExtractorFacts, Floor, Origin
from ranking.changes import UNCHANGED, Change


@dataclass(frozen=True)
class Setup:
    """All that the scores depend on, beside the changes.

    protocol: the fields of a `gan.protocols.Protocol`. metrics, expected, floor: as in a
        `gan.records.ScoreRecord`. fake: the images that are changed, all that there are to take
        from. hardware: where features and scores were computed.
    """

    seed: int
    protocol: dict[str, Any]
    extractor: ExtractorFacts
    metrics: dict[str, Metric]
    expected: dict[str, float]
    floor: Floor
    fake: Origin
    real: Origin
    versions: dict[str, str]
    hardware: str

    def difference(self, other: "Setup") -> str:
        """Name the first field in which another setup differs, with both values; "" if none."""
        for field in fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            if own != others:
                return f"{field.name} {own}, not {others}"
        return ""


@dataclass(frozen=True)
class Point:
    """The scores of images after the change of this name and strength, see `ranking.changes`.

    scores, spreads, doubts: as in a `gan.records.ScoreRecord`.
    """

    change: str
    strength: float
    scores: dict[str, float | None]
    spreads: dict[str, float | None]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """The points that are scored so far, in the order of `ranking.changes`."""

    FORMAT: ClassVar = "convnorm-suite/ranking/1"

    setup: Setup
    points: tuple[Point, ...]

    def of(self, change: str) -> dict[float, Point]:
        """Return strength -> point of the change of this name, as far as they are scored."""
        return {point.strength: point for point in self.points if point.change == change}


def line(ranking: Ranking, change: Change) -> list[Point]:
    """Return the points of a change from the weakest to the strongest, after the unchanged one."""
    found = ranking.of(change.name)
    return [*ranking.of(UNCHANGED.name).values(), *(found[float(s)] for s in change.strengths)]


def short(name: str) -> str:
    """Return the name of a score without the extractor: "KID" for "KID (lite0@96)"."""
    return name.partition(" (")[0]


def error(scored: Point | Floor, name: str) -> float | None:
    """Return the standard error of a score; None where it has none."""
    own = f"{short(name)} s.e."
    return next((v for spread, v in scored.spreads.items() if short(spread) == own), None)
