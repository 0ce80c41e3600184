"""The figures of a report, for light and for dark pages."""

import math
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread

from convnorm.experiment.records import Report, RunRecord
from convnorm.experiment.report.canvas import (
    Runs,
    as_png,
    draw_band,
    draw_legend,
    draw_reference,
    set_frame,
    stacks,
    theme,
    with_panels,
    write_beyond,
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
from convnorm.experiment.report.formats import number
from convnorm.experiment.report.gain_figures import gains_over_steps, score_against_gain
from convnorm.experiment.report.names import label_of
from convnorm.experiment.report.palette import INK, PAPER, style

Captioned = tuple[Figure, str]

PANELS = 6  # layers in a figure
TIMES = {"h": 3600, "min": 60, "s": 1}


class Spectrum(NamedTuple):
    """What a figure shows of singular values: a name in `Norms`, on the axis and in words."""

    norm: str
    name: str
    told: str
    note: str


SPECTRA = {
    "largest_singular_values": Spectrum(
        "operator", "largest singular value", "largest singular value", ""
    ),
    "rms_singular_values": Spectrum(
        "rms", "rms singular value", "root mean square singular value", ""
    ),
    "stable_ranks": Spectrum(
        "stable_rank",
        "stable rank",
        "stable rank",
        "It is |A|_F^2 / |A|_2^2 of a layer's linear map A: about how many directions carry its "
        "gain, at most the smaller of its numbers of inputs and outputs.",
    ),
}


class Drawing(NamedTuple):
    """A picture, the bytes of a PNG file, and what it shows."""

    png: bytes
    caption: str

    @property
    def title(self) -> str:
        """The first sentence of the caption."""
        return self.caption.partition(". ")[0]


def draw(report: Report, folder: Path, dark: bool) -> dict[str, Drawing]:
    """Draw what a report has to show: name -> drawing, in its order.

    folder: the benchmark's, to which the paths of pictures are relative.
    """
    ink = INK[dark]
    figures: dict[str, Callable[[], Captioned | None]] = {
        "score_gain": lambda: score_against_gain(report, ink),
        "score_steps": lambda: _curves(report, ink, against_time=False),
        "score_seconds": lambda: _curves(report, ink, against_time=True),
        "every_run": lambda: _dots(report, ink),
        "samples": lambda: _samples(report, folder),
        "gain": lambda: gains_over_steps(report, ink),
        **{name: lambda it=it: _spectra(report, ink, it) for name, it in SPECTRA.items()},
    }
    with rc_context(theme(ink, PAPER[dark])):
        drawn = ((name, figure()) for name, figure in figures.items())
        return {name: Drawing(as_png(it[0]), it[1]) for name, it in drawn if it is not None}


def _curves(report: Report, ink: str, against_time: bool) -> Captioned | None:
    """The score that was followed during training, against steps or against time."""
    name, metric, done = report.curve_name, report.curve_metric, finished_runs(report)
    series = {
        index: [[(p.step, p.seconds, p.value) for p in run.result.curve] for run in runs]
        for index, runs in done.items()
    }
    found = stacks(series)
    if not found:
        return None
    longest = max(stack[:, -1, 1].mean() for stack in found.values())
    unit, seconds = next((u, s) for u, s in TIMES.items() if longest >= 3 * s or s == 1)
    groups = {key: [i for i in group if i in found] for key, group in grouped(report).items()}
    groups = {key: group for key, group in groups.items() if group}
    figure, panels = with_panels(len(groups), 4 if len(groups) == 1 else 2.6)
    runs, scale = [run for runs in done.values() for run in runs], metric.scale
    values = [scale * point.value for run in runs for point in run.result.curve]
    sound = [run for run in runs if not run.has_collapsed]
    near = [scale * point.value for run in sound for point in run.result.curve]
    floor = scale * report.floor.get(name, math.nan)
    for axes, (key, group) in zip(panels, groups.items(), strict=True):
        for index in group:
            stack = found[index]
            x = stack[:, :, 1].mean(0) / seconds if against_time else stack[0, :, 0]
            axis = report.compared_axis
            label = label_of(report, axis, report.cells[index].labels[axis])
            label = label if len(groups) > 1 else full_label(report, index)
            look = style(place_of(report, index), ink)
            draw_band(axes, x, scale * stack[:, :, 2], look, label)
        low, high = set_frame(axes, "y", values, near, metric.percent)
        if low < floor < high:
            draw_reference(axes, "y", floor, FLOOR)
        axes.set_title(key, fontsize="medium")
        axes.set_xlabel(f"time of training ({unit})" if against_time else "steps of training")
    for axes in panels[::3]:
        axes.set_ylabel(fill(axis_label(name, metric), 40 if len(groups) == 1 else 24))
    draw_legend(figure, panels)
    caption = f"Training: {name} against {'time' if against_time else 'steps'}. {BANDS}"
    if floor <= low or floor >= high:
        caption += f" The floor, real against real, is out of the frame: {number(floor)}."
    if against_time:
        caption += " The time at a step is its mean over the seeds, without scores and pictures."
    if len(sound) < len(runs):
        caption += " Collapsed runs are in lines and bands and may leave the frame."
    return figure, caption


def _dots(report: Report, ink: str) -> Captioned:
    """The primary score of every run, with the mean and t-interval of its cell."""
    name, at, metric, done = (
        report.score.name,
        report.score.at,
        report.metric,
        finished_runs(report),
    )
    scale = metric.scale
    figure, (axes,) = with_panels(1, 1 + 0.5 * len(done))
    scores, intervals, near = {}, {}, []
    for index, runs in done.items():
        scores[index] = [(scale * run.result.scores[at][name], run.has_collapsed) for run in runs]
        ends = report.cells[index].scores[at][name].interval
        intervals[index] = [scale * end for end in ends or []]
        near += [value for value, collapsed in scores[index] if not collapsed]
    values = [value for found in scores.values() for value, _ in found]
    reach = [end for ends in intervals.values() for end in ends if end > 0 or min(values) <= 0]
    frame = set_frame(axes, "x", values + reach, near, metric.percent)
    for row, index in enumerate(done):
        look = look_of(report, index, ink)
        if intervals[index]:
            line = np.clip(intervals[index], *frame)
            axes.plot(line, [row + 0.18] * 2, color=look["color"], linewidth=2)
            middle = sum(intervals[index]) / 2  # the mean, by which the interval is symmetric
            axes.plot(middle, row + 0.18, "|", color=look["color"], markersize=13, mew=2)
        for value, collapsed in scores[index]:
            marker = "x" if collapsed else look["marker"]
            axes.plot(value, row - 0.12, marker, color=look["color"], alpha=0.8)
        write_beyond(axes, row - 0.12, [value for value, _ in scores[index]], frame)
    floor = report.floor.get(name)
    if floor is not None and frame[0] < scale * floor < frame[1]:
        draw_reference(axes, "x", scale * floor, FLOOR)
        draw_legend(figure, [axes])
    axes.set_yticks(range(len(done)), [fill(full_label(report, index), 32) for index in done])
    axes.set_ylim(len(done) - 0.5, -0.5)
    axes.set_xlabel(axis_label(report.score_name, metric))
    return figure, (
        f"The {report.score_name} of every run: a marker for each seed, a cross where the run "
        "collapsed. The line is the 95 % t-interval of the mean, the tick the mean. Runs beyond "
        "the frame are written beside it; intervals may go on there."
    )


def _spectra(report: Report, ink: str, spectrum: Spectrum) -> Captioned | None:
    """What is known of the singular values of layers over training, one panel a layer."""
    norm = spectrum.norm
    done = finished_runs(report)
    found = [run.result.norms.get(norm, {}) for runs in done.values() for run in runs]
    # A layer's name and its position in the network that has it.
    positions = {layer: n for of_run in found[::-1] for n, layer in enumerate(of_run, 1)}
    names = dict.fromkeys(layer for of_run in found for layer in of_run)
    known = {layer: stacks(_series(done, norm, layer)) for layer in names}
    layers = [layer for layer, of_cells in known.items() if of_cells]
    if not layers:
        return None
    shown = layers
    if len(layers) > PANELS:
        shown = [layers[round(i * (len(layers) - 1) / (PANELS - 1))] for i in range(PANELS)]
    figure, panels = with_panels(len(shown), 2.2)
    for panel, layer in zip(panels, shown, strict=True):
        values = []
        for index, stack in known[layer].items():
            x, y = stack[0, :, 0], stack[:, :, 1]
            draw_band(panel, x, y, look_of(report, index, ink), full_label(report, index))
            values += y.flatten().tolist()
        set_frame(panel, "y", values, values, percent=False)
        title = f"conv {positions[layer]} ({layer})"
        panel.set_title(fill(title, 24), fontsize="medium")
    for panel in panels[-3:]:
        panel.set_xlabel("steps of training")
    for panel in panels[::3]:
        panel.set_ylabel(spectrum.name)
    draw_legend(figure, panels)
    what = "every layer" if shown == layers else f"{PANELS} of {len(layers)} layers, first to last,"
    note = f"{spectrum.note} " if spectrum.note else ""
    return figure, f"The {spectrum.told} of {what} over training. {note}{BANDS}"


def _series(done: dict[int, list[RunRecord]], norm: str, layer: str) -> dict[int, Runs]:
    """The place of a cell -> steps and values of a layer, of each of its runs."""
    measured = {
        index: [run.result.norms.get(norm, {}).get(layer, ()) for run in runs]
        for index, runs in done.items()
    }
    return {
        index: [[(point.step, point.value) for point in points] for points in of_cell]
        for index, of_cell in measured.items()
    }


def _samples(report: Report, folder: Path) -> Captioned | None:
    """The pictures of one seed, which show the same latents, side by side."""
    found: dict[int, dict[int, RunRecord]] = {seed: {} for seed in report.seeds}
    for index, runs in finished_runs(report).items():
        for run in runs:
            if run.result.picture and (folder / run.result.picture).is_file():
                found[run.seed][index] = run
    seed = max(found, key=lambda seed: len(found[seed]))  # the first of those with the most
    if not found[seed]:
        return None
    name, at, scale = report.score.name, report.score.at, report.metric.scale
    figure, panels = with_panels(len(found[seed]), 2.7)
    for panel, (index, run) in zip(panels, found[seed].items(), strict=True):
        panel.set_axis_off()
        panel.imshow(imread(folder / run.result.picture), cmap="gray", interpolation="nearest")
        title = f"{fill(report.cells[index].name, 26)}\n{name} "
        title += number(scale * run.result.scores[at][name]) + ", collapsed" * run.has_collapsed
        panel.set_title(title, fontsize="medium")
    caption = f"Samples at the end of training, seed {seed}: the same latents in every grid."
    missing = [cell.name for index, cell in enumerate(report.cells) if index not in found[seed]]
    return figure, caption + (f" None of {'; '.join(missing)}." if missing else "")
