"""Runs of several machines fill one table: the same config, data and protocol, or a clear no."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import SCORED, TINY, run
from test_matching import grid, matched
from toy import TOY, toy

from convnorm.experiment.benchmark import copying
from convnorm.experiment.benchmark.attempt import AttemptRecord
from convnorm.experiment.benchmark.attempt_records import append, attempts
from convnorm.experiment.benchmark.grid import Benchmark, Run
from convnorm.experiment.benchmark.loading import load
from convnorm.experiment.benchmark.merge import Found, take_gains, take_runs
from convnorm.experiment.benchmark.pipeline import Result
from convnorm.experiment.benchmark.plan import survey
from convnorm.experiment.benchmark.results import gather
from convnorm.experiment.config import to_yaml
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.locking import locked
from gan.benchmark import GAN

DATA = "d" * 64


def _read(folder: Path, attacks: tuple[str, ...], num: int | None) -> Result:
    """As the toy's, of the protocol that summary.json names."""
    protocol = json.loads((folder / "summary.json").read_text()).get("protocol", "toy")
    return replace(TOY.read(folder, attacks, num), protocol={"name": protocol})


def _remaining(folder: Path, attacks: tuple[str, ...], num: int | None) -> list[list[str]]:
    return [["evaluate.py"]] if (folder / "not_evaluated").exists() else []


PIPELINE = replace(TOY, read=_read, remaining_evaluations=_remaining)


def machine(folder: Path, **changes: Any) -> Benchmark:
    """The toy grid as another machine, or this one, has it."""
    folder.mkdir(exist_ok=True)
    return replace(toy(folder, **changes), pipeline=PIPELINE)


def finish(one: Run, data: str = DATA, **summary: Any) -> Path:
    """Write what a finished run leaves."""
    (one.folder / "samples").mkdir(parents=True)
    (one.folder / "samples" / "step4.png").write_bytes(b"picture")
    (one.folder / "config.yaml").write_text(to_yaml(one.config))
    (one.folder / "log.jsonl").write_text('{"step": 4}\n')
    (one.folder / "summary.json").write_text(json.dumps({"score": 1 + one.seed, **summary}))
    state = {"format": "toy/1", "config": asdict(one.config), "data_sha256": data, "step": 4}
    checkpoint.save(one.folder / "last.pt", state)
    return one.folder


def merge(benchmark: Benchmark, *folders: Path) -> list[Found]:
    return list(take_runs(benchmark, folders))


def content(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for hidden files."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if not path.name.startswith(".")
    }


def test_two_machines_fill_one_table(tmp_path):
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    for one in here.runs[:2]:
        finish(one)
    for one in there.runs[1:]:
        finish(one)
    before = content(here.runs[1].folder)
    (there.runs[1].folder / "summary.json").write_text('{"score": 7}')
    (there.runs[2].folder / ".lock").touch()
    append(there.folder, AttemptRecord("good, seed 1", "done", "", 9.0, 0.0, 0.0, 1.0))
    found = merge(here, there.folder)
    assert sorted((each.source.parent.name, each.source.name, each.outcome) for each in found) == [
        ("better", "seed0", "here already"),
        ("better", "seed1", "taken over"),
        ("good", "seed1", "taken over"),
    ]
    assert [item.state for item in survey(here)] == ["done"] * 4
    assert content(here.runs[1].folder) == before
    for mine, other in zip(here.runs[2:], there.runs[2:], strict=True):
        assert content(mine.folder) == content(other.folder)
        assert not list(mine.folder.parent.glob(".*"))
    assert not (here.runs[2].folder / ".lock").exists()
    report = gather(here)
    assert [each.attempts for each in report.runs] == [0, 0, 1, 0]
    assert attempts(here.folder) == []  # it tells nothing of this machine's speed
    assert {each.outcome for each in merge(here, there.folder)} == {"here already"}


def test_a_run_is_known_by_its_config_whatever_its_folder_is_called(tmp_path):
    """Also one of another grid, and one that was trained alone."""
    here = machine(
        tmp_path / "a",
        axes={"kind": {"the good": {"kind": "good"}, "b": {"kind": "b"}}},
        compare={"axis": "kind", "against": "b"},
        seeds=[0],
    )
    there = machine(tmp_path / "b", axes={"steps": [4, 5]}, compare={"axis": "steps", "against": 4})
    for one in there.runs:
        finish(one)
    alone = replace(here.runs[1], folder=tmp_path / "runs" / "gan" / "anything" / "seed0")
    finish(alone)
    found = {each.source: each for each in merge(here, there.folder, tmp_path / "runs")}
    assert found[there.runs[0].folder].outcome == "taken over"
    assert found[alone.folder].outcome == "taken over"
    assert str(found[there.runs[1].folder]).endswith(
        "no run of this grid: the nearest, (the good, seed 0), has steps: 5 there, 4 here"
    )
    assert "seed: 1 there, 0 here" in found[there.runs[2].folder].why
    assert [item.state for item in survey(here)] == ["done", "done"]
    assert gather(here).changed is None  # it is not known when this grid was fixed


