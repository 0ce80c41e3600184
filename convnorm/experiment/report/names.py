"""What the cells of a report are called: their values, with the axis where it helps."""

import json
from dataclasses import replace
from typing import Any

from convnorm.experiment.records import Report

KIND = "normalizer.kind"
SCALE = "normalizer.scale"
GENERATOR = "normalizer.generator"
GROUPED = ("kind", "name")  # last parts of fields that only their group explains: noise.kind


def kind_of(report: Report, axis: str, label: str) -> str | None:
    """The kind of normalizer that a value of an axis stands for; None where it says nothing of it.

    The value may be one of several fields that it sets, or the kind itself.
    """
    if axis == KIND:
        return label
    return _fields(report, axis, label).get(KIND)


def scale_of(report: Report, axis: str, label: str) -> str | None:
    """The normalizer.scale that a value of an axis sets; None where it sets none."""
    if axis == SCALE:
        return label
    fields = _fields(report, axis, label)
    return json.dumps(fields[SCALE]) if SCALE in fields else None


def beside_scale(report: Report, axis: str, label: str) -> str | None:
    """What a value of an axis is but for its normalizer.scale; None where it is nothing else.

    Values of one axis for which it is equal differ in the scale alone.
    """
    fields = _fields(report, axis, label)
    rest = {key: value for key, value in fields.items() if key != SCALE}
    if axis == SCALE or (fields and not rest):
        return None
    return json.dumps(rest, sort_keys=True) if fields else label


def _fields(report: Report, axis: str, label: str) -> dict[str, Any]:
    """The fields that a value with a label of the grid's own sets; empty for a plain value."""
    values = report.grid["axes"][axis]
    return values[label] if isinstance(values, dict) else {}


def label_of(report: Report, axis: str, label: str) -> str:
    """Return a value as it is read: alone where it says what it is, else behind its axis.

    A normalizer says it, as reports are about these, and so does a word that a field takes. A
    number does not, nor "none", what stands on another axis too, or a label of the grid's own. The
    generator's kind would pass for that of the discriminator.
    """
    if kind_of(report, axis, label) is not None:
        return label
    elsewhere = any(label in labels for other, labels in report.axes.items() if other != axis)
    has_fields = isinstance(report.grid["axes"][axis], dict)
    alone = _is_word(label) and label != "none" and not elsewhere and not has_fields
    alone = alone and axis != GENERATOR
    return label if alone else f"{_short(report, axis)}: {label}"


def _is_word(label: str) -> bool:
    """Whether it is no number, list, true, false or null."""
    try:
        json.loads(label)
    except json.JSONDecodeError:
        return True
    return False


def _short(report: Report, axis: str) -> str:
    """The part of an axis's name that tells it from the others."""
    short = {each: _last(each) for each in report.axes}
    return axis if list(short.values()).count(short[axis]) > 1 else short[axis]


def _last(axis: str) -> str:
    *groups, last = axis.split(".")
    return groups[-1] if groups and last in GROUPED else last


def spelled_out(report: Report) -> Report:
    """Return the report with cells that are called as `label_of` has it.

    The record keeps the names of the folders, which stay when the rule here changes.
    """
    names = {
        cell.name: " / ".join(label_of(report, *value) for value in cell.labels.items())
        for cell in report.cells
    }
    labels = {cell.name: cell.labels[report.compared_axis] for cell in report.cells}
    reference = report.reference
    if report.comparisons:
        against = labels[report.comparisons[0].against]
        reference = label_of(report, report.compared_axis, against)
    return replace(
        report,
        reference=reference,
        cells=tuple(replace(cell, name=names[cell.name]) for cell in report.cells),
        runs=tuple(replace(run, cell=names[run.cell]) for run in report.runs),
        comparisons=tuple(
            replace(test, cell=names[test.cell], against=names[test.against])
            for test in report.comparisons
        ),
        matched=tuple(replace(match, cell=names[match.cell]) for match in report.matched),
        mcnemar=tuple(
            replace(test, cell=names[test.cell], against=names[test.against])
            for test in report.mcnemar
        ),
    )
