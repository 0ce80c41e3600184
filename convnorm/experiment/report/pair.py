"""Two runs side by side: as text for a terminal, as one page, and as one picture."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.image import imread

from convnorm.experiment import files
from convnorm.experiment.errors import InputError
from convnorm.experiment.pairs import Pair, Side
from convnorm.experiment.records import Metric
from convnorm.experiment.report.canvas import as_png, draw_legend, set_frame, theme, with_panels
from convnorm.experiment.report.figures import Drawing
from convnorm.experiment.report.formats import number
from convnorm.experiment.report.gains import gain_of_pair
from convnorm.experiment.report.page import as_html
from convnorm.experiment.report.palette import INK, PAPER, places, style
from convnorm.experiment.report.tables import aligned, escaped, markdown

SUFFIXES = (".png", ".html")
DIGITS = 4
Table = Callable[[Sequence[str], list[list[str]], int], str]


def check_out(file: Path) -> None:
    """Raise an InputError for a file that `write` does not write."""
    if file.suffix not in SUFFIXES:
        raise InputError(f"--out: {file} is not allowed; expected a name in .png or .html")


def text(pair: Pair) -> str:
    """All that is known of the two runs, for a terminal."""
    return "\n\n".join(_blocks(pair, aligned, str))


def write(pair: Pair, file: Path) -> None:
    """Write a picture, or a page that holds the text and the picture, by the suffix of the file.

    Raises InputError where there is nothing to draw for a picture, or the file cannot be written.
    """
    light = draw(pair, dark=False)
    if file.suffix == ".png":
        if light is None:
            raise InputError(f"--out: {file}: no curve and no samples to draw; expected .html")
        content = light.png
    else:
        blocks = [f"# {escaped(_title(pair))}", *_blocks(pair, markdown, escaped)]
        if light is not None:
            blocks.insert(
                2, f"![{escaped(light.title)}](figures/pair.png)\n\n{escaped(light.caption)}"
            )
        drawings = [{} if light is None else {"pair": it} for it in (light, draw(pair, dark=True))]
        content = as_html(_title(pair), "\n\n".join(blocks) + "\n", *drawings).encode()
    files.write(file, lambda opened: opened.write(content))


def _title(pair: Pair) -> str:
    return f"{pair.a.kind} (A) and {pair.b.kind} (B)"


def _blocks(pair: Pair, table: Table, told: Callable[[str], str]) -> Iterator[str]:
    """The parts of the text; told: turns a sentence into the language of the text."""
    yield "\n".join(f"- {name}: {told(str(side.folder))}" for name, side in _sides(pair).items())
    if pair.settings:
        rows = [[key, *map(_shown, values)] for key, values in pair.settings.items()]
        yield table(["config", "A", "B"], rows, 3)
    else:
        yield told("The configs are the same.")
    yield table(["score", "A", "B", "B - A", "better"], list(_scores(pair)), 1)
    gains = pair.a.plateau_gain, pair.b.plateau_gain
    if None not in gains:
        yield told(gain_of_pair(gains))
    yield told("One run each: nothing here says whether other seeds would differ in the same way.")
    if pair.tests:
        head = ["McNemar's exact test", "images", "only A right", "only B right", "p", "p (Holm)"]
        rows = []
        for it in pair.tests:
            counts = map(str, (it.images, it.only_a, it.only_b))
            rows.append([f"{it.score}, {it.when}", *counts, number(it.p), number(it.p_holm)])
        yield table(head, rows, 1)
        yield told(
            "The test speaks of these two networks on other images, not of their normalizers: "
            "other seeds give other networks."
        )
    doubts = [f"DOUBT: {name}: {it}" for name, side in _sides(pair).items() for it in side.doubts]
    if remarks := [*pair.notes, *doubts]:
        yield "\n".join(f"- {told(remark)}" for remark in remarks)


def _sides(pair: Pair) -> dict[str, Side]:
    return {"A": pair.a, "B": pair.b}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _scores(pair: Pair) -> Iterator[list[str]]:
    """The scores that both runs have, with their difference and whose is better."""
    for when, scores in pair.a.scores.items():
        others = pair.b.scores.get(when, {})
        for name in [name for name in scores if name in others]:
            metric = pair.metrics[name]
            here, there = (metric.scale * each[name] for each in (scores, others))
            unit = " (%)" if metric.percent else ""
            values = [number(value, DIGITS) for value in (here, there, there - here)]
            yield [f"{name}{unit}, {when}", *values, _better(here, there, metric)]


def _better(here: float, there: float, metric: Metric) -> str:
    if here == there:
        return "same"
    return "A" if (here < there) == (metric.better == "lower") else "B"


# ------------------------------------------------------------------------------------ the picture


def draw(pair: Pair, dark: bool) -> Drawing | None:
    """Draw the curves of training over steps and time, and the samples; None without any."""
    curves, samples = _has_curves(pair), [it.picture for it in _sides(pair).values()]
    if not curves and not any(samples):
        return None
    with rc_context(theme(INK[dark], PAPER[dark])):
        figure, panels = with_panels(2 * curves + 2 * any(samples), 3.2, columns=2)
        captions = []
        if curves:
            _draw_curves(panels[:2], pair, INK[dark])
            captions.append(f"Training: {pair.curve_name} against steps and time.")
        if any(samples):
            for panel, (name, side) in zip(panels[-2:], _sides(pair).items(), strict=True):
                _draw_samples(panel, f"{name}: {_label(side)}", side.picture)
            captions.append("Samples at the end of training.")
        if curves:
            draw_legend(figure, panels[:1])
        return Drawing(as_png(figure), " ".join(captions))


def _has_curves(pair: Pair) -> bool:
    return pair.curve_name is not None and bool(pair.a.curve and pair.b.curve)


def _label(side: Side) -> str:
    return f"{side.kind}, seed {side.seed}"


def _draw_curves(panels: Sequence[Axes], pair: Pair, ink: str) -> None:
    metric = pair.metrics[pair.curve_name]
    looks = [style(place, ink) for place in places([pair.a.kind, pair.b.kind])]
    values = [metric.scale * it.value for side in (pair.a, pair.b) for it in side.curve]
    for panel, axis in zip(panels, ("step", "seconds"), strict=True):
        for look, (name, side) in zip(looks, _sides(pair).items(), strict=True):
            x = [getattr(point, axis) for point in side.curve]
            y = [metric.scale * point.value for point in side.curve]
            every = max(1, len(x) // 8)
            label = f"{name}: {_label(side)}"
            panel.plot(x, y, markersize=5, markevery=every, label=label, **look)
        set_frame(panel, "y", values, values, metric.percent)
    panels[0].set_xlabel("steps of training")
    panels[1].set_xlabel("time of training (s)")
    unit = " (%)" if metric.percent else ""
    panels[0].set_ylabel(f"{pair.curve_name}{unit},\n{metric.better} is better")


def _draw_samples(panel: Axes, title: str, picture: Path | None) -> None:
    panel.set_axis_off()
    if picture is None:
        title += "\nno samples"
    else:
        panel.imshow(imread(picture), cmap="gray", interpolation="nearest")
    panel.set_title(title, fontsize="medium")
