"""The figure of a ranking: a panel for each score, a line for each change."""

from math import ceil, log10

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from convnorm.experiment.report.canvas import (
    as_png,
    draw_errors,
    draw_legend,
    draw_reference,
    theme,
    with_panels,
)
from convnorm.experiment.report.palette import INK, PAPER, style
from ranking.changes import CHANGES, UNCHANGED
from ranking.records import Ranking, error, line, short


def draw(ranking: Ranking) -> bytes:
    """Return a PNG: each score at the steps of each change, of which step 0 changes nothing."""
    with rc_context(theme(INK[False], PAPER[False])):
        metrics = ranking.setup.metrics
        figure, panels = with_panels(len(metrics), 2.3)
        for axes, (name, metric) in zip(panels, metrics.items(), strict=True):
            _draw_score(axes, ranking, name)
            if metric.better == "lower":
                _spread_out(axes, ranking, name)
            axes.set_title(f"{short(name)}, {metric.better} is better", fontsize="small")
            axes.set_xticks(range(1 + max(len(change.strengths) for change in CHANGES)))
            axes.tick_params(labelsize="small")
        for axes in panels[-3:]:
            axes.set_xlabel("step", fontsize="small")
        draw_legend(figure, panels)
        return as_png(figure)


def _draw_score(axes: Axes, ranking: Ranking, name: str) -> None:
    if name in ranking.setup.expected:
        draw_reference(axes, "y", ranking.setup.expected[name], "expected of equal distributions")
    for index, change in enumerate(CHANGES):
        found = [
            (step, point.scores[name], error(point, name) or 0.0)
            for step, point in enumerate(line(ranking, change))
            if point.scores[name] is not None
        ]
        if found:
            steps, values, errors = zip(*found, strict=True)
            ends = [(v - e, v + e) for v, e in zip(values, errors, strict=True)]
            draw_errors(axes, steps, values, ends, style(index), change.name)


def _spread_out(axes: Axes, ranking: Ranking, name: str) -> None:
    """Make a scale logarithmic above what the unchanged images have, and linear below."""
    (unchanged,) = ranking.of(UNCHANGED.name).values()
    value = unchanged.scores[name]
    if not value:
        return
    least = max(abs(value), error(unchanged, name) or 0.0)
    axes.set_yscale("symlog", linthresh=least, linscale=0.5)
    low, high = axes.get_ylim()
    powers = [10.0**power for power in range(ceil(log10(least)), ceil(log10(high)))]
    below = [0.0] if low < 0 else []
    axes.set_yticks([*below, *powers], [f"{tick:g}" for tick in (*below, *powers)], minor=False)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, 1.2 * high)
