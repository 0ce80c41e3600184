"""The figures of a report, for light and for dark pages."""

import io
from collections.abc import Callable, Iterable, Sequence
from math import ceil, log10
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from convnorm.benchmark.answer import Results, factor, number, score_name
from convnorm.experiment.palette import style

Captioned = tuple[Figure, str]

PAPER = {False: "#ffffff", True: "#14171c"}
INK = {False: "#000000", True: "#e8e8e8"}
WIDTH = 6.5  # inches
PANELS = 6  # layers in a figure
FAR = 2.5  # how much wider an axis may become for what is far away from the rest
TIMES = {"h": 3600, "min": 60, "s": 1}
FLOOR = {"color": "gray", "linestyle": (0, (4, 3))}
BANDS = "Lines are means over the seeds, bands reach from the smallest value to the largest."


class Drawing(NamedTuple):
    """A picture, the bytes of a PNG file, and what it shows."""

    png: bytes
    caption: str


def draw(results: Results, folder: Path, dark: bool) -> dict[str, Drawing]:
    """Draw what the results have to show: name -> drawing, in the order of the report.

    folder: the benchmark's, to which the `picture` of a run is relative.
    """
    ink = INK[dark]
    figures: dict[str, Callable[[], Captioned | None]] = {
        "score_steps": lambda: _curves(results, ink, against_time=False),
        "score_seconds": lambda: _curves(results, ink, against_time=True),
        "every_run": lambda: _dots(results, ink),
        "samples": lambda: _samples(results, folder),
        "largest_singular_values": lambda: _spectra(results, ink, "operator", "largest"),
        "rms_singular_values": lambda: _spectra(results, ink, "rms", "rms"),
    }
    with rc_context(_theme(ink, PAPER[dark])):
        drawn = ((name, figure()) for name, figure in figures.items())
        return {name: Drawing(_png(it[0]), it[1]) for name, it in drawn if it is not None}


def _theme(ink: str, paper: str) -> dict[str, Any]:
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


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=160)
    return file.getvalue()


def _panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels, three a row, each row `height` inches high."""
    columns = min(3, n)
    rows = ceil(n / columns)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for empty in panels[n:]:
        empty.set_axis_off()
    return figure, panels[:n]


def _done(results: Results) -> dict[int, list[dict[str, Any]]]:
    """Index of a cell -> its finished runs, of the cells that have any."""
    runs = [run for run in results["runs"] if run["state"] == "done"]
    of_cell = [[run for run in runs if run["cell"] == cell["name"]] for cell in results["cells"]]
    return {index: found for index, found in enumerate(of_cell) if found}


def _label(results: Results, index: int) -> str:
    """A cell's name, its n and how many of its runs collapsed."""
    cell = results["cells"][index]
    count = cell["collapsed"]["count"]
    return f"{cell['name']} (n = {cell['n']}{f', {count} collapsed' if count else ''})"


def _axis_label(name: str, measure: dict[str, Any]) -> str:
    return f"{name}{' (%)' if measure['percent'] else ''}, {measure['better']} is better"


def _stack(series: Iterable[Sequence[Sequence[float]]]) -> np.ndarray | None:
    """Points (step, ...) of several runs at the steps that all have: (runs, points, columns)."""
    series = list(series)
    common = set.intersection(*({point[0] for point in points} for points in series))
    if not common:
        return None
    return np.array([[point for point in points if point[0] in common] for points in series])


