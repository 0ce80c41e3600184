"""Takes over finished runs from other folders: those of other machines, or of other grids.

A run is known by its config, whatever its folder is called there. What was trained on other data or
measured in another way is refused. Of a folder that has a report and no runs any more, as those in
results/ are, the numbers are taken over.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from convnorm.experiment import codec, files
from convnorm.experiment.benchmark import attempt_records, reported, targets
from convnorm.experiment.benchmark.attempt import is_trained
from convnorm.experiment.benchmark.attempt_records import ELSEWHERE
from convnorm.experiment.benchmark.copying import copy_folder, is_used
from convnorm.experiment.benchmark.grid import Benchmark, Run, slug_of
from convnorm.experiment.benchmark.pipeline import Result
from convnorm.experiment.benchmark.plan import GRID, survey
from convnorm.experiment.benchmark.reported import REPORT, REPORTED, ReportedRun
from convnorm.experiment.benchmark.soundness import agree, finite
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Match, Report
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.locking import is_held, locked

Outcome = Literal["taken over", "here already", "not finished", "no run of this grid", "refused"]
MOST_KEYS = 3  # in which a run differs, that are told


@dataclass(frozen=True)
class Found:
    """A run that was found elsewhere, and what became of it.

    source: its folder, or the file of a report, where it is called `name`. why: in a sentence, or
    "".
    """

    source: Path
    outcome: Outcome
    why: str
    name: str = ""

    def __str__(self) -> str:
        why = " ".join(self.why.removeprefix(f"{self.source}: ").split())
        where = f"{self.source}: {self.name}" if self.name else f"{self.source}"
        return f"{where}: {self.outcome}" + (f": {why}" if why else "")


def below(folders: Sequence[Path], name: str, but: Path) -> list[Path]:
    """Return the folders at or below `folders` that hold a file of this name.

    but: a folder that is passed over with all that is below, as hidden ones and pilot runs are.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--merge: {folder}: no such folder; expected one with runs")
        for file in sorted(folder.rglob(name)):
            place = file.parent.resolve()
            passed_over = but.resolve() in (place, *place.parents)
            if targets.is_result(file.relative_to(folder)) and not passed_over:
                found.setdefault(place, file.parent)
    return list(found.values())


def _reports(folders: Sequence[Path], but: Path) -> Iterator[tuple[Path, Report]]:
    """The reports at or below `folders` beside which there are no runs. but: see `below`."""
    for folder in below(folders, REPORT, but=but):
        if next(folder.rglob("config.yaml"), None) is None:
            file = folder / REPORT
            yield file, codec.read(Report, file, "the report of a benchmark")


def take_gains(benchmark: Benchmark, folders: Sequence[Path]) -> list[Match]:
    """Keep the factors that were found elsewhere for gains that are still wanted, and return them.

    Raises:
        InputError: A gain was matched to two factors, here and there, or is matched nowhere.
    """
    here, config = benchmark.folder / targets.MATCHED, benchmark.pipeline.config()
    frozen = [(match, here) for match in targets.read(benchmark.folder)]
    taken: list[tuple[Match, Path]] = []
    for place, matches in _matches(folders, but=benchmark.folder):
        for match in matches:
            for before, its_place in frozen + taken:
                same = targets.asked_of(before, config) == targets.asked_of(match, config)
                if same and before.scale != match.scale:
                    raise InputError(
                        f"{place}: {match.cell!r} was matched at {match.scale!r}, and in "
                        f"{its_place} at {before.scale!r}; expected one factor, as runs of two are "
                        "of two grids"
                    )
            taken += [
                (replace(match, cell=goal.cell), place)
                for goal in benchmark.wanted
                if not goal.differences(match)
            ]
    found = {match.cell: match for match, _ in taken}
    if missing := [goal.cell for goal in benchmark.wanted if goal.cell not in found]:
        raise InputError(
            f"--merge: {missing[0]!r} is matched neither here nor there; expected a "
            f"{targets.MATCHED} that has it, or this benchmark without --merge, which matches it"
        )
    with locked(benchmark.folder, "folder"):
        for match in found.values():
            targets.add(benchmark.folder, match)
    return list(found.values())


