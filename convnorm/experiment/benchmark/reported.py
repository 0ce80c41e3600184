"""Finished runs of which only a report is at hand: their numbers, without weights and pictures.

So a published table can be added to without training all of it again. Which run it is, and on which
data, stands in the report: `merge` checks that as for a run that has files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from convnorm.experiment import codec, files
from convnorm.experiment.benchmark.grid import Run
from convnorm.experiment.benchmark.pipeline import Result
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Metric, Report, RunRecord
from convnorm.experiment.run import checkpoint

REPORT = "results.json"
REPORTED = "reported.json"
Place = tuple[str, int]  # name of a cell, seed


@dataclass(frozen=True)
class ReportedRun:
    """A finished run, named as it is here, with what its report says of all its runs."""

    run: RunRecord
    metrics: dict[str, Metric]
    curve_name: str
    protocol: dict[str, Any]
    floor: dict[str, float]

    @property
    def result(self) -> Result:
        """As it was read where the run was trained, without pictures and answers to images."""
        found = self.run.result
        return Result(
            metrics=self.metrics,
            scores=found.scores,
            selected_step=found.selected_step,
            curve_name=self.curve_name,
            curve=found.curve,
            norms=found.norms,
            protocol=self.protocol,
            floor=self.floor,
            cost=found.cost,
            segments=found.segments,
            versions=found.versions,
            doubts=found.doubts,
            learned=not found.collapsed,
            gain=found.gain,
            data_sha256=self.run.data_sha256,
        )

    def differences(self, run: Run) -> list[str]:
        """In what it is not `run`."""
        there = checkpoint.completed(self.run.config or {}, run.config)
        return checkpoint.other_values(there, checkpoint.plain(run.config), type(run.config))


@dataclass(frozen=True)
class Reported:
    """The content of reported.json, in the folder of a benchmark."""

    FORMAT: ClassVar = "convnorm-suite/reported/1"

    runs: tuple[ReportedRun, ...]


def read(folder: Path) -> dict[Place, ReportedRun]:
    """Return the runs that a benchmark took over from reports."""
    expected = "what --merge has written, or no file, which trains these runs anew"
    content = codec.read_if_there(Reported, folder / REPORTED, expected)
    runs = () if content is None else content.runs
    return {(each.run.cell, each.run.seed): each for each in runs}


def add(folder: Path, run: ReportedRun) -> None:
    """Add a run to reported.json, atomically."""
    runs = (*read(folder).values(), run)
    files.write_json(folder / REPORTED, codec.to_json(Reported(runs)))


def check(folder: Path, runs: Sequence[Run]) -> None:
    """Raise an InputError where a run of this name was taken over that has another config."""
    there = read(folder)
    for run in runs:
        found = there.get((run.cell.name, run.seed))
        if found and (differing := found.differences(run)):
            raise InputError(
                f"{folder / REPORTED}: holds another run as ({run.name}): {'; '.join(differing)}; "
                "expected that of the benchmark, another --folder, or this file moved away"
            )


def of_report(report: Report, file: Path) -> Iterator[ReportedRun]:
    """All runs of a report that are done. file: its results.json."""
    for run in report.done:
        yield ReportedRun(
            run=replace(run, taken_from=str(file), result=replace(run.result, picture=None)),
            metrics={**report.metrics, report.curve_name: report.curve_metric},
            curve_name=report.curve_name,
            protocol=report.protocol,
            floor=report.floor,
        )
