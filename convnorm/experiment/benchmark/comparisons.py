"""Which cells of a grid differ, as far as tests can tell."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from convnorm.experiment.benchmark.grid import Grid, cells
from convnorm.experiment.records import Comparison, McNemarTest, Metric, Verdict
from convnorm.experiment.statistics import LEVEL, holm, mcnemar, paired

Place = tuple[str, int]  # name of a cell, seed


def _rivals(grid: Grid) -> list[tuple[str, str]]:
    """(cell, the cell that it is compared with) by name: they differ in the compared axis alone."""
    axis, against = grid.compare.axis, grid.reference
    names = {tuple(cell.labels.items()): cell.name for cell in cells(grid)}
    pairs = []
    for cell in cells(grid):
        if cell.labels[axis] != against:
            pairs.append((cell.name, names[tuple((cell.labels | {axis: against}).items())]))
    return pairs


def paired_tests(
    grid: Grid, scores: Mapping[Place, float], metric: Metric
) -> tuple[Comparison, ...]:
    """Test the score over common seeds, all tests in one family of Holm's.

    scores: of the runs that are done.
    """
    found = []
    for cell, against in _rivals(grid):
        seeds = tuple(s for s in grid.seeds if (cell, s) in scores and (against, s) in scores)
        difference = interval = p = None
        if seeds:
            test = paired(*([scores[name, seed] for seed in seeds] for name in (cell, against)))
            difference, interval, p = test.difference, test.interval, test.p
        found.append(Comparison(cell, against, seeds, difference, interval, p, None, "not tested"))
    adjusted = holm([test.p for test in found])
    return tuple(
        replace(test, p_holm=p, verdict=_verdict(test.difference, p, metric))
        for test, p in zip(found, adjusted, strict=True)
    )


def _verdict(difference: float | None, p: float | None, metric: Metric) -> Verdict:
    """p: adjusted."""
    if difference is None or p is None:
        return "not tested"
    if p >= LEVEL:
        return "not distinguishable"
    return "better" if (difference < 0) == (metric.better == "lower") else "worse"


def mcnemar_tests(grid: Grid, right: Mapping[Place, np.ndarray]) -> tuple[McNemarTest, ...]:
    """Test pairs of classifiers on the same images exactly, all tests in one family of Holm's.

    right: which images a classifier is right about under the score's attack, (N,) bool.
    """
    pairs = [
        (cell, against, seed)
        for cell, against in _rivals(grid)
        for seed in grid.seeds
        if (cell, seed) in right and (against, seed) in right
    ]
    tests = [mcnemar(right[cell, seed], right[against, seed]) for cell, against, seed in pairs]
    adjusted = holm([test.p for test in tests])
    return tuple(
        McNemarTest(
            cell=cell,
            against=against,
            seed=seed,
            score=grid.score.name,
            images=len(right[cell, seed]),
            only_cell=test.only_a,
            only_against=test.only_b,
            p=test.p,
            p_holm=p,
        )
        for (cell, against, seed), test, p in zip(pairs, tests, adjusted, strict=True)
    )