def _matches(folders: Sequence[Path], but: Path) -> Iterator[tuple[Path, Sequence[Match]]]:
    """The file and the content of every matched.json and report below folders, see `_reports`."""
    for place in below(folders, targets.MATCHED, but=but):
        yield place / targets.MATCHED, targets.read(place)
    for file, report in _reports(folders, but=but):
        yield file, report.matched


def take_runs(benchmark: Benchmark, folders: Sequence[Path]) -> Iterator[Found]:
    """Copy every finished run of the benchmark that is at or below `folders` into its own folder.

    Of runs that only a report knows, the numbers are copied into reported.json. Runs that are here
    stay as they are. Yields what became of each run that was found.

    Raises:
        InputError: There is no run, a report cannot be read, or another process carries out the
            benchmark.
    """
    sources = below(folders, "config.yaml", but=benchmark.folder)
    reports = list(_reports(folders, but=benchmark.folder))
    if not sources and not reports:
        told = ", ".join(map(str, folders))
        raise InputError(f"--merge: {told}: no run; expected runs other than those of this grid")
    with locked(benchmark.folder, "folder"):
        here = _Here(benchmark)
        for source in sources:
            try:
                yield here.take(source)
            except InputError as error:
                yield Found(source, "refused", str(error))
        for file, report in reports:
            for told in reported.of_report(report, file):
                try:
                    yield here.take_reported(file, told, report)
                except InputError as error:
                    yield Found(file, "refused", str(error), told.run.name)


def _check_unused(run: Run) -> None:
    if is_used(run.folder):
        raise InputError(
            f"({run.name}) is begun here in {run.folder}, and is left as it is; expected "
            "that folder moved away, or the benchmark to go on with it"
        )


