"""The panels, axes and lines of which figures are made, whatever they show."""

import io
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from convnorm.experiment.report.formats import number
from convnorm.experiment.report.palette import REFERENCE

WIDTH = 6.5  # inches
Runs = Sequence[Sequence[Sequence[float]]]  # of each run its points, (step, ...)
FAR = 2.5  # times: an axis grows at most so much wider for values far from the rest


def theme(ink: str, paper: str) -> dict[str, Any]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys((*inked, "grid.color"), ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), paper),
        **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
        "axes.grid": True,
        "font.size": 11,
        "grid.alpha": 0.15,
        "text.parse_math": False,  # a label may hold a $
    }


def as_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=160)
    return file.getvalue()


def with_panels(n: int, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels, at most `columns` a row, each row `height` inches high."""
    columns = min(columns, n)
    rows = ceil(n / columns)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for empty in panels[n:]:
        empty.set_axis_off()
    return figure, panels[:n]


def stacks(series: Mapping[int, Runs]) -> dict[int, np.ndarray]:
    """The place of a cell -> its runs, `stacked`; cells whose runs share no step are left out."""
    found = {index: stacked(of_cell) for index, of_cell in series.items()}
    return {index: stack for index, stack in found.items() if stack is not None}


def stacked(series: Runs) -> np.ndarray | None:
    """Points (step, ...) of several runs at the steps that all have: (runs, points, columns).

    None where there is no such step.
    """
    common = set.intersection(*({point[0] for point in points} for points in series))
    if not common:
        return None
    return np.array([[point for point in points if point[0] in common] for points in series])


def draw_band(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    look: dict[str, str],
    label: str,
    geometric: bool = False,
) -> None:
    """The mean over runs of `y` (runs, points), and the range where there is more than one."""
    mean = np.exp(np.log(y).mean(0)) if geometric else y.mean(0)
    axes.plot(x, mean, markevery=max(1, len(x) // 8), markersize=5, label=label, **look)
    if len(y) > 1:
        axes.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.2, linewidth=0)


def draw_errors(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    look: dict[str, Any],
    label: str,
) -> None:
    """Points with the intervals around them, which hold them but for rounding."""
    below = [max(0.0, value - low) for value, (low, _) in zip(y, intervals, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(y, intervals, strict=True)]
    axes.errorbar(x, y, [below, above], capsize=2, markersize=5, label=label, **look)


def draw_reference(axes: Axes, side: str, value: float, label: str) -> None:
    """A line through the whole panel at a `value` of its "x" or "y" axis, to compare with."""
    line = axes.axvline if side == "x" else axes.axhline
    line(value, label=label, **REFERENCE)


def draw_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend below all panels, with each label once."""
    handles = {}
    for panel in panels:
        found = panel.get_legend_handles_labels()
        handles |= dict(zip(found[1], found[0], strict=True))
    columns = max(1, min(4, 84 // (6 + max(map(len, handles)))))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.24 * ceil(len(handles) / columns))
    place = {"loc": "outside lower center", "ncols": columns, "fontsize": "small"}
    figure.legend(handles.values(), handles, **place)


def set_frame(
    axes: Axes, side: str, values: list[float], near: list[float], percent: bool
) -> tuple[float, float]:
    """Let the "x" or "y" axis hold all values, or those `near` where the others squash them.

    It is logarithmic where the values are no percentages and span more than a decade. Returns its
    ends.
    """
    log = not percent and min(values) > 0 and max(values) > 10 * min(values)
    low, high, near_low, near_high = (
        log10(end) if log else end for f in (values, near or values) for end in (min(f), max(f))
    )
    if 0 < FAR * (near_high - near_low) < high - low:
        low, high = near_low, near_high
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    ends = (low - margin, high + margin)
    if log:
        ends = (10 ** ends[0], 10 ** ends[1])
    if log and ends[1] > 10 * ends[0]:
        axes.set(**{f"{side}scale": "log"})
        axis = getattr(axes, f"{side}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2.5 else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(**{f"{side}lim": ends})
    return ends


def write_beyond(axes: Axes, y: float, values: list[float], frame: tuple[float, float]) -> None:
    """Write the values that lie beyond the ends of an x axis beside it."""
    below, above = (
        ", ".join(number(value) for value in sorted(values) if is_out(value))
        for is_out in (frame[0].__gt__, frame[1].__lt__)
    )
    text = "  ".join([f"← {below}"] * bool(below) + [f"→ {above}"] * bool(above))
    axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize="small")
