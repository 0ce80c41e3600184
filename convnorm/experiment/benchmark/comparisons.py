"""Which cells of a grid differ, as far as tests can tell."""

from dataclasses import asdict
from typing import Any

from convnorm.experiment.benchmark.grid import Grid, cells
from convnorm.experiment.benchmark.pipeline import Result
from convnorm.experiment.records import Measure
from convnorm.experiment.statistics import LEVEL, holm, mcnemar, paired

Record = dict[str, Any]


def _rivals(grid: Grid) -> list[tuple[str, str]]:
    """(cell, the cell that it is compared with) by name: they differ in the compared axis alone."""
    axis, against = grid.compare.axis, grid.reference
    names = {tuple(cell.labels.items()): cell.name for cell in cells(grid)}
    pairs = []
    for cell in cells(grid):
        if cell.labels[axis] != against:
            pairs.append((cell.name, names[tuple((cell.labels | {axis: against}).items())]))
    return pairs


def paired_tests(grid: Grid, by_cell: dict[str, list[Record]], measure: Measure) -> list[Record]:
    """Paired tests of the score over common seeds, all in one family of Holm's."""
    found = []
    for cell, against in _rivals(grid):
        one, other = (
            {run["seed"]: run["scores"][grid.score.at][grid.score.name] for run in runs}
            for runs in (
                [run for run in by_cell[name] if run["state"] == "done"] for name in (cell, against)
            )
        )
        seeds = [seed for seed in grid.seeds if seed in one and seed in other]
        record: Record = {"cell": cell, "against": against, "seeds": seeds, "n": len(seeds)}
        record |= {"difference": None, "interval": None, "p": None}
        if seeds:
            record |= asdict(paired([one[s] for s in seeds], [other[s] for s in seeds]))
        found.append(record)
    for record, p in zip(found, holm([record["p"] for record in found]), strict=True):
        record["p_holm"] = p
        record["verdict"] = _verdict(record, measure)
    return found


def _verdict(record: Record, measure: Measure) -> str:
    if record["p_holm"] is None:
        return "not tested"
    if record["p_holm"] >= LEVEL:
        return "not distinguishable"
    return "better" if (record["difference"] < 0) == (measure.better == "lower") else "worse"


def mcnemar_tests(grid: Grid, by_place: dict[tuple[str, int], Result]) -> list[Record]:
    """Exact tests of pairs of classifiers on the same images, all in one family of Holm's."""
    score, found = grid.score, []
    for cell, against in _rivals(grid):
        for seed in grid.seeds:
            pair = [by_place.get((name, seed)) for name in (cell, against)]
            right = [r.right.get(score.at, {}).get(score.name) for r in pair if r is not None]
            if len(right) < 2 or any(flags is None for flags in right):
                continue
            test = mcnemar(*right)
            found.append(
                {"cell": cell, "against": against, "seed": seed, "measure": score.name}
                | {"images": len(right[0]), "only_cell": test.only_a, "only_against": test.only_b}
                | {"p": test.p}
            )
    for record, p in zip(found, holm([record["p"] for record in found]), strict=True):
        record["p_holm"] = p
    return found
