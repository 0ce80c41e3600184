"""Whether compared cells have one gain, and what may be said of their comparison if not."""

from convnorm.experiment.records import Comparison, Report
from convnorm.experiment.report.formats import number

EQUAL = 1.25  # times: gains that differ by less count as equal, as those of seeds differ by it


def compared_gains(report: Report, comparison: Comparison) -> tuple[float, float] | None:
    """The plateau gains of the two cells; None where one has none."""
    gains = {cell.name: cell.plateau_gain for cell in report.cells}
    pair = gains[comparison.cell], gains[comparison.against]
    return None if None in pair else (pair[0].mean, pair[1].mean)


def are_equal(gains: tuple[float, float]) -> bool:
    return max(gains) <= EQUAL * min(gains)


def with_gains(sentence: str, report: Report, comparison: Comparison) -> str:
    """A sentence on a comparison that says whether it was one at equal gain, where that is known.

    sentence: ends with a period.
    """
    gains = compared_gains(report, comparison)
    if gains is None:
        return sentence
    cell, against = map(number, gains)
    if are_equal(gains):
        return f"At equal gain ({cell} and {against}), {sentence}"
    differs = comparison.verdict in ("better", "worse")
    reservation = "what differs may be the gain" if differs else "this was no test at equal gain"
    return (
        f"{sentence.removesuffix('.')}; the plateau gains are {cell} and {against}: {reservation}."
    )


def gain_of_pair(gains: tuple[float, float]) -> str:
    """A sentence on the plateau gains of two runs, A and B."""
    a, b = map(number, gains)
    if are_equal(gains):
        return f"Both have one plateau gain, to within a factor of {EQUAL}: {a} and {b}."
    return f"The plateau gain of A is {a}, of B {b}: what differs may be the gain."
