"""The cells of a report as figures show them: which, in which groups, and how they look."""

from convnorm.experiment.records import Metric, Report, RunRecord
from convnorm.experiment.report.names import kind_of, label_of
from convnorm.experiment.report.palette import LINES, places, style

NO_BREAK = "\u00a0"
FLOOR = "floor: real against real"
BANDS = "Lines are means over the seeds, bands reach from the smallest value to the largest."


def finished_runs(report: Report) -> dict[int, list[RunRecord]]:
    """Index of a cell -> its finished runs, of the cells that have any."""
    of_cell = [[run for run in report.done if run.cell == cell.name] for cell in report.cells]
    return {index: found for index, found in enumerate(of_cell) if found}


def full_label(report: Report, index: int) -> str:
    """A cell's name, its n and how many of its runs collapsed, the last two in one word."""
    cell = report.cells[index]
    collapsed = f", {cell.collapsed.count} collapsed" if cell.collapsed.count else ""
    return f"{cell.name} {f'(n = {cell.n}{collapsed})'.replace(' ', NO_BREAK)}"


def grouped(report: Report) -> dict[str, list[int]]:
    """Labels of the axes that are not compared -> the indices of the cells that have them."""
    groups: dict[str, list[int]] = {}
    for index, cell in enumerate(report.cells):
        labels = {axis: label_of(report, axis, label) for axis, label in cell.labels.items()}
        rest = [label for axis, label in labels.items() if axis != report.compared_axis]
        groups.setdefault(" / ".join(rest), []).append(index)
    return groups


def place_of(report: Report, index: int) -> int:
    """The place of a cell's value on the compared axis, which has one look in all figures."""
    axis = report.compared_axis
    labels = report.axes[axis]
    found = dict(zip(labels, places([kind_of(report, axis, it) for it in labels]), strict=True))
    return found[report.cells[index].labels[axis]]


def look_of(report: Report, index: int, ink: str) -> dict[str, str]:
    """Colour and marker tell the values of the compared axis apart, the line all others."""
    group = next(i for i, group in enumerate(grouped(report).values()) if index in group)
    turn = {"linestyle": LINES[group % len(LINES)]} if group else {}
    return style(place_of(report, index), ink) | turn


def axis_label(name: str, metric: Metric) -> str:
    return f"{name}{' (%)' if metric.percent else ''}, {metric.better} is better"
