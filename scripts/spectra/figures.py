"""The pictures of spectra: a line for each method, the mean and the range over its networks."""

import math
from collections.abc import Callable, Sequence
from textwrap import fill

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from convnorm.experiment.report.canvas import (
    as_png,
    draw_band,
    draw_legend,
    set_frame,
    stacked,
    theme,
    with_panels,
)
from convnorm.experiment.report.formats import number
from convnorm.experiment.report.palette import INK, PAPER, places, style
from spectra.records import Layer, Measured, Stage

Methods = dict[str, list[Measured]]
Looks = dict[str, dict[str, str]]

WHOLE = "whole layer"
# Stage -> the title of its panel; what a layer is in the end comes last and is in all methods.
TITLES = {
    "conv": "convolution alone",
    "gain": "with the gain",
    "affine": "with gain and affine",
    WHOLE: "whole layer, on a ring",
}
LAYERS = 3  # whose norms over training are drawn
TICKS = 12


def draw(methods: Methods, layer: str | None) -> dict[str, bytes]:
    """Draw what there is to show: name of a file -> PNG. layer: whose values are drawn sorted."""
    found: dict[str, bytes] = {}
    with rc_context(theme(INK[False], PAPER[False])):
        kinds = [runs[0].kind for runs in methods.values()]
        looks = {method: style(place) for method, place in zip(methods, places(kinds), strict=True)}
        found["norms.png"] = _norms(methods, looks)
        found["conditions.png"] = _conditions(methods, looks)
        if layer is not None:
            found["values.png"] = _values(methods, looks, layer)
        if any(run.norms for runs in methods.values() for run in runs):
            found["training.png"] = _training(methods, looks)
        if all(run.bound is not None for runs in methods.values() for run in runs):
            found["bound.png"] = _bound(methods, looks)
    return found


def _stage(layer: Layer, name: str) -> Stage | None:
    return layer.whole if name == WHOLE else layer.stage(name)


def _shown(methods: Methods, name: str) -> list[int]:
    """Places of the layers that have a stage, in the networks of some method."""
    layers = [runs[0].layers for runs in methods.values()]
    return [i for i in range(len(layers[0])) if any(_stage(each[i], name) for each in layers)]


def _stages(methods: Methods) -> list[str]:
    return [name for name in TITLES if _shown(methods, name)]


def _norms(methods: Methods, looks: Looks) -> bytes:
    """The norm of each layer on a ring, a panel for each stage, and with the padding it has.

    The two differ where maps are small, by a factor of two and more on 4 x 4 pixels.
    """
    wanted = [
        (TITLES[name], lambda layer, name=name: _of_stage(layer, name, "largest"))
        for name in _stages(methods)
    ]
    wanted.append(("whole layer, padded as it is", lambda layer: layer.below))
    figure, panels = with_panels(len(wanted), 2.7, columns=2)
    pairs = list(zip(wanted, panels, strict=True))
    values = [v for (_, get), panel in pairs for v in _over_layers(panel, methods, looks, get)]
    for (title, _), panel in pairs:
        panel.set_title(title, fontsize="medium")
        _log(panel, values)
    for panel in panels[::2]:
        panel.set_ylabel("largest singular value")
    _name_layers(panels, methods)
    _legend(figure, panels)
    return as_png(figure)


def _conditions(methods: Methods, looks: Looks) -> bytes:
    """Condition number and ratio of percentiles, of the convolution alone and of the whole."""
    figure, panels = with_panels(4, 2.8, columns=2)
    rows = (("condition", "condition number"), ("spread", "99th / 1st percentile"))
    for row, (key, told) in enumerate(rows):
        pairs = list(zip(("conv", WHOLE), panels[2 * row :], strict=False))
        values = [
            value
            for name, panel in pairs
            for value in _over_layers(
                panel, methods, looks, lambda layer, name=name, key=key: _of_stage(layer, name, key)
            )
        ]
        for name, panel in pairs:
            panel.set_title(TITLES[name], fontsize="medium")
            _log(panel, values)
        pairs[0][1].set_ylabel(told)
    _name_layers(panels, methods)
    _legend(figure, panels)
    return as_png(figure)


def _of_stage(layer: Layer, name: str, key: str) -> float | None:
    stage = _stage(layer, name)
    return None if stage is None else getattr(stage.values, key)


def _over_layers(
    panel: Axes, methods: Methods, looks: Looks, get: Callable[[Layer], float | None]
) -> list[float]:
    """Draw a number over the layers that have it; returns all that are finite.

    What is not finite, such as a condition number that rounding hides, leaves a gap.
    """
    drawn = []
    for method, runs in methods.items():
        y = np.array([[get(layer) for layer in run.layers] for run in runs], dtype=float)
        y[~np.isfinite(y) | (y <= 0)] = math.nan
        if np.isfinite(y).any():
            x = np.arange(1, y.shape[1] + 1)
            draw_band(panel, x, y, looks[method], _label(method, runs), geometric=True)
            drawn += y[np.isfinite(y)].tolist()
    return drawn


