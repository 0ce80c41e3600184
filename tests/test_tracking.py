"""What a run writes while it trains."""

import io
import json
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from runs import log_of, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convnorm.experiment.errors import InputError
from convnorm.experiment.run import tracking
from convnorm.experiment.run.tracking import Tracker, last_line, read_lines

CPU = torch.device("cpu")


def events(run_dir) -> EventAccumulator:
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), {"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_tensorboard_holds_scalars_images_and_the_config(tmp_path):
    run(tmp_path, {"log.every": 2, "log.samples_every": 2})
    board = events(tmp_path)
    log = log_of(tmp_path)
    scalars = board.Tags()["scalars"]
    for name in (
        "loss_d",
        "loss_g",
        "d_real",
        "d_fake",
        "lr",
        "steps_per_second",
        "seconds",
        "peak_memory",
    ):
        assert [event.step for event in board.Scalars(name)] == [2, 4]
    for kind in ("matrix_norm", "operator_norm", "rms_singular_value"):
        assert sum(name.startswith(f"{kind}/") for name in scalars) == 2  # of D's convolutions
    for name in ("loss_d", "lr"):
        expected = [line[name] for line in log]
        assert [event.value for event in board.Scalars(name)] == pytest.approx(expected)
    images = board.Images("samples")
    assert [event.step for event in images] == [2, 4]
    assert (images[0].width, images[0].height) == (8 * 18 + 2, 8 * 18 + 2)  # 64 of 16 x 16
    (text,) = board.Tensors("config/text_summary")
    assert b"kind: convnorm" in text.tensor_proto.string_val[0]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step0000002.png",
        "step0000004.png",
    ]


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    """Without a purge TensorBoard draws both the lost steps and the new ones."""
    tracker = Tracker(tmp_path, 0, 10, "a: 1\n", CPU)
    for step in (2, 4, 6):
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    resumed = Tracker(tmp_path, 4, 10, "a: 1\n", CPU)
    resumed.log(6, {"loss": 66.0})
    resumed.close()
    shown = [(event.step, event.value) for event in events(tmp_path).Scalars("loss")]
    assert shown == [(2, 2.0), (4, 4.0), (6, 66.0)]
    assert [(line["step"], line["loss"]) for line in log_of(tmp_path)] == shown


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    assert read_lines(tmp_path / "none.jsonl") == []
    Tracker(tmp_path, 1, 10, "", CPU).close()
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("torn", ['{"ste', '{"step": 2, "loss', "", "\0\0\0\0"])
def test_a_torn_line_in_the_middle_costs_no_other(torn, tmp_path, capsys):
    """After a power failure a torn line can have others behind it, which were deleted with it."""
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{torn}\n{{"step": 3}}\n{{"step": 4}}\n')
    good = [{"step": 1}, {"step": 3}, {"step": 4}]
    assert read_lines(path) == good
    assert last_line(path) == {"step": 4}
    Tracker(tmp_path, 3, 10, "", CPU).close()
    assert read_lines(path) == good[:2]
    assert f"{path}, line 2: cut, and left out\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["log.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"step": 2, "name": "\xff"}', "no UTF-8"),
        (b"null", "holds None"),
        (b"7", "holds 7"),
        (b'[{"step": 2}]', r"holds \[{'step': 2}\]"),
        (b"[" * 30_000 + b"]" * 30_000, "nested too deep"),
        (b'{"step": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b'{"loss": 1.0, "scores": {}}', "holds no step"),
        (b'{"step": null, "scores": {}}', "holds step None"),
        (b'{"step": "3", "scores": {}}', "holds step '3'"),
        (b'{"step": true, "scores": {}}', "holds step True"),
    ],
    ids=range(10),
)
def test_a_line_that_is_no_record_is_named_and_nothing_is_deleted(line, found, name, tmp_path):
    path = tmp_path / name
    good = b'{"step": %d, "scores": {}}\n'
    content = good % 1 + line + b"\n" + good % 3
    path.write_bytes(content)
    for read in (lambda: read_lines(path), lambda: Tracker(tmp_path, 4, 10, "", CPU)):
        with pytest.raises(InputError, match=f"{name}, line 2: {found}.*; expected .* with step"):
            read()
    assert path.read_bytes() == content
    path.write_bytes(good % 1 + line + b"\n")
    assert last_line(path) == {"step": 1, "scores": {}}  # how far a run is can still be told


