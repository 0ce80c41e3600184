"""A ranking as a page: how often a step makes a score worse, a figure, and every score."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from convnorm.experiment import files
from convnorm.experiment.records import Metric
from convnorm.experiment.report.formats import number
from convnorm.experiment.report.tables import ARROWS, escaped, markdown
from ranking.changes import CHANGES
from ranking.figure import draw
from ranking.records import Point, Ranking, error, line, short

PAGE, FIGURE = "ranking.md", "ranking.png"
MISSING = "n/a"


def write_page(ranking: Ranking, out: Path) -> None:
    """Write the page and its figure into a folder that exists."""
    page, figure = text(ranking), draw(ranking)
    files.write(out / FIGURE, lambda file: file.write(figure))
    files.write(out / PAGE, lambda file: file.write(page.encode()))


def text(ranking: Ranking) -> str:
    """Return the page in Markdown."""
    setup = ranking.setup
    protocol, extractor = setup.protocol, setup.extractor
    heads = [f"{short(name)} {ARROWS[metric.better]}" for name, metric in setup.metrics.items()]
    kernel = next(name for name in setup.metrics if short(name) == "KID")
    versions = ", ".join(f"{name} {version}" for name, version in setup.versions.items())
    expected = "".join(
        f" Of equal distributions, {short(name)} is {value:.3f}."
        for name, value in setup.expected.items()
    )
    doubts = "\n".join(f"- {escaped(doubt)}" for doubt in _doubts(ranking))
    parts = [
        f"# Do scores by {escaped(extractor.name)} rank?",
        f"{protocol['num_fake']} {setup.fake.split} images of {escaped(setup.fake.source)} are "
        f"changed and scored against {protocol['num_real']} {setup.real.split} images, all of "
        f"{protocol['image_size']} pixels; seed {setup.seed}. By `python scripts/rank_scores.py`; "
        "`ranking.json` has every number and what it depends on.",
        f"![Each score at the steps of each change]({FIGURE})",
        "Step 0 is the unchanged images, step k the k-th strength of the table below.",
        "## How many steps make a score worse",
        markdown(["change", *heads, "KID at step 1"], _counts(ranking, kernel)),
        "Of the steps from the unchanged images to the strongest change. The last column is the "
        "KID of the weakest change in its standard errors.",
        "## Scores",
        markdown(["change", "strength", *heads], _scores(ranking), words=2),
        "KID ± its standard error. Noise: standard deviation in grey levels. Blur: in pixels. "
        f"JPEG: quality. Duplicates: copies of each image.{expected}",
        *(["## Doubts", doubts] if doubts else []),
        f"{escaped(setup.hardware)}; {escaped(versions)}; weights {extractor.weights_sha256[:16]}.",
    ]
    return "\n\n".join(parts) + "\n"


def worsened(points: list[Point], name: str, metric: Metric) -> int | None:
    """Return how many steps make a score worse; None where it is missing somewhere."""
    values = [point.scores[name] for point in points]
    if None in values:
        return None
    sign = 1 if metric.better == "lower" else -1
    return sum(sign * after > sign * before for before, after in pairwise(values))


def _counts(ranking: Ranking, kernel: str) -> Iterator[list[str]]:
    for change in CHANGES:
        points, steps = line(ranking, change), len(change.strengths)
        counts = [worsened(points, *metric) for metric in ranking.setup.metrics.items()]
        first, deviation = points[1].scores[kernel], error(points[1], kernel)
        yield [
            change.name,
            *(MISSING if count is None else f"{count} of {steps}" for count in counts),
            f"{first / deviation:.1f} s.e." if first is not None and deviation else MISSING,
        ]


def _scores(ranking: Ranking) -> Iterator[list[str]]:
    names = list(ranking.setup.metrics)
    for point in ranking.points:
        values = [_value(point.scores[name], error(point, name)) for name in names]
        yield [point.change, f"{point.strength:g}" if point.strength else "", *values]
    floor = ranking.setup.floor
    values = [_value(floor.scores[name], error(floor, name)) for name in names]
    yield [f"floor: real against real, {floor.num_images} each", "", *values]


def _value(value: float | None, deviation: float | None) -> str:
    if value is None:
        return MISSING
    return number(value) + (f" ± {number(deviation, 2)}" if deviation is not None else "")


def _doubts(ranking: Ranking) -> Iterator[str]:
    """Each doubt once, with what it is about."""
    about: dict[str, list[str]] = {doubt: ["floor"] for doubt in ranking.setup.floor.doubts}
    for point in ranking.points:
        for doubt in point.doubts:
            about.setdefault(doubt, []).append(_named(point))
    for doubt, names in about.items():
        yield f"{', '.join(names)}: {doubt}"


def _named(point: Point) -> str:
    return f"{point.change} {point.strength:g}" if point.strength else point.change
