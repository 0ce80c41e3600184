"""How the numbers of a report are written."""

from collections.abc import Sequence
from typing import Any


def number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, and to a whole number where that has more."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 9.996 is 10.0
    if exponent < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def spread(summary: dict[str, Any] | None, scale: float = 1) -> str:
    """Mean and sample standard deviation; of one run, that it is one; of none, nothing."""
    if summary is None:
        return ""
    if summary["sd"] is None:
        return f"{number(scale * summary['mean'])} (n = {summary['n']})"
    return f"{number(scale * summary['mean'])} ± {number(scale * summary['sd'], 2)}"


def interval(ends: Sequence[float] | None, scale: float) -> str:
    """From where to where; nothing where there is no interval."""
    return " to ".join(number(scale * end) for end in ends or [])


def factor(measure: dict[str, Any]) -> int:
    """What a value of a measure is multiplied by to be shown: a share is shown in percent."""
    return 100 if measure["percent"] else 1


def points(difference: float, percent: bool) -> str:
    """A difference of two values of a measure; of shares, in percentage points."""
    return f"{number(100 * difference)} points" if percent else number(difference)