def test_the_grid_of_the_first_start_comes_along(tmp_path):
    """Else a report would swear that the grid was fixed before its first run."""
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b", seeds=[0])
    finish(there.runs[0])
    (there.folder / "grid.yaml").write_text(to_yaml(there.grid))
    merge(here, there.folder)
    assert "seeds: [0] there, [0, 1] here" in gather(here).changed


def other_data(folder: Path, one: Run) -> None:
    shutil.rmtree(folder)
    finish(one, data="e" * 64)


def other_config(folder: Path, one: Run) -> None:
    state = checkpoint.load(folder / "last.pt", "toy/1")
    checkpoint.save(folder / "last.pt", {**state, "config": {**state["config"], "steps": 9}})


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "outcome", "why"),
    [
        (
            other_data,
            "refused",
            r"other data than \(good, seed 0\): SHA-256 eeeeeeeeeeee there, dd",
        ),
        (
            lambda folder, one: (folder / "summary.json").write_text(
                '{"score": 1, "protocol": "fid10k"}'
            ),
            "refused",
            r"were not measured in the same way, there and here: name: 'fid10k' there, 'toy' here",
        ),
        (other_config, "refused", "last.pt: holds another config than its run folder .steps: 9"),
        (lambda folder, one: (folder / "last.pt").unlink(), "refused", "last.pt: no such checkp"),
        (lambda folder, one: cut_short(folder / "last.pt"), "refused", "last.pt: damaged"),
        (
            lambda folder, one: checkpoint.save(folder / "last.pt", {"format": "toy/0"}),
            "refused",
            "holds 'toy/0'; expected a checkpoint of format 'toy/1'",
        ),
        (
            lambda folder, one: (folder / "summary.json").write_text('{"score": NaN}'),
            "refused",
            "the final FD is nan; expected a number",
        ),
        (
            lambda folder, one: (folder / "config.yaml").write_text("kind: ["),
            "refused",
            "config.yaml: damaged",
        ),
        (
            lambda folder, one: (folder / "config.yaml").write_text("kind: good\n"),
            "no run of this grid",
            r"\(good, seed 0\), has steps: None there, 4 here; seed: None there, 0 here",
        ),
        (lambda folder, one: (folder / "summary.json").unlink(), "not finished", "as .good, seed"),
        (lambda folder, one: (folder / "not_evaluated").touch(), "not finished", "not evaluated"),
    ],
)
def test_what_is_not_the_same_is_not_taken_over(tmp_path, spoil, outcome, why):
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    finish(here.runs[0])
    spoil(finish(there.runs[2]), there.runs[2])
    (found,) = merge(here, there.folder)
    assert found.outcome == outcome
    assert "\n" not in str(found)
    assert re.search(why, str(found)), str(found)
    assert not here.runs[2].folder.exists()


def test_the_first_that_is_taken_over_is_what_the_others_must_agree_with(tmp_path):
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    finish(there.runs[0])
    finish(there.runs[1], data="e" * 64)
    assert sorted(each.outcome for each in merge(here, there.folder)) == ["refused", "taken over"]


def test_a_run_that_is_begun_here_is_left_as_it_is(tmp_path):
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    finish(there.runs[0])
    finish(here.runs[0])
    (here.runs[0].folder / "summary.json").unlink()
    before = content(here.folder)
    (found,) = merge(here, there.folder)
    assert found.outcome == "refused"
    assert f"is begun here in {here.runs[0].folder}, and is left as it is; expected" in found.why
    assert content(here.folder) == before


