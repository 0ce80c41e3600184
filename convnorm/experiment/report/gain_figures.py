"""The figures of a report that show the gain of discriminators."""

from collections import defaultdict
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from convnorm.experiment.records import Report
from convnorm.experiment.report.canvas import (
    draw_band,
    draw_legend,
    draw_reference,
    set_frame,
    stacks,
    with_panels,
)
from convnorm.experiment.report.cells import (
    BANDS,
    FLOOR,
    axis_label,
    finished_runs,
    full_label,
    grouped,
    look_of,
    place_of,
)
from convnorm.experiment.report.names import SCALE, beside_scale, label_of, scale_of
from convnorm.experiment.report.palette import style
from convnorm.experiment.statistics import PLATEAU

GAIN = "gain |dD/dx|"
WINDOW = f"plateau: {PLATEAU[0]} to {PLATEAU[1]} % of the training"


def gains_over_steps(report: Report, ink: str) -> tuple[Figure, str] | None:
    """The gain during training, a line a cell, a panel for each value of the other axes."""
    series = {
        index: [[(it.step, it.mean) for it in run.result.gain if it.mean > 0] for run in runs]
        for index, runs in finished_runs(report).items()
    }
    known = {index: [points for points in of_cell if points] for index, of_cell in series.items()}
    found = stacks({index: of_cell for index, of_cell in known.items() if of_cell})
    if not found:
        return None
    panels_of = {key: [i for i in group if i in found] for key, group in grouped(report).items()}
    panels_of = {key: group for key, group in panels_of.items() if group}
    figure, panels = with_panels(len(panels_of), 4 if len(panels_of) == 1 else 2.6)
    values = [value for stack in found.values() for value in stack[:, :, 1].flatten().tolist()]
    lengths = {run.result.cost.steps for run in report.done}
    for axes, (key, group) in zip(panels, panels_of.items(), strict=True):
        if len(lengths) == 1:
            ends = [share / 100 * max(lengths) for share in PLATEAU]
            axes.axvspan(*ends, color="gray", alpha=0.15, linewidth=0, label=WINDOW)
        for index in group:
            axis, cell = report.compared_axis, report.cells[index]
            label = label_of(report, axis, cell.labels[axis])
            label = label if len(panels_of) > 1 else full_label(report, index)
            steps, gains = found[index][0, :, 0], found[index][:, :, 1]
            draw_band(
                axes, steps, gains, style(place_of(report, index), ink), label, geometric=True
            )
        set_frame(axes, "y", values, values, percent=False)
        axes.set_title(key, fontsize="medium")
        axes.set_xlabel("steps of training")
    for axes in panels[::3]:
        axes.set_ylabel(GAIN)
    draw_legend(figure, panels)
    return figure, (
        "The gain of the discriminator over training: the geometric mean of its median gradient "
        f"norms |dD/dx| at held-out real and at generated images. {BANDS} The means are geometric."
    )


