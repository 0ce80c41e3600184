"""Gains in place of numbers: the factor that leads to them is found once, before the first run."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from example_results import gan as example
from toy import TOY

from classification.benchmark import CLASSIFICATION
from convnorm.experiment.benchmark import matching
from convnorm.experiment.benchmark.attempt import Attempt, AttemptRecord, Ended
from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.loading import load
from convnorm.experiment.benchmark.pipeline import Matching
from convnorm.experiment.benchmark.results import gather
from convnorm.experiment.benchmark.search import METHODS, Problem, search
from convnorm.experiment.config import to_yaml
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.records import Match, Trial
from convnorm.experiment.report import page
from gan.benchmark import GAN

SEEDS = (901, 902, 903)
# Kind -> the gain over the factor.
LAWS: dict[str, Callable[[float], float]] = {
    "power": lambda c: 0.4 * c**1.5,
    "steep": lambda c: 1e-3 * c**9,
    "uneven": lambda c: 0.4 * c**1.3 * (1 + 0.04 * math.sin(20 * c)),
    "bounded": lambda c: 0.5 * c / (1 + c),
    "flat": lambda c: 0.5,
    "jump": lambda c: 0.1 if c < 1.7 else 10.0,
}


@dataclass(frozen=True)
class Config:
    """Of a run that takes no time; its gain depends on all but `colour` and `seed`."""

    kind: str = "power"
    scale: float = 1.0
    rate: float = 1.0
    colour: str = "red"
    steps: int = 100
    seed: int = 0


def _check(config: Config, how: str) -> tuple[str, ...]:
    if config.kind == "refused":
        raise InputError(f"{how}: kind: 'refused' has no gain; expected another")
    return ("this is a toy",) if config.kind == "doubted" else ()


def _plateau(config: Config, folder: Path) -> float:
    return json.loads((folder / "log.jsonl").read_text())["gain"]


FACTOR = Matching(
    key="scale",
    least=1e-3,
    most=1e3,
    seeds=SEEDS,
    check=_check,
    relevant=lambda config, how: {"kind": config.kind, "rate": config.rate, "steps": config.steps},
    at_start=lambda config: config.rate * LAWS[config.kind](config.scale),
    depth=lambda config: 8,
    pilot=lambda config: {"steps": config.steps // 5, "colour": "none"},
    plateau=_plateau,
)
PIPELINE = replace(TOY, config=Config, matching=FACTOR)
GAINS = ("init_matched", "plateau_matched")


class Instant:
    """Carries out runs in no time; `begun` are their folders, `most` of them before a Ctrl-C.

    outcomes: kind -> how its runs end, and why.
    """

    workers, seconds_left = 2, math.inf

    def __init__(self, most: int = 1000, outcomes: dict[str, tuple[str, str]] | None = None):
        self.begun: list[Path] = []
        self.most, self.outcomes = most, outcomes or {}
        self._waiting: list[Attempt] = []

    def has_room(self) -> bool:
        return True

    def submit(self, attempt: Attempt) -> None:
        self._waiting.append(attempt)

    def wait(self, seconds: float) -> None: ...

    def ended(self):
        while self._waiting:
            if len(self.begun) == self.most:
                raise Stopped("stopped", 130)
            run = self._waiting.pop(0).run
            self.begun.append(run.folder)
            outcome, reason = self.outcomes.get(run.config.kind, ("done", ""))
            if outcome == "done":
                write_run(run.folder, run.config)
            yield Ended(AttemptRecord(run.name, outcome, reason, 1.0, 0.0, 0.0, 1.0), "here")

    def stop(self) -> None: ...


def write_run(folder: Path, config: Config) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    gain = config.rate * LAWS[config.kind](config.scale)
    (folder / "log.jsonl").write_text(json.dumps({"step": config.steps, "gain": gain}))
    (folder / "summary.json").write_text(json.dumps({"score": 1 + config.seed}))


def grid(folder: Path, pipeline=PIPELINE, **changes: Any) -> Benchmark:
    """A grid of the kind `power`, of all gains in `axes`."""
    (folder / "base.yaml").write_text("kind: power\n")
    content = {
        "question": "Which toy is better?",
        "pipeline": "gan",
        "base": str(folder / "base.yaml"),
        "axes": {"scale": [1, {"plateau_matched": 0.7}]},
        "seeds": [0, 1],
        "score": {"name": "FD"},
        "compare": {"axis": "scale", "against": 1},
        **changes,
    }
    path = folder / "toy.yaml"
    without_aliases = json.loads(json.dumps(content))
    path.write_text(yaml.safe_dump(without_aliases, sort_keys=False))
    return load(str(path), folder / "out", {"gan": pipeline})


def kinds(*names: str, **gain: float) -> dict[str, Any]:
    """The changes of a grid whose cells are kinds, all at one gain."""
    compare = {"axis": "kind", "against": names[0]}
    return {"axes": {"kind": [*names]}, "set": {"scale": gain}, "compare": compare}


def matched(benchmark: Benchmark, executor: Instant | None = None) -> dict[str, Match]:
    """What is found for a benchmark, and kept, by cell."""
    executor, found = executor or Instant(), {}
    for match in matching.match(benchmark, lambda folder: executor, 1, "auto"):
        matching.freeze(benchmark, match)
        found[match.cell] = match
    return found


@pytest.mark.parametrize("gain", [1e-2, 0.33, 0.4, 7.0])
@pytest.mark.parametrize("kind", ["power", "steep", "uneven"])
@pytest.mark.parametrize("how", GAINS)
def test_the_gain_at_the_factor_that_was_found_is_the_one_that_was_asked_for(
    tmp_path, how, kind, gain
):
    executor = Instant()
    (found,) = matched(grid(tmp_path, **kinds(kind, **{how: gain})), executor).values()
    # Between two pilot runs, both of which may be off by 4 %.
    tolerance = 0.02 if how == "init_matched" else 0.1 if kind == "uneven" else 0.05
    assert LAWS[kind](found.scale) == pytest.approx(gain, rel=tolerance)
    assert (found.how, found.target, found.doubts) == (how, gain, ())
    assert [LAWS[kind](trial.scale) for trial in found.trials] == [t.gain for t in found.trials]
    assert [t.scale for t in found.trials] == sorted({t.scale for t in found.trials})
    runs = len(found.trials) if how == "plateau_matched" else 0
    assert len(executor.begun) == runs <= 6
    assert found.seeds == (SEEDS if how == "init_matched" else SEEDS[:1])


def test_the_gain_at_the_start_is_a_measured_one(tmp_path):
    (found,) = matched(grid(tmp_path, **kinds("uneven", init_matched=1.0))).values()
    assert Trial(found.scale, found.gain) in found.trials
    assert found.gain == LAWS["uneven"](found.scale)


def test_a_grid_knows_its_runs_once_its_gains_are_matched_and_they_know_nothing_of_it(tmp_path):
    first = grid(tmp_path)
    assert first.runs == ()
    assert [goal.cell for goal in first.wanted] == ["plateau_matched 0.7"]
    found = matched(first)["plateau_matched 0.7"]
    benchmark = grid(tmp_path)
    assert (benchmark.wanted, benchmark.matched) == ((), (found,))
    told = {run.folder.relative_to(tmp_path): run.config.scale for run in benchmark.runs}
    assert told == {
        Path("out/scale-1/seed0"): 1.0,
        Path("out/plateau_matched-0.7/seed0"): found.scale,
        Path("out/scale-1/seed1"): 1.0,
        Path("out/plateau_matched-0.7/seed1"): found.scale,
    }
    assert f"--scale={found.scale}" in benchmark.runs[1].arguments
    assert not any("matched" in word for word in benchmark.runs[1].arguments[2:-1])


def test_what_was_found_is_never_sought_again(tmp_path):
    matched(grid(tmp_path))
    for file in (tmp_path / "out" / "pilots").rglob("log.jsonl"):
        file.write_text(json.dumps({"step": 20, "gain": 5.0}))
    before = (tmp_path / "out" / "matched.json").read_bytes()
    assert grid(tmp_path).wanted == ()
    assert (tmp_path / "out" / "matched.json").read_bytes() == before


def test_pilot_runs_have_a_seed_of_their_own_and_are_plain_runs(tmp_path):
    executor = Instant()
    matched(grid(tmp_path), executor)
    assert executor.begun[0] == tmp_path / "out" / "pilots" / "scale-1" / "seed901"
    config = yaml.safe_load((executor.begun[1] / "config.yaml").read_text())
    assert (config["steps"], config["seed"], config["colour"]) == (20, 901, "none")
    with pytest.raises(InputError, match=re.escape("seeds: [0, 902] is not allowed")):
        grid(tmp_path, seeds=[0, 902])


def test_cells_that_differ_in_nothing_that_counts_share_their_pilot_runs(tmp_path):
    """Also cells of other gains: what one has tried, the other need not try again."""
    gains = [{"plateau_matched": 0.7}, {"plateau_matched": 0.4}, {"plateau_matched": 0.5}]
    axes = {"scale": gains, "colour": ["red", "blue"]}
    benchmark = grid(tmp_path, axes=axes, compare={"axis": "scale", "against": gains[0]})
    executor = Instant()
    found = matched(benchmark, executor)
    assert len(found) == 6
    assert len(set(executor.begun)) == len(executor.begun) == 3
    assert found["plateau_matched 0.4 / red"].scale == 1.0
    scales = {name: match.scale for name, match in found.items()}
    assert scales["plateau_matched 0.7 / red"] == scales["plateau_matched 0.7 / blue"]


def test_pilot_runs_of_kinds_and_of_groups_have_folders_of_their_own(tmp_path):
    loud = {"scale": {"plateau_matched": 0.7}}
    axes = {"cell": {kind: {"kind": kind, **loud} for kind in ("power", "uneven")}}
    benchmark = grid(tmp_path, axes=axes, compare={"axis": "cell", "against": "power"})
    executor = Instant()
    matched(benchmark, executor)
    names = {folder.parent.name for folder in executor.begun}
    assert {"power-scale-1", "uneven-scale-1"} < names


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_search_that_was_cut_goes_on_and_repeats_no_run(tmp_path, most):
    benchmark = grid(tmp_path, **kinds("power", "uneven", plateau_matched=2.0))
    first, second = Instant(most), Instant()
    with pytest.raises(Stopped):
        matched(benchmark, first)
    assert not (tmp_path / "out" / "matched.json").exists()
    found = matched(benchmark, second)
    assert not set(first.begun) & set(second.begun)
    (tmp_path / "other").mkdir()
    again = grid(tmp_path / "other", **kinds("power", "uneven", plateau_matched=2.0))
    assert {name: match.scale for name, match in matched(again).items()} == {
        name: match.scale for name, match in found.items()
    }


def test_the_runs_of_a_round_go_on_side_by_side(tmp_path, monkeypatch):
    sizes = []
    original = matching.execute
    monkeypatch.setattr(
        matching, "execute", lambda b, *args: (sizes.append(len(b.runs)), original(b, *args))
    )
    matched(grid(tmp_path, **kinds("power", "uneven", "steep", plateau_matched=2.0)))
    assert sizes[0] == 3


@pytest.mark.parametrize(
    ("kind", "how", "expected"),
    [
        ("bounded", "plateau_matched", "bounded: the gain 3 is out of reach: after 5 factors"),
        ("bounded", "init_matched", "bounded: the gain 3 is out of reach: after 7 factors"),
        ("flat", "plateau_matched", "flat: the gain 3 is out of reach: after 3 factors"),
        ("flat", "init_matched", "flat: the gain 3 is out of reach"),
        ("jump", "init_matched", "jump: the gain 3 is out of reach"),
        ("refused", "init_matched", "refused: init_matched: kind: 'refused' has no gain"),
    ],
)
def test_a_gain_that_no_factor_leads_to_is_told_in_one_line(tmp_path, kind, how, expected):
    with pytest.raises(InputError, match=re.escape(expected)) as error:
        matched(grid(tmp_path, **kinds(kind, **{how: 3.0})))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "matched.json").exists()


def test_a_gain_that_no_pilot_run_comes_near_is_interpolated_and_doubted(tmp_path):
    (found,) = matched(grid(tmp_path, **kinds("jump", plateau_matched=1.0))).values()
    assert "no pilot is within 5% of the gain 1" in found.doubts[0]
    assert len(found.trials) == 5


def test_a_gain_that_the_first_pilot_run_nearly_has_takes_another_factor_than_that():
    """With a factor of 1, the cell would be the one that is as published, a second time."""
    problem = Problem("cell", "family", 1.0, METHODS["plateau_matched"], 1.5, 1e-6, 1000.0)
    found, missing = search([problem], lambda family, factor: 1.03 * factor**1.5)
    ((match, trials),) = found.values()
    assert not missing
    assert len(trials) == 1
    assert match.scale == pytest.approx(1.03 ** (-1 / 1.5), rel=1e-4)


@pytest.mark.parametrize(
    ("outcome", "told"),
    [(("failed", "the loss is NaN"), "failed: the loss is NaN"), (("stopped", ""), "was stopped")],
)
def test_a_pilot_run_without_an_end_ends_the_search_and_is_named(tmp_path, outcome, told):
    """Catches a job that a cluster cancels and that is submitted again for ever."""
    benchmark = grid(tmp_path, **kinds("power", "uneven", plateau_matched=2.0))
    with pytest.raises(Stopped, match=f"the pilot run uneven / scale 1, seed 901 {told}; without"):
        matched(benchmark, Instant(outcomes={"uneven": outcome}))
    assert len(matched(benchmark)) == 2


def test_a_pilot_run_of_another_config_is_not_read(tmp_path):
    matched(grid(tmp_path))
    (tmp_path / "out" / "matched.json").unlink()
    with pytest.raises(InputError, match=r"scale-1/seed901 holds a run of another config \(rate: "):
        matched(grid(tmp_path, set={"rate": 2.0}))


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"set": {"rate": 2.0}}, "rate: 1.0 there, 2.0 here"),
        ({"set": {"steps": 200}}, "steps: 100 there, 200 here"),
        ({"gain": {"plateau_matched": 0.8}}, "gain: 0.7 there, 0.8 here"),
        ({"gain": {"init_matched": 0.7}}, "matched: 'plateau_matched' there, 'init_matched' here"),
    ],
)
def test_a_changed_grid_is_refused_with_what_differs(tmp_path, changes, differing):
    def loud(gain):
        return {"own": {"scale": 1}, "loud": {"scale": gain}}

    compare = {"axis": "level", "against": "own"}
    matched(grid(tmp_path, axes={"level": loud({"plateau_matched": 0.7})}, compare=compare))
    changed = {"plateau_matched": 0.7}
    if "gain" in changes:
        changed = changes.pop("gain")
    with pytest.raises(InputError, match=re.escape(differing)) as error:
        grid(tmp_path, axes={"level": loud(changed)}, compare=compare, **changes)
    assert f"{tmp_path}/out/matched.json: 'loud' was matched for another grid" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_does_not_count_may_change_and_more_gains_may_be_asked_for(tmp_path):
    found = matched(grid(tmp_path))["plateau_matched 0.7"]
    assert grid(tmp_path, set={"colour": "blue"}, seeds=[5]).wanted == ()
    more = {"scale": [1, {"plateau_matched": 2}, {"plateau_matched": 0.7}]}
    benchmark = grid(tmp_path, axes=more)
    assert [goal.cell for goal in benchmark.wanted] == ["plateau_matched 2"]
    executor = Instant()
    matched(benchmark, executor)
    assert grid(tmp_path, axes=more).matched[1] == found
    assert not any(folder.parent.name == "scale-1" for folder in executor.begun)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "matched.json: not readable as JSON"),
        ('{"format": "x"}', "matched.json: holds 'x'; expected 'convnorm-suite/matched/1'"),
        ('{"format": "convnorm-suite/matched/1"}', "matched.json: matches: is missing"),
        (None, "matched.json: not a file"),
    ],
)
def test_a_damaged_record_is_not_replaced(tmp_path, content, expected):
    file = tmp_path / "out" / "matched.json"
    file.parent.mkdir()
    file.mkdir() if content is None else file.write_text(content)
    with pytest.raises(InputError, match=re.escape(expected)):
        grid(tmp_path)


VALUES = [
    {"init_matched": 0},
    {"init_matched": -1.0},
    {"plateau_matched": 1e6},
    {"plateau_matched": math.inf},
    {"plateau_matched": math.nan},
    {"plateau_matched": True},
    {"plateau_matched": "loud"},
    {"plateau_matched": None},
    {"plateau_matched": [1.0]},
    {"plateau_matched": {"gain": 1}},
    {"init_matched": 1.0, "plateau_matched": 1.0},
    {"matched": 1.0},
    {},
    [1.0],
    "loud",
    True,
    None,
]
EXPECTED = (
    "expected a number, or {init_matched: GAIN} or {plateau_matched: GAIN} with a gain of more "
    "than 0 and less than 1000000"
)


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_what_is_no_number_and_no_gain_is_refused_where_it_stands(tmp_path, value):
    named = {"level": {"own": {"scale": 1}, "loud": {"scale": value}}}
    places = {
        "axes.scale": {"axes": {"scale": [1, value]}},
        "axes.level.loud.scale": {"axes": named, "compare": {"axis": "level", "against": "own"}},
        "set.scale": {**kinds("power"), "set": {"scale": value}},
    }
    for where, changes in places.items():
        with pytest.raises(InputError) as error:
            grid(tmp_path, **changes)
        assert f"toy.yaml: {where}: {value!r} is not allowed; {EXPECTED}" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [{"init_matched": 0.3}, {"plateau_matched": -1}])
def test_gains_are_refused_where_nothing_is_matched(tmp_path, value):
    with pytest.raises(InputError, match=r"set\.colour: .* is not allowed; expected a plain value"):
        grid(tmp_path, **kinds("power") | {"set": {"colour": value}})
    first = {"axis": "kind", "against": "power"}
    with pytest.raises(InputError, match="this pipeline matches no gain"):
        grid(tmp_path, TOY, axes={"kind": ["power", value]}, compare=first)
    assert CLASSIFICATION.matching is None
    assert GAN.matching.key == "normalizer.scale"


def test_the_plan_says_what_is_due_before_the_runs(tmp_path):
    text = matching.describe(grid(tmp_path, **kinds("power", "uneven", plateau_matched=2.0)), 1)
    lines = text.splitlines()
    assert lines[0] == (
        "toy: 4 runs, none of which begins before scale of 2 cells is matched: 0 at the first "
        "step, without a run, and 2 by pilot runs"
    )
    assert lines[1].startswith("toy, pilot runs: 2 runs: 2 not begun; time left: not known")
    assert lines[2].split("  ")[1] == "power / scale 1, seed 901"
    assert not (tmp_path / "out").exists()


def test_without_factors_there_is_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="scale of 1 cells is not matched yet"):
        gather(grid(tmp_path))


def test_a_report_has_what_was_found(tmp_path):
    found = matched(grid(tmp_path, set={"kind": "jump"}, axes=AXES, compare=COMPARE))
    benchmark = grid(tmp_path, set={"kind": "jump"}, axes=AXES, compare=COMPARE)
    for run in benchmark.runs:
        write_run(run.folder, run.config)
    report = gather(benchmark)
    assert report.matched == (found["plateau_matched 1"],)
    shown = replace(report, matched=report.matched)
    page.write(shown, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Matched gain" in text
    (row,) = [line for line in text.splitlines() if "10 to 20 % |" in line]
    assert row.count("0.100 at 1,") == 1
    assert f"| {found['plateau_matched 1'].scale:g} |" in row
    assert "no pilot is within 5% of the gain 1" in text


AXES = {"scale": [1, {"plateau_matched": 1}]}
COMPARE = {"axis": "scale", "against": {"plateau_matched": 1}}


def test_a_report_without_matched_gains_does_not_speak_of_them(tmp_path):
    page.write(example(), tmp_path)
    assert "Matched gain" not in (tmp_path / "report.md").read_text()