def _label(method: str, runs: Sequence[Measured]) -> str:
    return f"{fill(method, 40)} (n\u00a0=\u00a0{len(runs)})"


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Below all panels; none where no value is finite, as of a network that diverged."""
    if any(panel.get_legend_handles_labels()[0] for panel in panels):
        draw_legend(figure, panels)


def _log(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis for positive values of any span."""
    panel.set_yscale("log")
    values = [value for value in values if 0 < value < math.inf]
    if not values:
        return
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = 0.06 * (high - low) or 0.05
    panel.set_ylim(10 ** (low - margin), 10 ** (high + margin))
    axis = panel.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2.5 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _name_layers(panels: Sequence[Axes], methods: Methods) -> None:
    layers = next(iter(methods.values()))[0].layers
    every = math.ceil(len(layers) / TICKS)
    shown = range(0, len(layers), every)
    for panel in panels:
        panel.set_xticks([i + 1 for i in shown], [layers[i].name for i in shown])
        panel.tick_params("x", labelsize="x-small", rotation=0 if len(shown) <= 4 else 60)
        panel.set_xlim(0.7, len(layers) + 0.3)


def _values(methods: Methods, looks: Looks, layer: str) -> bytes:
    """All singular values of one layer, from the largest to the smallest."""
    index = [each.name for each in next(iter(methods.values()))[0].layers].index(layer)
    stages = [name for name in _stages(methods) if index in _shown(methods, name)]
    figure, panels = with_panels(len(stages), 3.0, columns=2)
    for name, panel in zip(stages, panels, strict=True):
        values = []
        for method, runs in methods.items():
            found = [_stage(run.layers[index], name) for run in runs]
            if all(stage is not None for stage in found):
                y = np.array([stage.curve for stage in found])
                y[y <= 0] = math.nan
                x = np.linspace(0, 100, y.shape[1])
                draw_band(panel, x, y, looks[method], _label(method, runs), geometric=True)
                values += y[np.isfinite(y)].tolist()
        panel.set_title(TITLES[name], fontsize="medium")
        _log(panel, values)
        panel.set_xlabel("place among the values (%)")
    for panel in panels[::2]:
        panel.set_ylabel(f"singular value of {layer}")
    _legend(figure, panels)
    return as_png(figure)


def _training(methods: Methods, looks: Looks) -> bytes:
    """The norms that the runs have logged, of the first, a middle and the last layer."""
    logged = [run.norms for runs in methods.values() for run in runs if run.norms]
    names = list(logged[0])
    chosen = list(dict.fromkeys(names[round(i * (len(names) - 1) / 2)] for i in range(LAYERS)))
    figure, panels = with_panels(len(chosen), 2.8)
    for layer, panel in zip(chosen, panels, strict=True):
        values = []
        for method, runs in methods.items():
            series = [run.norms[layer] for run in runs if layer in run.norms]
            points = [[(point.step, point.value) for point in of_run] for of_run in series]
            stack = stacked(points) if points else None
            if stack is not None:
                x, y = stack[0, :, 0], stack[:, :, 1]
                draw_band(panel, x, y, looks[method], _label(method, runs))
                values += y.flatten().tolist()
        if values:
            set_frame(panel, "y", values, values, percent=False)
        panel.set_title(fill(layer, 24), fontsize="medium")
        panel.set_xlabel("steps of training")
    panels[0].set_ylabel("operator norm, zero padding")
    _legend(figure, panels)
    return as_png(figure)


def _bound(methods: Methods, looks: Looks) -> bytes:
    """What the network can stretch a change by, beside what it does at test images."""
    figure, (panel,) = with_panels(1, 3.4)
    shown = []
    for place, (method, runs) in enumerate(methods.items()):
        colour = looks[method]["color"]
        for shift, get, alpha in ((-0.2, "jacobian", 1.0), (0.2, "bound", 0.35)):
            values = [getattr(run, get) for run in runs]
            mean = sum(values) / len(values)
            ends = [[mean - min(values)], [max(values) - mean]]
            panel.bar(place + shift, mean, 0.38, color=colour, alpha=alpha, yerr=ends, capsize=3)
            beside = {"textcoords": "offset points", "ha": "center", "fontsize": "small"}
            panel.annotate(number(mean), (place + shift, max(values)), (0, 3), **beside)
            shown += values
    _log(panel, shown)
    positive = [value for value in shown if 0 < value < math.inf] or [1.0]
    panel.set_ylim(min(positive) / 3, max(positive) * 3)
    panel.set_xticks(range(len(methods)), [fill(_label(*it), 18) for it in methods.items()])
    panel.tick_params("x", labelsize="small")
    images = next(iter(methods.values()))[0].images
    panel.set_ylabel("change of output / change of input", fontsize="small")
    panel.set_title(
        f"left: largest Jacobian norm over {images} test images, from below\n"
        "right: bound from the norms of the layers, from above",
        fontsize="small",
    )
    return as_png(figure)
