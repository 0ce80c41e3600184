"""scripts/train_gan.py in processes of its own: killed, stopped, resumed, and misused."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ROOT, Child, arguments, differing, log_of, script, state_of

LONG = {"steps": 400, "log.every": 1, "log.norms_every": 1000, "train.n_dis": 1}


def train(tmp_path: Path, changes: dict | None = None, *argv: str) -> Child:
    """Start training in tmp_path/run."""
    options = arguments(tmp_path / "run", changes)
    return Child(tmp_path / "output.txt", script, "train_gan.py", *options, *argv)


def wait_for_a_log_line(run_dir: Path, more_than: int = 1) -> None:
    log, deadline = run_dir / "log.jsonl", time.monotonic() + 60
    while not log.is_file() or log.read_text().count("\n") <= more_than:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def last_line(output: str) -> str:
    assert "Traceback" not in output
    return output.splitlines()[-1]


def test_it_works_from_another_folder_without_the_package_installed(tmp_path):
    """Python puts scripts/ on its path, not the folder above it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "scripts" / "train_gan.py")]
    done = subprocess.run(
        [*command, *arguments(Path("here"), {"steps": 1})],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trained 1 steps; the run is in here\n")
    assert done.stderr.startswith("run: here\n")
    assert "\nsteps: 1\nstep 0/1 margin " in done.stderr  # plain lines where there is no terminal
    assert state_of(tmp_path / "here")["step"] == 1


def test_killed_at_any_moment_it_ends_as_if_left_alone(tmp_path):
    """Whatever is not written as a whole, or not at all, shows in one of the kills."""
    changes = {"steps": 60, "log.every": 2, "train.ema_decay": 0.9, "normalizer.kind": "spectral"}
    (tmp_path / "whole").mkdir()
    assert train(tmp_path / "whole", changes).end()[0] == 0
    run_dir = tmp_path / "run"
    moments = random.Random(0)
    reached = []
    for attempt in range(6):
        child = train(tmp_path, changes, "--checkpoint_every=1")
        if attempt > 1:  # the first two kills fall into the start
            lines = len(log_of(run_dir)) if (run_dir / "log.jsonl").exists() else 0
            wait_for_a_log_line(run_dir, max(1, lines))  # one comes before the first step
        time.sleep(moments.uniform(0, 0.1))
        os.kill(child.process.pid, signal.SIGKILL)
        assert child.end()[0] == -signal.SIGKILL
        reached.append(state_of(run_dir)["step"] if (run_dir / "last.pt").exists() else 0)
    assert 0 < reached[2] < reached[-1] < 60  # each attempt went on where the last one was
    code, output = train(tmp_path, changes).end()
    assert code == 0, output
    whole = tmp_path / "whole" / "run"
    assert differing(state_of(run_dir), state_of(whole)) == []
    assert log_of(run_dir) == log_of(whole)
    assert not list(run_dir.glob(".last.pt.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_folder_is_held_until_then(number, tmp_path):
    child = train(tmp_path, LONG)
    wait_for_a_log_line(tmp_path / "run")
    (tmp_path / "second").mkdir()
    second = Child(
        tmp_path / "second.txt", script, "train_gan.py", *arguments(tmp_path / "run", LONG)
    )
    code, output = second.end()
    assert code == 2
    assert last_line(output).startswith(f"error: run_dir: {tmp_path}/run is in use by another")
    os.kill(child.process.pid, number)
    code, output = child.end()
    assert code == 128 + number
    step = state_of(tmp_path / "run")["step"]
    assert 0 < step < 400
    assert last_line(output) == (
        f"stopped at step {step} of 400 and saved in {tmp_path}/run; the same command again resumes"
    )


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """A limit on the size of files stands for a full disk."""
    child = train(tmp_path, LONG)
    wait_for_a_log_line(tmp_path / "run")
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.end()[0] == 143
    last = tmp_path / "run" / "last.pt"
    before = last.read_bytes()
    options = arguments(tmp_path / "run", LONG)
    limited = Child(tmp_path / "output.txt", limited_script, len(before) - 1, *options)
    code, output = limited.end()
    assert code == 2
    assert last_line(output) == (
        f"error: {last}: cannot be written (File too large); what was there before is untouched"
    )
    assert last.read_bytes() == before


def limited_script(num_bytes: int, *argv: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    script("train_gan.py", *argv, "--checkpoint_every=2")


def cut(last: Path) -> None:
    last.write_bytes(last.read_bytes()[:-1000])


def replace_by_noise(last: Path) -> None:
    last.write_bytes(random.Random(0).randbytes(5000))


@pytest.mark.parametrize("damage", [cut, replace_by_noise])
def test_a_damaged_checkpoint_is_named_and_kept(damage, tmp_path):
    assert train(tmp_path).end()[0] == 0
    last = tmp_path / "run" / "last.pt"
    damage(last)
    content = last.read_bytes()
    code, output = train(tmp_path).end()
    assert (code, output) == (
        2,
        f"error: {last}: damaged or not a checkpoint of this version; "
        "expected one of format 'convnorm-suite/gan/5'\n",
    )
    assert last.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.lr": "fast"}, "error: optim.lr: fast is not allowed; expected float"),
        ({"device": "cuda"}, "error: device: 'cuda' is not available; expected cpu, or auto"),
        ({"data.name": "npz", "data.root": "no"}, "error: data.root: no does not exist"),
        ({"train.batch_size": 5000}, "error: train.batch_size: got 5000, expected 1 to 1437"),
        ({"model.arch": "sngan_resnet", "data.image_size": 20}, "error: data.image_size: 20, "),
        ({"score.protocol": "fid50k_train"}, "error: "),
        ({"run_dir": "/dev/null/x"}, "error: run_dir: /dev/null/x cannot be used"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(changes, message, tmp_path):
    child = train(tmp_path, None, *(f"--{key}={value}" for key, value in changes.items()))
    code, output = child.end()
    assert code == 2
    assert output.startswith(message)
    assert output.count("\n") == 1
    # And the corrected command is not refused for what the wrong one left there.
    assert not (tmp_path / "run").exists()
    code, output = train(tmp_path, {"steps": 1}).end()
    assert code == 0, output


def test_a_second_start_of_a_finished_run_says_so(tmp_path):
    assert train(tmp_path).end()[0] == 0
    code, output = train(tmp_path).end()
    assert code == 0
    assert output.startswith(f"{tmp_path}/run: all 4 steps were done before\n")


def test_a_nan_ends_with_a_code_of_its_own(tmp_path):
    code, output = train(tmp_path, {"optim.lr": 1e30}).end()
    assert code == 1
    assert "is NaN or infinite, the run cannot go on" in last_line(output)
