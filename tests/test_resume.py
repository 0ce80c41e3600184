"""A run that ends early goes on as if it had not; a finished one is left alone."""

import os
import signal

import pytest
import torch
from runs import Crash, classifier_run, crash_before, differing, log_of, run, state_of

from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run import checkpoint
from gan.models import FORMAT
from gan.trainer import Trainer

# log.every and checkpoint_every fall on different steps: a log line spans the crash.
RESUMED = {"train.ema_decay": 0.9, "steps": 6, "log.every": 4, "log.norms_every": 6}


@pytest.mark.parametrize(
    "changes",
    [
        *({"normalizer.kind": kind} for kind in ("spectral", "convnorm", "batch")),
        {"train.diffaugment": "color,translation,cutout", "loss.lecam": 9.0, "loss.lecam_start": 1},
    ],
)
def test_a_resumed_run_is_bit_identical(changes, tmp_path, monkeypatch):
    """Anything that the next step depends on and that last.pt lacks shows here."""
    changes = {**RESUMED, **changes}
    run(tmp_path / "whole", changes)
    torch.manual_seed(98)  # what was drawn before a run is no part of it
    with monkeypatch.context() as patch:
        crash_before(5, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path / "cut", changes, checkpoint_every=3)
    assert state_of(tmp_path / "cut")["step"] == 3
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "loss_d"')  # a kill in the middle of a line
    torch.manual_seed(99)
    run(tmp_path / "cut", changes, checkpoint_every=2)
    assert differing(state_of(tmp_path / "cut"), state_of(tmp_path / "whole")) == []
    log = log_of(tmp_path / "cut")
    assert log == log_of(tmp_path / "whole")
    assert [line["step"] for line in log] == [0, 4, 6]


def test_a_crash_before_the_first_checkpoint_starts_again(tmp_path, monkeypatch):
    """Log lines of the lost steps must not stay."""
    changes = {"log.every": 1}
    with monkeypatch.context() as patch:
        crash_before(3, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path / "cut", changes)
    assert len(log_of(tmp_path / "cut")) == 4
    run(tmp_path / "cut", changes)
    assert [line["step"] for line in log_of(tmp_path / "cut")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_resume(number, code, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    original = Trainer.update

    def update(self, draws):
        original(self, draws)
        if self.state.step == 1:  # in the second step
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(Stopped, match=r"step 2 of 4 .* the same command") as stopped:
            run(tmp_path / "cut")
    assert stopped.value.code == code
    assert state_of(tmp_path / "cut")["step"] == 2
    run(tmp_path / "cut")
    assert differing(state_of(tmp_path / "cut"), state_of(tmp_path / "whole")) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    """A second start that opens the logs again would add an event file and a summary."""
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    summary = run(tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    ignored = tmp_path / ".lock"
    assert {**before, ignored: 0} == {**after, ignored: 0}
    assert "all 4 steps were done before" in capsys.readouterr().err
    assert summary["steps"] == 4


def test_a_kill_before_the_summary_is_made_good(tmp_path):
    run(tmp_path)
    (tmp_path / "summary.json").unlink()
    run(tmp_path)
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.parametrize("train", [run, classifier_run], ids=["gan", "classifier"])
def test_overwriting_with_data_that_are_not_there_keeps_the_run(train, tmp_path):
    train(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    nowhere = {"data.name": "folder", "data.root": str(tmp_path / "nowhere")}
    with pytest.raises(InputError, match="nowhere"):
        train(tmp_path, nowhere, overwrite=True)
    assert {path: path.read_bytes() for path in before if path.is_file()} == before
    train(tmp_path)


def test_overwrite_starts_anew(tmp_path):
    run(tmp_path, {"seed": 1})
    run(tmp_path, {"seed": 2}, overwrite=True)
    run(tmp_path.parent / "fresh", {"seed": 2})
    assert differing(state_of(tmp_path), state_of(tmp_path.parent / "fresh")) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state["config"].update(seed=5), "another config"),
        (lambda state: state.pop("optim_d"), "not a complete checkpoint"),
        (lambda state: state["generator"].popitem(), "not a complete checkpoint"),
        (lambda state: state.update(format="somebody/else/1"), "somebody/else/1"),
    ],
)
def test_a_foreign_checkpoint_is_refused_and_kept(damage, message, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        crash_before(3, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path, checkpoint_every=2)
    state = checkpoint.load(tmp_path / "last.pt", FORMAT)
    damage(state)
    checkpoint.save(tmp_path / "last.pt", state)
    content = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError, match=f"last.pt: .*{message}"):
        run(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == content