class _Here:
    """The runs of a benchmark, those that are done and those that can be taken over."""

    def __init__(self, benchmark: Benchmark):
        self._benchmark = benchmark
        self._configs = [(run, checkpoint.plain(run.config)) for run in benchmark.runs]
        self._done = {item.run.name for item in survey(benchmark) if item.state == "done"}
        # What all others must agree with: the name of a run, its result and the hash of its data.
        self._first: tuple[str, Result, str] | None = None

    def take(self, source: Path) -> Found:
        """Take one run over, or say why not; InputError where it cannot be trusted."""
        if is_held(source):
            raise InputError("in use by another process; expected a finished run")
        there = checkpoint.config_of(source)
        if there is None:
            return Found(source, "not finished", "not begun")
        run, left = self._run_of(there)
        if left is not None:
            return Found(source, *left)
        pipeline, grid = self._benchmark.pipeline, self._benchmark.grid
        other = replace(run, folder=source)
        if not is_trained(other):
            return Found(source, "not finished", f"as ({run.name})")
        if pipeline.remaining_evaluations(source, grid.attacks, grid.num):
            return Found(source, "not finished", f"trained as ({run.name}), and not evaluated")
        _check_unused(run)
        self._check(str(source), *self._read(other))
        copy_folder(source, run.folder)
        self._done.add(run.name)
        self._take_records(source, run)
        return Found(source, "taken over", f"as ({run.name})")

    def take_reported(self, file: Path, told: ReportedRun, report: Report) -> Found:
        """Take over what a report says of a run, or say why not; InputError as for `take`."""
        record, grid = told.run, self._benchmark.grid
        if record.config is None or record.data_sha256 is None:
            raise InputError(
                "its report does not tell its config and data; expected a report that does, as "
                "benchmark.py --report makes one where the run is"
            )
        run, left = self._run_of(record.config)
        if left is not None:
            return Found(file, *left, record.name)
        asked = (tuple(grid.attacks), grid.num)
        if asked != (report.attacks, report.grid.get("num")):
            why = "evaluated under other attacks, or on another number of images"
            return Found(file, "not finished", why, record.name)
        _check_unused(run)
        self._check(f"{file}: {record.name}", told.result, record.data_sha256)
        named = replace(record, cell=run.cell.name)
        reported.add(self._benchmark.folder, replace(told, run=named))
        self._done.add(run.name)
        return Found(file, "taken over", f"as ({run.name})", record.name)

    def _run_of(self, config: dict[str, Any]) -> tuple[Run, tuple[Outcome, str] | None]:
        """The run of this config, or the nearest; and what becomes of one that is not taken."""
        there = checkpoint.completed(config, self._benchmark.runs[0].config)
        run, differing = self._nearest(there)
        if differing:
            more = len(differing) - MOST_KEYS
            told = "; ".join(differing[:MOST_KEYS]) + (f"; and {more} more" if more > 0 else "")
            return run, ("no run of this grid", f"the nearest, ({run.name}), has {told}")
        if run.name in self._done:
            here = run.folder if is_trained(run) else self._benchmark.folder / REPORTED
            return run, ("here already", f"({run.name}) in {here}")
        return run, None

    def _nearest(self, there: dict[str, Any]) -> tuple[Run, list[str]]:
        """The run that a config differs least from, and in what."""
        same_seed = [pair for pair in self._configs if pair[0].seed == there.get("seed")]
        pairs = (
            (run, checkpoint.other_values(there, here, type(run.config)))
            for run, here in same_seed or self._configs
        )
        return min(pairs, key=lambda pair: len(pair[1]))

    def _check(self, where: str, result: Result, data: str) -> None:
        """Raise an InputError for a run whose numbers do not belong beside those here.

        where: it was found. data: the SHA-256 of its training data.
        """
        self._first = self._first or self._first_of_done()
        if self._first is None:
            self._first = (where, result, data)
            return
        name, first, its_data = self._first
        if data != its_data:
            raise InputError(
                f"was trained on other data than ({name}): SHA-256 {data[:12]} there, "
                f"{its_data[:12]} here; expected the same images"
            )
        agree({where: result, name: first})

    def _first_of_done(self) -> tuple[str, Result, str] | None:
        """What the first run says that is done and whole."""
        for told in reported.read(self._benchmark.folder).values():
            return told.run.name, told.result, told.run.data_sha256 or ""
        fault = None
        for run in self._benchmark.runs:
            if run.name in self._done:
                try:
                    return (run.name, *self._read(run))
                except InputError as error:
                    fault = fault or error
        if fault is not None:
            raise InputError(f"cannot be compared with the runs here: {fault}")
        return None

    def _read(self, run: Run) -> tuple[Result, str]:
        """The result of a run, and the SHA-256 of its training data."""
        pipeline, last = self._benchmark.pipeline, run.folder / checkpoint.CHECKPOINT
        state = checkpoint.load(last, pipeline.format)
        config, data = state.get("config"), state.get("data_sha256")
        if not isinstance(config, dict) or not isinstance(data, str):
            raise InputError(f"{last}: lacks config or data_sha256; expected those of its run")
        there = json.loads(json.dumps(config))  # tuples are lists, as in config.yaml
        if differing := checkpoint.other_keys(there, run.config):
            raise InputError(
                f"{last}: holds another config than its run folder ({'; '.join(differing)}); "
                "expected the same"
            )
        grid = self._benchmark.grid
        return finite(pipeline.read(run.folder, grid.attacks, grid.num)), data

    def _take_records(self, source: Path, run: Run) -> None:
        """Keep the attempts at a run, and the grid as it was at its first start where none is."""
        place, name = source.parent.parent, source.parent.name
        for record in attempt_records.attempts(place):
            cell, _, seed = record.run.rpartition(", seed ")
            if (slug_of(cell), f"seed{seed}") == (name, source.name):
                taken = replace(record, run=run.name)
                attempt_records.append(self._benchmark.folder, taken, ELSEWHERE)
        grid = self._benchmark.folder / GRID
        if not grid.exists() and (place / GRID).is_file():
            content = files.read(place / GRID)
            files.write(grid, lambda file: file.write(content))
