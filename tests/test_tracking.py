"""What a run writes while it trains."""

import io
import sys

import pytest
import torch
from runs import log_of, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convnorm.experiment.errors import InputError
from convnorm.experiment.tracking import Tracker, read_lines


def events(run_dir) -> EventAccumulator:
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), {"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_tensorboard_holds_scalars_images_and_the_config(tmp_path):
    run(tmp_path, {"log.every": 2, "log.samples_every": 2})
    board = events(tmp_path)
    log = log_of(tmp_path)
    scalars = board.Tags()["scalars"]
    for name in ("loss_d", "loss_g", "d_real", "d_fake", "lr", "steps_per_second"):
        assert [event.step for event in board.Scalars(name)] == [2, 4]
    for kind in ("matrix_norm", "operator_norm"):
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
    tracker = Tracker(tmp_path, 0, 10, "a: 1\n")
    for step in (2, 4, 6):
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    resumed = Tracker(tmp_path, 4, 10, "a: 1\n")
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
    Tracker(tmp_path, 1, 10, "").close()
    assert path.read_text() == '{"step": 1}\n'


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
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert "loss_d" in lines[0]
    assert "lr 0.00015 " in lines[0]  # small numbers are not rounded away
    assert lines[0].endswith("s left)")


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    tracker = Tracker(tmp_path, 0, 10, "")
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"log.jsonl: cannot be written \(Is a directory\)"):
        tracker.log(1, {"loss": 1.0})
    tracker.close()


def test_images_are_written_as_they_are(tmp_path):
    from PIL import Image

    tracker = Tracker(tmp_path, 0, 10, "")
    tracker.images(3, torch.full((4, 1, 8, 8), 77, dtype=torch.uint8))
    tracker.close()
    with Image.open(tmp_path / "samples" / "step0000003.png") as image:
        assert image.size == (2 * 10 + 2, 2 * 10 + 2)
        assert image.convert("L").getpixel((5, 5)) == 77
