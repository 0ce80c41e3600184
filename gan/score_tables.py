"""Tables of scores: of one record, of a run's checkpoints, of several draws."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev

from gan.records import ScoreRecord


def shown(value: float | None) -> str:
    """Return a score as tables show it; None, which is no number, as n/a."""
    return "n/a" if value is None else f"{value:.5g}"


def heading(record: ScoreRecord) -> list[str]:
    """Return the lines on what the scores of a record are scores of."""
    rows = [
        f"protocol   {record.protocol['name']}: {record.num_fake} fake against "
        f"{'an unknown number of' if record.num_real is None else record.num_real} real images",
        f"extractor  {record.extractor.name}, weights {record.extractor.weights_sha256[:16]}",
    ]
    for side, origin in (("fake", record.fake), ("real", record.real)):
        rows.append(f"{side:9}  {origin.source}{f':{origin.split}' if origin.split else ''}")
    return rows


def table(record: ScoreRecord) -> str:
    """Return the record's scores and spreads as aligned text, between what they are scores of and
    what makes them doubtful.
    """
    rows = [*heading(record), ""]
    values = record.scores | record.spreads
    floor = record.floor_values
    width = max(map(len, values))
    rows.append(f"{'score':{width}}  {'value':>10}  {record.floor_title}")
    rows += [
        f"{name:{width}}  {shown(value):>10}  {shown(floor[name])}"
        for name, value in values.items()
    ]
    for name, value in record.expected.items():
        rows.append(f"{name} of equal distributions is {value:.5g}")
    if (line := record.extrapolation) is not None:
        rows.append(
            f"FD at infinitely many images: {line.value:.5g}, off a line through "
            f"{len(line.sizes)} sizes by {line.residual:.2g} (standard deviation)"
        )
    rows += [f"DOUBT: {doubt}" for doubt in record.all_doubts]
    return "\n".join([*rows, *_classes(record)])


def _classes(record: ScoreRecord) -> list[str]:
    """Return a row for each class and one of means, each score beside its floor, or nothing."""
    if not record.classes:
        return []
    rows = [["class", "fake", "real", "FD", "floor", "KID", "floor"]]
    for each in record.classes:
        values = each.distance, each.floor, each.kernel, each.floor_kernel
        rows.append([each.name, str(each.num_fake), str(each.num_real), *map(shown, values)])
    rows.append(["mean", "", "", *map(shown, chain(*_class_means(record).values()))])
    told = "each class by itself; floor: two halves of its real images"
    if any(each.distance is None for each in record.classes):
        told += "; FD: n/a unless they and the fakes outnumber the features"
    return ["", told, *_aligned(rows)]


def checkpoints_table(records: Sequence[ScoreRecord]) -> str:
    """Return a row of scores for each checkpoint, and one of the floor."""
    found = [_beside_floors(record) for record in records]
    rows = [["checkpoint", "step", *found[0]]]
    for record, scores in zip(records, found, strict=True):
        values = [shown(value) for value, _ in scores.values()]
        rows.append([Path(record.fake.source).name, str(record.fake.step), *values])
    floors = [shown(floor) for _, floor in found[0].values()]
    rows.append([records[0].floor_title, "", *floors])
    whose = [Path(record.fake.source).name for record in records]
    return "\n".join([*_aligned(rows), *_doubts(records, whose)])


def draws_table(records: Sequence[ScoreRecord]) -> str:
    """Return mean and standard deviation over the draws of every score, beside its floor."""
    rows = [["score", "mean", "sd over draws", records[0].floor_title]]
    found = [_beside_floors(record) for record in records]
    for name, (_, floor) in found[0].items():
        mean, spread = mean_and_spread([scores[name][0] for scores in found])
        rows.append([name, shown(mean), shown(spread), shown(floor)])
    whose = [f"seed {record.seed}" for record in records]
    draws = f"draws      {len(records)}, {whose[0]} to {records[-1].seed}"
    return "\n".join([draws, "", *_aligned(rows), *_doubts(records, whose)])


def _beside_floors(record: ScoreRecord) -> dict[str, tuple[float | None, float | None]]:
    """Return each score with its floor; where there are classes, the means over these too."""
    found = {name: (value, record.floor_values[name]) for name, value in record.scores.items()}
    return found | _class_means(record)


def _class_means(record: ScoreRecord) -> dict[str, tuple[float | None, float | None]]:
    """Return FD and KID with their floors, each a mean over the classes; nothing without them."""
    if not record.classes:
        return {}
    by_class = [(it.distance, it.floor, it.kernel, it.floor_kernel) for it in record.classes]
    columns = zip(*by_class, strict=True)
    distance, floor, kernel, floor_kernel = (mean_and_spread(column)[0] for column in columns)
    return {
        "FD, mean of classes": (distance, floor),
        "KID, mean of classes": (kernel, floor_kernel),
    }


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; None where a value is, or where there is one."""
    if None in values:
        return None, None
    return fmean(values), stdev(values) if len(values) > 1 else None


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]).rstrip() for row in rows
    ]


def _doubts(records: Sequence[ScoreRecord], whose: Sequence[str]) -> list[str]:
    """Each doubt in a line, with those that have it where not all do."""
    found: dict[str, list[str]] = {}
    for record, name in zip(records, whose, strict=True):
        for doubt in record.all_doubts:
            found.setdefault(doubt, []).append(name)
    return [
        f"DOUBT: {doubt}" if len(names) == len(records) else f"DOUBT ({', '.join(names)}): {doubt}"
        for doubt, names in found.items()
    ]
