"""The figures of a report, for light and for dark pages."""

import math
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread

from convnorm.experiment.report.answer import Results, score_name
from convnorm.experiment.report.canvas import (
    as_png,
    draw_band,
    draw_legend,
    set_frame,
    stacked,
    theme,
    with_panels,
    write_beyond,
)
from convnorm.experiment.report.formats import factor, number
from convnorm.experiment.report.palette import LINES, style

Captioned = tuple[Figure, str]

PAPER = {False: "#ffffff", True: "#14171c"}
INK = {False: "#000000", True: "#e8e8e8"}
PANELS = 6  # layers in a figure
TIMES = {"h": 3600, "min": 60, "s": 1}
NO_BREAK = "\u00a0"
FLOOR = {"color": "gray", "linestyle": (0, (4, 3))}
BANDS = "Lines are means over the seeds, bands reach from the smallest value to the largest."


class Drawing(NamedTuple):
    """A picture, the bytes of a PNG file, and what it shows."""

    png: bytes
    caption: str

    @property
    def title(self) -> str:
        """The first sentence of the caption."""
        return self.caption.partition(". ")[0]


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
    with rc_context(theme(ink, PAPER[dark])):
        drawn = ((name, figure()) for name, figure in figures.items())
        return {name: Drawing(as_png(it[0]), it[1]) for name, it in drawn if it is not None}


def _done(results: Results) -> dict[int, list[dict[str, Any]]]:
    """Index of a cell -> its finished runs, of the cells that have any."""
    runs = [run for run in results["runs"] if run["state"] == "done"]
    of_cell = [[run for run in runs if run["cell"] == cell["name"]] for cell in results["cells"]]
    return {index: found for index, found in enumerate(of_cell) if found}


def _label(results: Results, index: int) -> str:
    """A cell's name, its n and how many of its runs collapsed, the last two in one word."""
    cell = results["cells"][index]
    count = cell["collapsed"]["count"]
    told = f"(n = {cell['n']}{f', {count} collapsed' if count else ''})"
    return f"{cell['name']} {told.replace(' ', NO_BREAK)}"


def _groups(results: Results) -> dict[str, list[int]]:
    """Labels of the axes that are not compared -> the indices of the cells that have them."""
    groups: dict[str, list[int]] = {}
    for index, cell in enumerate(results["cells"]):
        rest = [x for axis, x in cell["labels"].items() if axis != results["compare"]["axis"]]
        groups.setdefault(" / ".join(rest), []).append(index)
    return groups


def _compared(results: Results, index: int) -> int:
    """The place of a cell's value on the compared axis, which has one look in all figures."""
    axis = results["compare"]["axis"]
    return results["axes"][axis].index(results["cells"][index]["labels"][axis])


def _look(results: Results, index: int, ink: str) -> dict[str, str]:
    """Colour and marker tell the values of the compared axis apart, the line all others."""
    group = next(i for i, group in enumerate(_groups(results).values()) if index in group)
    turn = {"linestyle": LINES[group % len(LINES)]} if group else {}
    return style(_compared(results, index), ink) | turn


def _axis_label(name: str, measure: dict[str, Any]) -> str:
    return f"{name}{' (%)' if measure['percent'] else ''}, {measure['better']} is better"


def _curves(results: Results, ink: str, against_time: bool) -> Captioned | None:
    """What was followed during training, against steps or against the time that it took."""
    name, measure, done = results["curve"], results["curve_measure"], _done(results)
    stacks = {index: stacked(run["curve"] for run in runs) for index, runs in done.items()}
    stacks = {index: stack for index, stack in stacks.items() if stack is not None}
    if not stacks:
        return None
    longest = max(stack[:, -1, 1].mean() for stack in stacks.values())
    unit, seconds = next((u, s) for u, s in TIMES.items() if longest >= 3 * s or s == 1)
    scale = factor(measure)
    groups = {key: [i for i in group if i in stacks] for key, group in _groups(results).items()}
    groups = {key: group for key, group in groups.items() if group}
    figure, panels = with_panels(len(groups), 4 if len(groups) == 1 else 2.6)
    runs = [run for runs in done.values() for run in runs]
    values = [scale * point[2] for run in runs for point in run["curve"]]
    near = [scale * point[2] for run in runs if not run["collapsed"] for point in run["curve"]]
    floor = scale * results["floor"].get(name, math.nan)
    for axes, (key, group) in zip(panels, groups.items(), strict=True):
        for index in group:
            stack = stacks[index]
            x = stack[:, :, 1].mean(0) / seconds if against_time else stack[0, :, 0]
            label = results["cells"][index]["labels"][results["compare"]["axis"]]
            label = label if len(groups) > 1 else _label(results, index)
            look = style(_compared(results, index), ink)
            draw_band(axes, x, scale * stack[:, :, 2], look, label)
        low, high = set_frame(axes, "y", values, near, measure["percent"])
        if low < floor < high:
            axes.axhline(floor, label="floor: real against real", **FLOOR)
        axes.set_title(key, fontsize="medium")
        axes.set_xlabel(f"time of training ({unit})" if against_time else "steps of training")
    for axes in panels[::3]:
        axes.set_ylabel(fill(_axis_label(name, measure), 40 if len(groups) == 1 else 24))
    draw_legend(figure, panels)
    caption = f"Training: {name} against {'time' if against_time else 'steps'}. {BANDS}"
    if floor <= low or floor >= high:
        caption += f" The floor, real against real, is out of the frame: {number(floor)}."
    if against_time:
        caption += " The time at a step is its mean over the seeds, without scores and pictures."
    if any(run["collapsed"] for run in runs):
        caption += " Collapsed runs are in lines and bands and may leave the frame."
    return figure, caption