def test_a_score_without_scores_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1: holds no scores"):
        read_lines(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("key", ["seconds", "steps_per_second", "peak_memory"])
@pytest.mark.parametrize("value", [None, "3", -1, [], True, float("nan")])
def test_a_cost_that_is_no_number_is_named(key, value, tmp_path):
    """The time of a resumed run goes on from the last line."""
    line = {"step": 1, "seconds": 1.0, "steps_per_second": 1.0, "peak_memory": 1, key: value}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=f"log.jsonl: step 1: {key} is .*; expected a number"):
        Tracker(tmp_path, 2, 10, "", CPU)


@pytest.fixture
def surroundings(monkeypatch):
    """A clock and a memory of the test's own."""
    now = SimpleNamespace(time=0.0, memory=0)
    monkeypatch.setattr(tracking, "time", SimpleNamespace(perf_counter=lambda: now.time))
    monkeypatch.setattr(tracking, "peak_memory", lambda device: now.memory)
    return now


def costs(run_dir, *names) -> list[tuple]:
    return [tuple(line[name] for name in names) for line in read_lines(run_dir / "log.jsonl")]


def test_seconds_of_training_leave_out_scores_and_add_up(tmp_path, surroundings):
    """Catches the wall-clock of a run that is scored, and seconds since the last line alone."""
    surroundings.time = 100.0
    with closing(Tracker(tmp_path, 0, 10, "", CPU)) as tracker:
        for step in range(1, 7):
            surroundings.time += 2.0
            with tracker.not_training():
                surroundings.time += 30.0  # norms, for instance, come before their line
                if step % 2 == 0:
                    tracker.log(step, {})
                surroundings.time += 50.0
    expected = [(2, 4.0, 0.5), (4, 8.0, 0.5), (6, 12.0, 0.5)]
    assert costs(tmp_path, "step", "seconds", "steps_per_second") == expected


def test_seconds_go_on_over_a_resumption(tmp_path, surroundings):
    """Catches a clock at zero, lost steps counted twice, and steps after the last line for free."""
    with closing(Tracker(tmp_path, 0, 10, "", CPU)) as tracker:
        for step in (2, 4, 6):
            surroundings.time += 4.0
            tracker.log(step, {})
    surroundings.time = 1000.0
    with closing(Tracker(tmp_path, 5, 10, "", CPU)) as tracker:  # the lines up to 4 are kept
        surroundings.time += 9.0
        tracker.log(8, {})
    assert costs(tmp_path, "step", "seconds") == [(2, 4.0), (4, 8.0), (8, 8.0 + 2.0 + 9.0)]


def test_a_resumed_run_keeps_the_larger_peak(tmp_path, surroundings):
    for start, step, memory in ((0, 2, 500), (2, 4, 300), (4, 6, 700)):
        surroundings.memory, surroundings.time = memory, float(step)
        with closing(Tracker(tmp_path, start, 10, "", CPU)) as tracker:
            surroundings.time += 1.0
            tracker.log(step, {})
    assert costs(tmp_path, "peak_memory") == [(500,), (500,), (700,)]


def test_a_run_of_an_older_version_is_resumed(tmp_path, surroundings):
    (tmp_path / "log.jsonl").write_text('{"step": 4, "loss": 1.0, "steps_per_second": 2.0}\n')
    with closing(Tracker(tmp_path, 5, 10, "", CPU)) as tracker:
        surroundings.time += 1.0
        tracker.log(6, {})
    assert read_lines(tmp_path / "log.jsonl")[-1]["seconds"] == 1.5


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_losses_and_time_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(tmp_path, {"log.every": 1})
    output = sys.stderr.getvalue()
    assert "step 1/4" not in output
    assert "4/4" in output
    assert "loss_d=" in output
    assert "<" in output  # elapsed<left


def test_elsewhere_there_are_plain_lines(tmp_path, capsys):
    """A bar in a file is thousands of lines of carriage returns."""
    run(tmp_path, {"log.every": 2})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert "loss_d" in lines[0]
    assert "lr 0.00015 " in lines[0]  # small numbers are not rounded away
    assert lines[0].endswith("s left)")
    assert not any(cost in lines[0] for cost in ("seconds", "memory", "norm", "singular"))


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    tracker = Tracker(tmp_path, 0, 10, "", CPU)
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"log.jsonl: cannot be written \(Is a directory\)"):
        tracker.log(1, {"loss": 1.0})
    tracker.close()


def test_images_are_written_as_they_are(tmp_path):
    from PIL import Image

    tracker = Tracker(tmp_path, 0, 10, "", CPU)
    tracker.images(3, torch.full((4, 1, 8, 8), 77, dtype=torch.uint8))
    tracker.close()
    with Image.open(tmp_path / "samples" / "step0000003.png") as image:
        assert image.size == (2 * 10 + 2, 2 * 10 + 2)
        assert image.convert("L").getpixel((5, 5)) == 77
