"""--hours: no run begins that would not end in time; what still goes on then saves and stops."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from toy import toy

from convnorm.experiment.benchmark.attempt import Attempt, AttemptRecord, Ended
from convnorm.experiment.benchmark.attempt_records import attempts
from convnorm.experiment.benchmark.deadline import Deadline, may_begin
from convnorm.experiment.benchmark.execute import execute
from convnorm.experiment.benchmark.grid import Benchmark, Run
from convnorm.experiment.benchmark.plan import expected_seconds, survey
from convnorm.experiment.errors import Stopped

HOUR = 3600.0
KINDS = {"axes": {"kind": ["good", "better"]}}


class Clock:
    """Tells the seconds that a test has set."""

    def __init__(self):
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


class Timed:
    """Carries out runs side by side on a clock of its own: a run of a kind takes these hours.

    begun: the runs, in their order. A stopped run ends at once.
    """

    def __init__(self, hours: dict[str, float], deadline: float, workers: int = 1):
        self.workers, self.hours, self.clock = workers, hours, Clock()
        self.deadline = Deadline(deadline, self.clock)
        self.begun: list[str] = []
        self._going: dict[str, tuple[Run, float]] = {}
        self._stopped = False

    @property
    def seconds_left(self) -> float:
        return self.deadline.seconds_left

    def has_room(self) -> bool:
        return len(self._going) < self.workers

    def submit(self, attempt: Attempt) -> None:
        run = attempt.run
        self.begun.append(run.name)
        self._going[run.name] = (run, self.clock.now)

    def wait(self, seconds: float) -> None:
        self.clock.now += HOUR / 10

    def ended(self) -> Iterator[Ended]:
        for name, (run, since) in list(self._going.items()):
            took = self.clock.now - since
            done = took >= self.hours[run.config.kind] * HOUR - 1
            if done or self._stopped:
                del self._going[name]
                if done:
                    run.folder.mkdir(parents=True)
                    (run.folder / "summary.json").write_text('{"score": 1}')
                outcome = "done" if done else "stopped"
                yield Ended(AttemptRecord(name, outcome, "", took, 0.0, 0.0, float(done)), "here")

    def stop(self) -> None:
        self._stopped = True


def carry_out(benchmark: Benchmark, executor: Timed) -> str:
    """What it says when it ends without having done all."""
    with pytest.raises(Stopped) as stopped:
        execute(benchmark, executor, 1, "auto")
    assert stopped.value.code == 1
    return str(stopped.value)


@pytest.mark.parametrize(
    ("expected", "left", "begins"),
    [
        (100.0, 100.0, True),
        (100.0, 99.0, False),
        (None, 1.0, True),
        (None, 0.0, False),
        (0.0, -1.0, False),
        (1e9, math.inf, True),
    ],
)
def test_a_run_begins_where_it_ends_in_time_or_nothing_is_known_of_it(expected, left, begins):
    assert may_begin(expected, left) == begins


def test_a_deadline_is_so_many_hours_from_its_making():
    clock = Clock()
    deadline = Deadline(2, clock)
    clock.now += 1.5 * HOUR
    assert deadline.seconds_left == 0.5 * HOUR
    assert Deadline(clock=clock).seconds_left == math.inf


def write_attempts(benchmark: Benchmark, *lines: tuple[str, str, float, float, float]) -> None:
    """Lines of (run, outcome, seconds, evaluating, before), all of which reached the end."""
    benchmark.folder.mkdir(exist_ok=True)
    records = [AttemptRecord(r, o, "", s, e, before, 1.0) for r, o, s, e, before in lines]
    text = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    (benchmark.folder / "attempts.jsonl").write_text(text)


def test_a_run_takes_as_long_as_those_of_its_cell_or_of_the_slowest(tmp_path):
    """A run that failed in its first step would tell that all of them take days."""
    kinds = ["good", "better", "new"]
    benchmark = toy(tmp_path, axes={"kind": kinds})
    assert set(expected_seconds(benchmark, survey(benchmark)).values()) == {None}
    write_attempts(
        benchmark,
        ("good, seed 0", "done", 110.0, 10.0, 0.0),
        ("better, seed 0", "done", 130.0, 30.0, 0.75),
        ("new, seed 0", "failed", 1e6, 0.0, 0.999),
        ("of another grid, seed 0", "done", 1e6, 0.0, 0.0),
    )
    cut = next(run for run in benchmark.runs if run.name == "better, seed 1").folder
    cut.mkdir(parents=True)
    (cut / "log.jsonl").write_text('{"step": 3}\n')  # of 4
    found = expected_seconds(benchmark, survey(benchmark))
    assert found["good, seed 1"] == pytest.approx(110)
    assert found["better, seed 1"] == pytest.approx(400 / 4 + 30)
    assert found["new, seed 1"] == pytest.approx(430)


def test_no_run_begins_that_would_not_end_in_time(tmp_path):
    """Of the slow cell only the first begins, of which nothing was known; then the quick ones."""
    benchmark = toy(tmp_path, **KINDS, seeds=[0, 1, 2])
    executor = Timed({"good": 3.0, "better": 1.0}, deadline=6.5)
    told = carry_out(benchmark, executor)
    assert executor.begun == [
        "good, seed 0",
        "better, seed 0",
        "better, seed 1",
        "better, seed 2",
    ]
    assert told.startswith("2 runs are left, which would not have ended in the time given")
    assert "the same command again goes on" in told
    done = [item.run.name for item in survey(benchmark) if item.state == "done"]
    assert sorted(done) == sorted(executor.begun)


def test_what_goes_on_at_the_deadline_stops_and_is_no_failure(tmp_path, capsys):
    benchmark = toy(tmp_path, **KINDS)
    executor = Timed({"good": 1.0, "better": 5.0}, deadline=2.0, workers=2)
    assert carry_out(benchmark, executor) == (
        "stopped, as the time is over; the same command again goes on"
    )
    # The second of the quick ones ends in time to the minute.
    assert executor.begun == ["good, seed 0", "better, seed 0", "good, seed 1"]
    assert {attempt.outcome for attempt in attempts(benchmark.folder)} == {"done"}
    assert "stopping, as the time is over: the runs save and end" in capsys.readouterr().err


def test_time_that_is_enough_changes_nothing(tmp_path):
    benchmark = toy(tmp_path, **KINDS)
    executor = Timed({"good": 1.0, "better": 1.0}, deadline=9.0)
    execute(benchmark, executor, 1, "auto")
    assert len(executor.begun) == 4
