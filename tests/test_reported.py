"""Runs of which only a report is at hand: the same numbers, or a clear no."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_matching import grid, matched
from test_merge import DATA, PIPELINE, finish, merge
from toy import toy

from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.merge import take_gains
from convnorm.experiment.benchmark.plan import check, survey
from convnorm.experiment.benchmark.reported import REPORT, REPORTED
from convnorm.experiment.benchmark.results import gather
from convnorm.experiment.config import to_yaml
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import CurvePoint
from convnorm.experiment.report import page
from convnorm.experiment.report.limits import limits


def _read(folder: Path, attacks: tuple[str, ...], num: int | None):
    """As the toy's, with the data that summary.json names; learned, unless its score is 9."""
    data = json.loads((folder / "summary.json").read_text()).get("data", DATA)
    found = PIPELINE.read(folder, attacks, num)
    return replace(found, data_sha256=data, learned=found.scores["final"]["FD"] != 9)


def machine(folder: Path, **changes: Any) -> Benchmark:
    folder.mkdir(exist_ok=True)
    return replace(toy(folder, **changes), pipeline=replace(PIPELINE, read=_read))


def report_alone(there: Benchmark, folder: Path) -> Path:
    """The report of a benchmark in a folder that has nothing else, as those in results/."""
    page.write(gather(there), there.folder)
    folder.mkdir()
    (there.folder / REPORT).rename(folder / REPORT)
    return folder


@pytest.fixture
def there(tmp_path) -> Benchmark:
    """Another machine that has trained the runs of "good", of which seed 1 learned nothing."""
    found = machine(tmp_path / "b")
    for one, score in zip(found.runs[::2], (5, 9), strict=True):
        finish(one, score=score)
    return found


def told(folder: Path) -> Iterator[dict[str, Any]]:
    """The runs of a report that are done, to be changed; then it is written again."""
    content = json.loads((folder / REPORT).read_text())
    yield from (run for run in content["runs"] if run["result"])
    (folder / REPORT).write_text(json.dumps(content))


def test_a_report_fills_a_table_as_its_runs_would(tmp_path, there):
    here, expected = machine(tmp_path / "a"), gather(there)
    folder = report_alone(there, tmp_path / "published")
    found = merge(here, folder)
    assert [str(each) for each in found] == [
        f"{folder / REPORT}: good (seed {seed}): taken over: as (good, seed {seed})"
        for seed in (0, 1)
    ]
    check(here)
    assert [item.state for item in survey(here)] == ["done", "not begun"] * 2
    for one in here.runs[1::2]:
        finish(one)
    (here.folder / "grid.yaml").write_text(to_yaml(here.grid))
    report = gather(here)
    assert report.changed is None  # the scores that were taken over may be older than the grid
    assert report.cells[0] == expected.cells[0]
    assert report.cells[0].collapsed.count == 1
    for mine, other in zip(report.runs[::2], expected.runs[::2], strict=True):
        assert mine == replace(other, commands=mine.commands, taken_from=str(folder / REPORT))
    assert [comparison.n for comparison in report.comparisons] == [2]
    (sentence,) = (each for each in limits(report) if "taken over" in each)
    assert sentence.startswith(f"2 of 4 runs were taken over from {folder / REPORT}: ")
    assert "done, collapsed, from a report" in page.write(report, here.folder).read_text()
    assert {each.outcome for each in merge(here, folder)} == {"here already"}


def test_a_report_of_a_report_is_as_good(tmp_path, there):
    """What one machine took over, the next one takes over from its report."""
    second, third = machine(tmp_path / "a"), machine(tmp_path / "c")
    merge(second, report_alone(there, tmp_path / "published"))
    expected = gather(second)
    merge(third, report_alone(second, tmp_path / "published2"))
    for mine, other in zip(gather(third).runs, expected.runs, strict=True):
        assert mine.result == other.result


def test_runs_are_taken_from_their_folders_where_these_are_left(tmp_path, there):
    page.write(gather(there), there.folder)
    here = machine(tmp_path / "a")
    assert [each.name for each in merge(here, there.folder)] == ["", ""]
    assert not (here.folder / REPORTED).exists()
    assert all((one.folder / "last.pt").exists() for one in here.runs[::2])


