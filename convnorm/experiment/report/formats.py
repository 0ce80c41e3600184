"""How the numbers of a report are written."""

from collections.abc import Sequence

from convnorm.experiment.records import GeometricSummary, Summary

TIMES_OVER = "\N{MULTIPLICATION SIGN}÷"  # as ± is for a sum


def number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, and to a whole number where that has more."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 9.996 is 10.0
    if exponent < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def spread(summary: Summary | None, scale: float = 1) -> str:
    """Mean and sample standard deviation; for one run, that it is one; for none, nothing."""
    if summary is None:
        return ""
    if summary.sd is None:
        return f"{number(scale * summary.mean)} (n = {summary.n})"
    return f"{number(scale * summary.mean)} ± {number(scale * summary.sd, 2)}"


def factor_spread(summary: GeometricSummary | None) -> str:
    """Geometric mean and standard factor; for one run, that it is one; for none, nothing."""
    if summary is None:
        return ""
    if summary.factor is None:
        return f"{number(summary.mean)} (n = {summary.n})"
    return f"{number(summary.mean)} {TIMES_OVER} {number(summary.factor)}"


def interval(ends: Sequence[float] | None, scale: float = 1) -> str:
    """From where to where; nothing where there is no interval."""
    return " to ".join(number(scale * end) for end in ends or [])


def points(difference: float, percent: bool) -> str:
    """A difference of two values; of values in percent, in percentage points."""
    return f"{number(100 * difference)} points" if percent else number(difference)


def accuracy(value: float) -> str:
    """An accuracy in [0, 1] of one network, in percent to the two decimals of 10,000 images."""
    return f"{100 * value:.2f} %"


def accuracy_interval(ends: Sequence[float]) -> str:
    """The interval of an accuracy, in percent with as many decimals."""
    return " to ".join(f"{100 * end:.2f}" for end in ends)