def score_against_gain(report: Report, ink: str) -> tuple[Figure, str] | None:
    """The score of every cell at its plateau gain; None unless normalizer.scale is varied.

    A line joins cells that differ in normalizer.scale alone.
    """
    scales = {_scale(report, cell.labels) for cell in report.cells}
    cells = [i for i in finished_runs(report) if report.cells[i].plateau_gain is not None]
    if len(scales) < 2 or not cells:
        return None
    panels_of: dict[str, list[int]] = defaultdict(list)
    for index in cells:
        panels_of[_panel(report, index)].append(index)
    name, at, metric = report.score.name, report.score.at, report.metric
    runs = [run for run in report.done if run.result.plateau_gain is not None]
    gains = [run.result.plateau_gain for run in runs]
    scores = [metric.scale * run.result.scores[at][name] for run in runs]
    sound = [s for s, run in zip(scores, runs, strict=True) if not run.has_collapsed]
    figure, panels = with_panels(len(panels_of), 4.2 if len(panels_of) == 1 else 3, columns=2)
    for axes, (key, group) in zip(panels, panels_of.items(), strict=True):
        low, high = set_frame(axes, "y", scores, sound, metric.percent)
        set_frame(axes, "x", gains, gains, percent=False)
        for curve in _curves(report, group):
            _draw_curve(axes, report, curve, ink)
        floor = metric.scale * report.floor.get(name, np.nan)
        if low < floor < high:
            draw_reference(axes, "y", floor, FLOOR)
        axes.set_title(key, fontsize="medium")
        axes.set_xlabel(f"plateau {GAIN}")
    for axes in panels[::2]:
        axes.set_ylabel(fill(axis_label(report.score_name, metric), 36))
    if panels[0].get_legend_handles_labels()[1]:
        draw_legend(figure, panels)
    beyond = " Collapsed runs are in the means and may leave the frame."
    return figure, (
        f"The {report.score_name} against the plateau gain. The gain is the geometric mean of "
        f"|dD/dx| at real and at generated images, from {PLATEAU[0]} to {PLATEAU[1]} % of the "
        "training. Large markers are means over the seeds, of gains geometric ones, small ones "
        "single runs, crosses those that collapsed. A line joins cells that differ in "
        f"{SCALE} alone: where two lines meet, the cells have one gain and one score."
        + beyond
        * (len(sound) < len(scores))
    )


def _scale(report: Report, labels: dict[str, str]) -> str:
    """The normalizer.scale of a cell, by its labels."""
    found = (scale_of(report, axis, label) for axis, label in labels.items())
    return next((scale for scale in found if scale is not None), "1.0")


def _panel(report: Report, index: int) -> str:
    """What a cell has on the axes that are not compared, but for normalizer.scale."""
    labels = report.cells[index].labels
    rest = [axis for axis in labels if axis != report.compared_axis]
    shown = [it for it in rest if beside_scale(report, it, labels[it]) is not None]
    return " / ".join(label_of(report, axis, labels[axis]) for axis in shown)


def _curves(report: Report, group: list[int]) -> list[list[int]]:
    """The cells of a panel by what they have on the compared axis, in the order of their gain."""
    axis, curves = report.compared_axis, defaultdict(list)
    for index in group:
        curves[beside_scale(report, axis, report.cells[index].labels[axis])].append(index)
    return [sorted(it, key=lambda i: report.cells[i].plateau_gain.mean) for it in curves.values()]


def _draw_curve(axes: Axes, report: Report, curve: list[int], ink: str) -> None:
    """Cells that differ in normalizer.scale alone, with each of their runs."""
    name, at, factor = report.score.name, report.score.at, report.metric.scale
    axis, first = report.compared_axis, min(curve)
    look = look_of(report, first, ink) | {"linestyle": "-"}
    for index in curve:
        for run in finished_runs(report)[index]:
            if run.result.plateau_gain is not None:
                place = run.result.plateau_gain, factor * run.result.scores[at][name]
                marker = "x" if run.has_collapsed else look["marker"]
                axes.plot(*place, marker, color=look["color"], markersize=4, alpha=0.45, zorder=5)
    cells = [report.cells[index] for index in curve]
    x = [cell.plateau_gain.mean for cell in cells]
    y = [factor * cell.scores[at][name].mean for cell in cells]
    axes.plot(x, y, markersize=8, **look)
    halo = [withStroke(linewidth=3, foreground=axes.get_facecolor())]  # over lines and markers
    beside = {"textcoords": "offset points", "color": look["color"], "fontsize": "small"}
    beside |= {"path_effects": halo, "zorder": 4}
    if axis != SCALE:
        names = [label_of(report, axis, cell.labels[axis]) for cell in cells]
        for label, following, *place in zip(names, [*names[1:], None], x, y, strict=True):
            if label != following:  # one name for the whole curve stands at its end
                axes.annotate(label, place, (9, 0), va="center", **beside)
    for cell, *place in zip(cells, x, y, strict=True):
        if SCALE in cell.labels and len(cells) > 1:
            axes.annotate(cell.labels[SCALE], place, (0, 7), ha="center", **beside)
