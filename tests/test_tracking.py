"""What a run writes while it trains."""

import fcntl
import io
import json
import os
import pty
import select
import struct
import sys
import termios
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import log_of, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from convnorm.experiment.errors import InputError
from convnorm.experiment.run import tracking
from convnorm.experiment.run.board import tags
from convnorm.experiment.run.tracking import Tracker, last_line, picture_of, read_lines
from convnorm.spectrum import LayerNorms, by_name

CPU = torch.device("cpu")


def events(run_dir) -> EventAccumulator:
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), {"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_tensorboard_holds_scalars_images_and_the_config(tmp_path):
    run(tmp_path, {"log.every": 2, "log.samples_every": 2})
    board = events(tmp_path)
    scalars = board.Tags()["scalars"]
    assert {tag.partition("/")[0] for tag in scalars} == {"gain", "loss", "norm", "perf"}
    log = read_lines(tmp_path / "log.jsonl")
    assert sum(tag.startswith("norm/conv2 (2)/") for tag in scalars) == 4
    for name, tag in tags(list(log[-1])[1:]).items():
        shown = [(event.step, event.value) for event in board.Scalars(tag)]
        lines = [(it["step"], it[name]) for it in log if name in it]
        assert np.array(shown) == pytest.approx(np.array(lines))
    assert [event.step for event in board.Scalars("loss/loss_d")] == [2, 4]
    assert [event.step for event in board.Scalars("perf/peak_memory")] == [0, 2, 4]
    for tag in ("gain/real", "gain/fake", "gain/margin"):
        assert [event.step for event in board.Scalars(tag)] == [0, 4]
    images = board.Images("samples")
    assert [event.step for event in images] == [2, 4]
    side = 2 * (8 * 18 + 2)  # 64 of 16 x 16, enlarged to at least 256
    assert (images[0].width, images[0].height) == (side, side)
    (real,) = board.Images("samples/real")
    assert (real.step, real.width) == (0, side)
    (text,) = board.Tensors("config/text_summary")
    assert b"kind: convnorm" in text.tensor_proto.string_val[0]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "real.png",
        "step0000002.png",
        "step0000004.png",
    ]


def test_tags_sort_as_the_network_has_its_layers():
    """By name alone stage10 comes before stage2, and a shortcut before what stands before it."""
    layers = ["stem.0", *(f"stage{n}.{part}" for n in range(1, 12) for part in ("z", "a"))]
    norms = {layer: LayerNorms(1.0, 2.0, 3.0, 4.0) for layer in layers}
    given = [*by_name(norms), "loss_g", "seconds"]
    found = tags(given)
    assert list(found) == given
    shown = sorted(tag for tag in found.values() if tag.startswith("norm/"))
    assert shown == [
        f"norm/conv{n:02} ({layer})/{kind}"
        for n, layer in enumerate(layers, 1)
        for kind in sorted(LayerNorms._fields)
    ]
    assert (found["loss_g"], found["seconds"]) == ("loss/loss_g", "perf/seconds")


def test_scores_to_select_by_are_shown_beside_those_reported(tmp_path):
    with closing(Tracker(tmp_path, 0, 10, "", CPU)) as tracker:
        selection = {"scores": {"FD (digits)": 7.0}, "selection": None}
        tracker.score(2, {"scores": {"FD (digits)": 3.0, "IS": None}, "selection": selection})
        tracker.score(4, {"epoch": 1, "scores": {"accuracy": 0.5}})  # as a classifier has it
    board = events(tmp_path)
    shown = {
        tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]
    }
    assert shown == {
        "score/FD (digits)": [(2, 3.0)],
        "score/selection/FD (digits)": [(2, 7.0)],
        "score/accuracy": [(4, 0.5)],
    }