def test_a_run_is_known_by_its_config(tmp_path, there):
    """Whatever its cell is called, and wherever its data were."""
    folder = report_alone(there, tmp_path / "published")
    kinds = {"the good": {"kind": "good", "steps": 4}, "b": {"kind": "b"}}
    here = machine(tmp_path / "a", axes={"kind": kinds}, compare={"axis": "kind", "against": "b"})
    assert {each.outcome for each in merge(here, folder)} == {"taken over"}
    assert [run.cell for run in gather(here).done] == ["the good"] * 2
    others = machine(
        tmp_path / "c", axes={"kind": ["b", "c"]}, compare={"axis": "kind", "against": "b"}
    )
    found = merge(others, folder)
    assert {each.outcome for each in found} == {"no run of this grid"}
    assert found[0].why == "the nearest, (b, seed 0), has kind: 'good' there, 'b' here"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config": None}, "its report does not tell its config and data; expected a report that"),
        ({"data_sha256": None}, "its report does not tell its config and data; expected a report"),
        (
            {"data_sha256": "e" * 64},
            "was trained on other data than .*: SHA-256 eeeeeeeeeeee there",
        ),
    ],
)
def test_a_run_that_cannot_be_trusted_is_refused(tmp_path, there, changes, why):
    folder, here = report_alone(there, tmp_path / "published"), machine(tmp_path / "a")
    finish(here.runs[1])
    for run in told(folder):
        run.update(changes)
    found = merge(here, folder)
    assert {each.outcome for each in found} == {"refused"}
    with pytest.raises(InputError, match=why):
        raise InputError(found[0].why)
    assert not (here.folder / REPORTED).exists()


def test_a_run_that_was_measured_in_another_way_is_refused(tmp_path, there):
    folder, here = report_alone(there, tmp_path / "published"), machine(tmp_path / "a")
    finish(here.runs[1], protocol="fid10k")
    found = merge(here, folder)
    assert {each.outcome for each in found} == {"refused"}
    assert found[0].why == (
        f"({folder / REPORT}: good (seed 0)) and (better, seed 0) were not measured in the same "
        "way, there and here: name: 'toy' there, 'fid10k' here; expected one protocol"
    )


def test_a_run_that_was_begun_here_stays(tmp_path, there):
    folder, here = report_alone(there, tmp_path / "published"), machine(tmp_path / "a")
    here.runs[0].folder.mkdir(parents=True)
    (here.runs[0].folder / "config.yaml").write_text("kind: good\nsteps: 4\nseed: 0\n")
    begun, taken = merge(here, folder)
    assert begun.outcome == "refused"
    assert "is begun here" in begun.why
    assert taken.outcome == "taken over"


def test_a_run_evaluated_on_other_images_is_not_taken(tmp_path, there):
    folder = report_alone(there, tmp_path / "published")
    content = json.loads((folder / REPORT).read_text())
    content["grid"]["num"] = 1000
    (folder / REPORT).write_text(json.dumps(content))
    here = machine(tmp_path / "a")
    assert {each.outcome for each in merge(here, folder)} == {"not finished"}


def test_a_grid_that_changed_since_is_noticed(tmp_path, there):
    merge(machine(tmp_path / "a"), report_alone(there, tmp_path / "published"))
    here = machine(tmp_path / "a", set={"steps": 5})
    with pytest.raises(
        InputError, match=r"reported.json: .* \(good, seed 0\): steps: 4 there, 5 h"
    ):
        check(here)


@pytest.mark.parametrize("content", ["{", '{"format": "convnorm-suite/benchmark/3"}', "[]"])
def test_files_that_are_damaged_are_named(tmp_path, there, content):
    folder, here = report_alone(there, tmp_path / "published"), machine(tmp_path / "a")
    (folder / REPORT).write_text(content)
    with pytest.raises(InputError, match=r"published/results.json: "):
        merge(here, folder)
    here.folder.mkdir(exist_ok=True)
    (here.folder / REPORTED).write_text(content)
    with pytest.raises(InputError, match=r"out/reported.json: "):
        check(here)


def test_a_gain_that_a_report_knows_is_taken_over(tmp_path):
    """And then its runs, which have the factor in their config."""
    folders = {}
    for name in "ab":
        (tmp_path / name).mkdir()
        folders[name] = grid(tmp_path / name)
    matched(folders["b"])
    there = replace(grid(tmp_path / "b"), pipeline=replace(folders["b"].pipeline, read=_read))
    for one in there.runs:
        finish(one)
    published = report_alone(there, tmp_path / "published")
    (taken,) = take_gains(folders["a"], [published])
    assert (taken,) == there.matched
    here = grid(tmp_path / "a")
    assert {each.outcome for each in merge(here, published)} == {"taken over"}
    assert CurvePoint(2, 1.0, 0.0) in gather(here).done[0].result.curve