def test_a_run_that_a_process_holds_is_not_copied_half(tmp_path):
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    with locked(finish(there.runs[0]), "run_dir"):
        (found,) = merge(here, there.folder)
    assert (found.outcome, found.why) == (
        "refused",
        "in use by another process; expected a finished run",
    )


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_that_ends_early_leaves_nothing(tmp_path, monkeypatch, error):
    """And what a kill has left is gone after the next one."""
    here, there = machine(tmp_path / "a"), machine(tmp_path / "b")
    finish(there.runs[0])
    copy = copying._copy_file

    def full(source: str, to: str) -> None:
        if source.endswith("summary.json"):
            raise error
        copy(source, to)

    monkeypatch.setattr(copying, "_copy_file", full)
    if isinstance(error, OSError):
        (found,) = merge(here, there.folder)
        assert found.outcome == "refused"
        assert found.why.endswith("(No space left on device)")
    else:
        with pytest.raises(KeyboardInterrupt):
            merge(here, there.folder)
    assert list((here.folder / "good").iterdir()) == []
    monkeypatch.setattr(copying, "_copy_file", copy)
    (here.folder / "good" / ".seed0.copy").mkdir()
    merge(here, there.folder)
    assert content(here.runs[0].folder) == content(there.runs[0].folder)
    assert [path.name for path in (here.folder / "good").iterdir()] == ["seed0"]


def test_folders_without_runs_are_refused(tmp_path):
    here = machine(tmp_path / "a")
    finish(here.runs[0])
    (tmp_path / "empty").mkdir()
    for folder, why in (
        (tmp_path / "nowhere", "nowhere: no such folder; expected one with runs"),
        (tmp_path / "empty", "empty: no run; expected runs other than those of this grid"),
        (here.folder, "no run; expected runs other than those of this grid"),
    ):
        with pytest.raises(InputError, match=why):
            merge(here, folder)


# ------------------------------------------------------------------------------ matched gains


def matched_grid(folder: Path) -> Benchmark:
    folder.mkdir(exist_ok=True)
    return grid(folder)


def test_gains_that_were_matched_elsewhere_are_taken_over(tmp_path):
    """And then the runs, which have the factor in their config."""
    matched(matched_grid(tmp_path / "b"))
    there = matched_grid(tmp_path / "b")
    for one in there.runs:
        finish(one)
    here = matched_grid(tmp_path / "a")
    (taken,) = take_gains(here, [there.folder])
    assert (taken,) == there.matched
    here = matched_grid(tmp_path / "a")
    assert here.matched == there.matched
    assert {each.outcome for each in merge(here, there.folder)} == {"taken over"}
    assert take_gains(here, [there.folder]) == []


@pytest.mark.parametrize("frozen_here", [True, False])
def test_gains_that_were_matched_to_two_factors_are_refused(tmp_path, frozen_here):
    """Two machines have measured two gains: their runs are those of two grids."""
    for name in "bc":
        matched(matched_grid(tmp_path / name))
    file = tmp_path / "c" / "out" / "matched.json"
    there = json.loads(file.read_text())
    there["matches"][0]["scale"] += 1e-12
    file.write_text(json.dumps(there))
    here = matched_grid(tmp_path / ("b" if frozen_here else "a"))
    before = content(here.folder)
    folders = [tmp_path / "c"] if frozen_here else [tmp_path / "b", tmp_path / "c"]
    with pytest.raises(InputError, match=r"c/out/matched.json: .* was matched at .*, and in .*/b/"):
        take_gains(here, folders)
    assert content(here.folder) == before


def test_a_gain_that_is_matched_nowhere_is_said(tmp_path):
    there = machine(tmp_path / "b")
    finish(there.runs[0])
    with pytest.raises(
        InputError, match=r"'plateau_matched 0.7' is matched neither here nor there"
    ):
        take_gains(matched_grid(tmp_path / "a"), [there.folder])


# ------------------------------------------------------------------------------------- a GAN


def test_a_gan_of_another_machine_is_taken_over_though_its_data_lie_elsewhere(tmp_path):
    changes = {**SCORED, "score.every": 2, "steps": 2, "normalizer.kind": "spectral"}
    run(tmp_path / "other" / "seed0", {**changes, "data.root": "/mnt/images"})
    run(tmp_path / "longer" / "seed0", {**changes, "steps": 3})
    path, base = tmp_path / "tiny.yaml", tmp_path / "base.yaml"
    base.write_text("seed: 0\n")
    content = {
        "question": "Which tiny GAN is better?",
        "pipeline": "gan",
        "base": str(base),
        "set": {**TINY, **SCORED, "score.every": 2, "steps": 2},
        "axes": {"normalizer.kind": ["none", "spectral"]},
        "seeds": [0],
        "score": {"name": "FD (digits)"},
        "compare": {"axis": "normalizer.kind", "against": "none"},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    here = load(str(path), tmp_path / "out", {"gan": GAN})
    taken, refused = merge(here, tmp_path / "other", tmp_path / "longer")
    assert (taken.outcome, refused.outcome) == ("taken over", "no run of this grid"), (
        taken,
        refused,
    )
    assert refused.why.endswith("has steps: 3 there, 2 here")
    assert [each.state for each in gather(here).runs] == ["not begun", "done"]