def _band(axes: Axes, x: np.ndarray, y: np.ndarray, look: dict[str, str], label: str) -> None:
    """The mean over runs of `y` (runs, points), and the range where there is more than one."""
    axes.plot(x, y.mean(0), markevery=max(1, len(x) // 8), markersize=5, label=label, **look)
    if len(y) > 1:
        axes.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.2, linewidth=0)


def _legend(figure: Figure, panels: Iterable[Axes]) -> None:
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


def _frame(
    axes: Axes, side: str, values: list[float], near: list[float], percent: bool
) -> tuple[float, float]:
    """Let the "x" or "y" axis hold all values, or those `near` where the others squash them.

    Logarithmic where the values are no percentages and span more than a decade. Returns its ends.
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


def _curves(results: Results, ink: str, against_time: bool) -> Captioned | None:
    """What was followed during training, against steps or against the time that it took."""
    name, measure, done = results["curve"], results["curve_measure"], _done(results)
    stacks = {index: _stack(run["curve"] for run in runs) for index, runs in done.items()}
    stacks = {index: stack for index, stack in stacks.items() if stack is not None}
    if not stacks:
        return None
    longest = max(stack[:, -1, 1].mean() for stack in stacks.values())
    unit, seconds = next((u, s) for u, s in TIMES.items() if longest >= 3 * s or s == 1)
    scale = factor(measure)
    figure, (axes,) = _panels(1, 4)
    for index, stack in stacks.items():
        x = stack[:, :, 1].mean(0) / seconds if against_time else stack[0, :, 0]
        _band(axes, x, scale * stack[:, :, 2], style(index, ink), _label(results, index))
    floor = [scale * results["floor"][name]] if name in results["floor"] else []
    for value in floor:
        axes.axhline(value, label="floor: real against real", **FLOOR)
    runs = [run for runs in done.values() for run in runs]
    values = [scale * point[2] for run in runs for point in run["curve"]]
    near = [scale * point[2] for run in runs if not run["collapsed"] for point in run["curve"]]
    _frame(axes, "y", values + floor, near and near + floor, measure["percent"])
    axes.set_ylabel(_axis_label(name, measure))
    axes.set_xlabel(f"time of training ({unit})" if against_time else "steps of training")
    _legend(figure, [axes])
    caption = f"Training: {name} against {'time' if against_time else 'steps'}. {BANDS}"
    if against_time:
        caption += " The time at a step is its mean over the seeds, without scores and pictures."
    if any(run["collapsed"] for run in runs):
        caption += " Collapsed runs are in lines and bands and may leave the frame."
    return figure, caption


def _dots(results: Results, ink: str) -> Captioned:
    """The primary score of every run, with the mean and t-interval of its cell."""
    name, at, done = results["score"]["name"], results["score"]["at"], _done(results)
    measure, scale = results["measures"][name], factor(results["measures"][name])
    figure, (axes,) = _panels(1, 1 + 0.5 * len(done))
    scores, intervals, near = {}, {}, []
    for index, runs in done.items():
        scores[index] = [(scale * run["scores"][at][name], run["collapsed"]) for run in runs]
        ends = results["cells"][index]["summaries"][at][name]["interval"]
        intervals[index] = [scale * end for end in ends or []]
        near += [value for value, collapsed in scores[index] if not collapsed]
    values = [value for found in scores.values() for value, _ in found]
    reach = [end for ends in intervals.values() for end in ends if end > 0 or min(values) <= 0]
    frame = _frame(axes, "x", values + reach, near, measure["percent"])
    for row, index in enumerate(done):
        look = style(index, ink)
        if intervals[index]:
            line = np.clip(intervals[index], *frame)
            axes.plot(line, [row + 0.18] * 2, color=look["color"], linewidth=2)
            middle = sum(intervals[index]) / 2  # the mean, by which the interval is symmetric
            axes.plot(middle, row + 0.18, "|", color=look["color"], markersize=13, mew=2)
        for value, collapsed in scores[index]:
            marker = "x" if collapsed else look["marker"]
            axes.plot(value, row - 0.12, marker, color=look["color"], alpha=0.8)
        _beyond(axes, row - 0.12, [value for value, _ in scores[index]], frame)
    floor = results["floor"].get(name)
    if floor is not None and frame[0] < scale * floor < frame[1]:
        axes.axvline(scale * floor, label="floor: real against real", **FLOOR)
        _legend(figure, [axes])
    axes.set_yticks(range(len(done)), [fill(_label(results, index), 32) for index in done])
    axes.set_ylim(len(done) - 0.5, -0.5)
    axes.set_xlabel(_axis_label(score_name(results), measure))
    return figure, (
        f"The {score_name(results)} of every run: a marker a seed, a cross where the run "
        "collapsed. The line is the 95 % t-interval of the mean, the tick the mean. Runs beyond "
        "the frame are written beside it; intervals may go on there."
    )


def _beyond(axes: Axes, y: float, values: list[float], frame: tuple[float, float]) -> None:
    """Write the values that are out of an x axis beside it."""
    below, above = (
        ", ".join(number(value) for value in sorted(values) if is_out(value))
        for is_out in (frame[0].__gt__, frame[1].__lt__)
    )
    text = "  ".join([f"← {below}"] * bool(below) + [f"→ {above}"] * bool(above))
    axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize="small")


def _spectra(results: Results, ink: str, norm: str, which: str) -> Captioned | None:
    """A singular value of layers over training, one panel a layer."""
    done = _done(results)
    runs = [run for runs in done.values() for run in runs]
    layers = list(dict.fromkeys(name for run in runs for name in run["norms"].get(norm, {})))
    if not layers:
        return None
    shown = layers
    if len(layers) > PANELS:
        shown = [layers[round(i * (len(layers) - 1) / (PANELS - 1))] for i in range(PANELS)]
    figure, panels = _panels(len(shown), 2.2)
    for panel, layer in zip(panels, shown, strict=True):
        values = []
        for index, of_cell in done.items():
            stack = _stack(run["norms"].get(norm, {}).get(layer, []) for run in of_cell)
            if stack is not None:
                x, y = stack[0, :, 0], stack[:, :, 1]
                _band(panel, x, y, style(index, ink), _label(results, index))
                values += y.flatten().tolist()
        _frame(panel, "y", values, values, percent=False)
        panel.set_title(f"layer {layer}", fontsize="medium")
    for panel in panels[-3:]:
        panel.set_xlabel("steps of training")
    for panel in panels[::3]:
        panel.set_ylabel(f"{which} singular value")
    _legend(figure, panels)
    what = "every layer" if shown == layers else f"{PANELS} of {len(layers)} layers, first to last,"
    which = {"rms": "root mean square"}.get(which, which)
    return figure, f"The {which} singular value of {what} over training. {BANDS}"


def _samples(results: Results, folder: Path) -> Captioned | None:
    """The pictures of one seed, which show the same latents, side by side."""
    found: dict[int, dict[int, dict[str, Any]]] = {seed: {} for seed in results["seeds"]}
    for index, runs in _done(results).items():
        for run in runs:
            if run["picture"] and (folder / run["picture"]).is_file():
                found[run["seed"]][index] = run
    seed = max(found, key=lambda seed: len(found[seed]))  # the first of those with the most
    if not found[seed]:
        return None
    name, at = results["score"]["name"], results["score"]["at"]
    scale = factor(results["measures"][name])
    figure, panels = _panels(len(found[seed]), 2.7)
    for panel, (index, run) in zip(panels, found[seed].items(), strict=True):
        panel.set_axis_off()
        panel.imshow(imread(folder / run["picture"]), cmap="gray", interpolation="nearest")
        title = f"{fill(results['cells'][index]['name'], 26)}\n{name} "
        title += number(scale * run["scores"][at][name]) + ", collapsed" * bool(run["collapsed"])
        panel.set_title(title, fontsize="medium")
    caption = f"Samples at the end of training, seed {seed}: the same latents in every grid."
    missing = [cell["name"] for i, cell in enumerate(results["cells"]) if i not in found[seed]]
    return figure, caption + (f" None of {'; '.join(missing)}." if missing else "")