def test_tensorboard_names_runs_by_config_and_seed(tmp_path):
    """As `tensorboard --logdir runs` does."""
    for run_dir in (
        "gan/sngan_convnorm/seed0",
        "gan/sngan_convnorm/seed1",
        "benchmark/x/none/seed0",
    ):
        (tmp_path / run_dir).mkdir(parents=True)
        with closing(Tracker(tmp_path / run_dir, 0, 10, "", CPU)) as tracker:
            tracker.log(1, {"loss": 1.0})
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    assert sorted(board.Runs()) == [
        "benchmark/x/none/seed0/tensorboard",
        "gan/sngan_convnorm/seed0/tensorboard",
        "gan/sngan_convnorm/seed1/tensorboard",
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
    shown = [(event.step, event.value) for event in events(tmp_path).Scalars("loss/loss")]
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
    now = SimpleNamespace(time=0.0, memory=0, of_device=0)
    monkeypatch.setattr(tracking, "time", SimpleNamespace(perf_counter=lambda: now.time))
    monkeypatch.setattr(tracking, "peak_memory", lambda device: now.memory)
    monkeypatch.setattr(tracking, "device_memory", lambda device: now.of_device)
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
        surroundings.of_device = 10 * memory
        with closing(Tracker(tmp_path, start, 10, "", CPU)) as tracker:
            surroundings.time += 1.0
            tracker.log(step, {})
    assert costs(tmp_path, "peak_memory", "device_memory") == [
        (500, 5000),
        (500, 5000),
        (700, 7000),
    ]


def test_the_memory_of_a_gpu_is_not_told_of_a_cpu(tmp_path):
    with closing(Tracker(tmp_path, 0, 10, "", CPU)) as tracker:
        tracker.log(1, {})
    (line,) = read_lines(tmp_path / "log.jsonl")
    assert line["peak_memory"] > 0
    assert "device_memory" not in line


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


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal of so many columns, and what it was written last."""
    master, slave = pty.openpty()
    file = os.fdopen(slave, "w", encoding="utf-8")

    def last_line() -> str:
        file.flush()
        written = b""
        while select.select([master], [], [], 0.1)[0]:  # it comes in pieces
            written += os.read(master, 2**16)
        return written.decode().rstrip("\r\n").split("\r")[-1]

    def resize(columns: int):
        monkeypatch.setattr(sys, "stderr", file)  # not before: pytest has one for each phase
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        return last_line

    yield resize
    file.close()
    os.close(master)


@pytest.mark.parametrize(
    ("columns", "steps", "least"), [(80, 700, 2), (80, 200_000, 1), (200, 700, 5)]
)
def test_the_bar_keeps_its_place_and_no_number_is_cut(columns, steps, least, tmp_path, terminal):
    """At 80 columns the losses left no bar at all."""
    last_line, value = terminal(columns), -1.4758
    values = dict.fromkeys(("loss_d", "loss_g", "d_real", "d_fake", "gradient_penalty"), value)
    with closing(Tracker(tmp_path, 0, steps, "", CPU)) as tracker:
        bar = tracker._bar
        bar.start_t -= 3597.0
        bar.update(steps // 2)
        tracker.log(steps // 2, values)
        bar.start_t -= 10.0  # 59:57 becomes 1:00:07
        bar.refresh()
        line = last_line()
    assert len(line) <= columns
    assert len(line.split("|")[1]) >= 6
    shown = dict(word.split("=") for word in line.rstrip("] ").split(", ") if "=" in word)
    assert set(shown.values()) == {"-1.48"}
    assert list(shown) == list(values)[: len(shown)]
    assert len(shown) >= least


def test_elsewhere_there_are_plain_lines(tmp_path, capsys):
    """A bar in a file is thousands of lines of carriage returns."""
    run(tmp_path, {"log.every": 2})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["0/4", "2/4", "4/4"]
    assert "left" not in lines.pop(0)  # nobody knows yet
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


@pytest.mark.parametrize(
    ("num", "size", "side", "factor"),
    [(4, 8, 22, 12), (64, 16, 146, 2), (64, 32, 274, 1), (4, 300, 606, 1)],
)
def test_pictures_are_enlarged_by_whole_pixels_to_256(num, size, side, factor):
    """Smoothed, or stretched by half a pixel, they are not what the network made."""
    images = torch.randint(256, (num, 1, size, size), dtype=torch.uint8)
    picture = picture_of(images)
    assert picture.shape == (3, factor * side, factor * side)
    squares = picture.unflatten(2, (side, factor)).unflatten(1, (side, factor))
    assert (squares == squares[:, :, :1, :, :1]).all()
    assert torch.equal(squares[0, 2 : 2 + size, 0, 2 : 2 + size, 0], images[0, 0])


def test_real_images_are_written_once_a_run_and_from_all_over_the_data(tmp_path):
    """Folders are sorted by class: the first images would all be of one."""
    images = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    file = tmp_path / "samples" / "real.png"
    for step, given in ((0, images), (4, images.flip(0))):  # resumed
        with closing(Tracker(tmp_path, step, 10, "", CPU)) as tracker:
            tracker.real_images(given, 4)
    with Image.open(file) as picture:
        grid = np.array(picture.convert("L"))
    expected = picture_of(images[[0, 85, 170, 255]])[0].numpy()
    assert np.array_equal(grid, expected)
    assert len(events(tmp_path).Images("samples/real")) == 1


def test_few_real_images_are_each_shown_once(tmp_path):
    with closing(Tracker(tmp_path, 0, 10, "", CPU)) as tracker:
        tracker.real_images(torch.zeros(3, 3, 300, 300, dtype=torch.uint8), 64)
    with Image.open(tmp_path / "samples" / "real.png") as picture:
        assert picture.size == (2 * 302 + 2, 2 * 302 + 2)