def _dots(results: Results, ink: str) -> Captioned:
    """The primary score of every run, with the mean and t-interval of its cell."""
    name, at, done = results["score"]["name"], results["score"]["at"], _done(results)
    measure, scale = results["measures"][name], factor(results["measures"][name])
    figure, (axes,) = with_panels(1, 1 + 0.5 * len(done))
    scores, intervals, near = {}, {}, []
    for index, runs in done.items():
        scores[index] = [(scale * run["scores"][at][name], run["collapsed"]) for run in runs]
        ends = results["cells"][index]["summaries"][at][name]["interval"]
        intervals[index] = [scale * end for end in ends or []]
        near += [value for value, collapsed in scores[index] if not collapsed]
    values = [value for found in scores.values() for value, _ in found]
    reach = [end for ends in intervals.values() for end in ends if end > 0 or min(values) <= 0]
    frame = set_frame(axes, "x", values + reach, near, measure["percent"])
    for row, index in enumerate(done):
        look = _look(results, index, ink)
        if intervals[index]:
            line = np.clip(intervals[index], *frame)
            axes.plot(line, [row + 0.18] * 2, color=look["color"], linewidth=2)
            middle = sum(intervals[index]) / 2  # the mean, by which the interval is symmetric
            axes.plot(middle, row + 0.18, "|", color=look["color"], markersize=13, mew=2)
        for value, collapsed in scores[index]:
            marker = "x" if collapsed else look["marker"]
            axes.plot(value, row - 0.12, marker, color=look["color"], alpha=0.8)
        write_beyond(axes, row - 0.12, [value for value, _ in scores[index]], frame)
    floor = results["floor"].get(name)
    if floor is not None and frame[0] < scale * floor < frame[1]:
        axes.axvline(scale * floor, label="floor: real against real", **FLOOR)
        draw_legend(figure, [axes])
    axes.set_yticks(range(len(done)), [fill(_label(results, index), 32) for index in done])
    axes.set_ylim(len(done) - 0.5, -0.5)
    axes.set_xlabel(_axis_label(score_name(results), measure))
    return figure, (
        f"The {score_name(results)} of every run: a marker a seed, a cross where the run "
        "collapsed. The line is the 95 % t-interval of the mean, the tick the mean. Runs beyond "
        "the frame are written beside it; intervals may go on there."
    )


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
    figure, panels = with_panels(len(shown), 2.2)
    for panel, layer in zip(panels, shown, strict=True):
        values = []
        for index, of_cell in done.items():
            stack = stacked(run["norms"].get(norm, {}).get(layer, []) for run in of_cell)
            if stack is not None:
                x, y = stack[0, :, 0], stack[:, :, 1]
                draw_band(panel, x, y, _look(results, index, ink), _label(results, index))
                values += y.flatten().tolist()
        set_frame(panel, "y", values, values, percent=False)
        panel.set_title(f"layer {layer}", fontsize="medium")
    for panel in panels[-3:]:
        panel.set_xlabel("steps of training")
    for panel in panels[::3]:
        panel.set_ylabel(f"{which} singular value")
    draw_legend(figure, panels)
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
    figure, panels = with_panels(len(found[seed]), 2.7)
    for panel, (index, run) in zip(panels, found[seed].items(), strict=True):
        panel.set_axis_off()
        panel.imshow(imread(folder / run["picture"]), cmap="gray", interpolation="nearest")
        title = f"{fill(results['cells'][index]['name'], 26)}\n{name} "
        title += number(scale * run["scores"][at][name]) + ", collapsed" * bool(run["collapsed"])
        panel.set_title(title, fontsize="medium")
    caption = f"Samples at the end of training, seed {seed}: the same latents in every grid."
    missing = [cell["name"] for i, cell in enumerate(results["cells"]) if i not in found[seed]]
    return figure, caption + (f" None of {'; '.join(missing)}." if missing else "")
