"""Carrying out a grid: what is done stays, what is cut resumes, what fails stops nothing else."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from toy import TOY, toy

from convnorm.experiment.benchmark import local
from convnorm.experiment.benchmark.attempt import CHILD, Command
from convnorm.experiment.benchmark.attempt_records import attempts
from convnorm.experiment.benchmark.cluster import Cluster
from convnorm.experiment.benchmark.execute import Executor, execute
from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.local import LocalExecutor, divided_machine
from convnorm.experiment.benchmark.plan import check, describe, seconds_left, survey
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run.locking import locked


def carry_out(benchmark: Benchmark, executor: Executor | None = None, workers: int = 1) -> None:
    machine = [{"OMP_NUM_THREADS": "1"}] * workers
    execute(benchmark, executor or LocalExecutor(machine), processes=1, device="auto")


def states(benchmark: Benchmark) -> list[str]:
    return [item.state for item in survey(benchmark)]


def begun(benchmark: Benchmark) -> list[list[int]]:
    """For each run, the steps that were done whenever it was begun."""
    files = [run.folder / "began" for run in benchmark.runs]
    return [list(map(int, f.read_text().split())) if f.exists() else [] for f in files]


def test_runs_that_are_done_are_not_repeated(tmp_path):
    benchmark = toy(tmp_path)
    assert states(benchmark) == ["not begun"] * 4
    carry_out(benchmark, workers=2)
    assert states(benchmark) == ["done"] * 4
    carry_out(toy(tmp_path, seeds=[0, 1, 2]))
    assert begun(benchmark) == [[0]] * 4


def test_the_grid_of_the_first_start_is_kept(tmp_path):
    """Catches a report that swears by a grid which was changed to fit the runs."""
    carry_out(toy(tmp_path, seeds=[0]))
    first = (tmp_path / "out" / "grid.yaml").read_text()
    carry_out(toy(tmp_path, seeds=[0, 1]))
    assert (tmp_path / "out" / "grid.yaml").read_text() == first
    assert yaml.safe_load(first)["seeds"] == [0]


def test_a_grid_that_came_after_runs_is_not_taken_for_that_of_the_first_start(tmp_path):
    """Such as those that --merge has taken over from folders that do not tell their grid."""
    carry_out(toy(tmp_path, seeds=[0]))
    kept = tmp_path / "out" / "grid.yaml"
    kept.unlink()
    carry_out(toy(tmp_path, seeds=[0, 1]))
    assert not kept.exists()


def test_a_failed_run_is_told_with_its_reason_and_stops_no_other(tmp_path, capsys):
    kinds = {"axes": {"kind": ["fails", "good"]}}
    benchmark = toy(tmp_path, **kinds)
    carry_out(benchmark)
    assert states(benchmark) == ["failed", "done"] * 2
    assert survey(benchmark)[0].reason == "kind: fails is not allowed"
    assert "fails, seed 0: FAILED: kind: fails is not allowed" in capsys.readouterr().err
    carry_out(benchmark)
    assert begun(benchmark) == [[0, 1], [0], [0, 1], [0]]


def test_a_run_that_went_well_after_all_is_not_called_failed(tmp_path):
    benchmark = toy(tmp_path, axes={"kind": ["fails", "good"]})
    carry_out(benchmark)
    (benchmark.runs[0].folder / "summary.json").write_text('{"score": 1}')
    assert states(benchmark)[0] == "done"


FAILS = {"axis": "kind", "against": "fails"}


def waiting(benchmark: Benchmark) -> list[Path]:
    return [run.folder for run in benchmark.runs if (run.folder / "waiting").exists()]


def when(condition, act) -> threading.Thread:
    """Call `act` in a thread as soon as `condition` holds."""

    def watch() -> None:
        end = time.monotonic() + 30
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_runs_save_and_the_same_command_goes_on(tmp_path, number):
    benchmark = toy(tmp_path, axes={"kind": ["waits", "good"]}, seeds=[0])
    thread = when(lambda: len(waiting(benchmark)) == 1, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="the same command again goes on") as stopped:
        carry_out(benchmark)
    thread.join()
    assert stopped.value.code == 128 + number
    assert states(benchmark) == ["cut", "not begun"]
    carry_out(benchmark, workers=2)
    assert states(benchmark) == ["done", "done"]
    assert begun(benchmark)[0] == [0, 2]


def test_a_killed_benchmark_takes_its_runs_with_it(tmp_path):
    """Else they would train on, unseen, and be in the way of the next start."""
    benchmark = toy(tmp_path, axes={"kind": ["waits", "good"]})
    run = benchmark.runs[0]
    script = tmp_path / "toy_script.py"
    parent = (
        "import os, subprocess, sys; os.environ['CONVNORM_PARENT'] = str(os.getpid());"
        "subprocess.run([sys.executable, *sys.argv[1:]])"
    )
    words = [sys.executable, "-c", parent, str(CHILD), str(script), *run.arguments]
    with subprocess.Popen(words, start_new_session=True) as killed:
        thread = when(lambda: waiting(benchmark), killed.kill)
        killed.wait()
    thread.join()
    orphan = int((run.folder / "waiting").read_text())
    until = time.monotonic() + 5
    while is_alive(orphan) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_alive(orphan)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_an_orphan_still_has_is_waited_for(tmp_path):
    """A run of a benchmark that was killed saves at its next step, which can take a while."""
    benchmark = toy(tmp_path, seeds=[0])
    seen = []
    with ExitStack() as orphan:
        orphan.enter_context(locked(benchmark.runs[0].folder, "run_dir"))
        timer = threading.Timer(1.5, lambda: (seen.append(begun(benchmark)), orphan.close()))
        timer.start()
        carry_out(benchmark)
    assert seen == [[[], []]]
    assert states(benchmark) == ["done", "done"]


def test_a_run_that_was_killed_is_said_to_be(tmp_path):
    """An out-of-memory kill leaves the last progress line, which would be no reason."""
    benchmark = toy(tmp_path, axes={"kind": ["dies", "good"]}, seeds=[0])
    carry_out(benchmark)
    assert survey(benchmark)[0].reason == "killed by SIGKILL; it last said: step 1 of 4"


def test_a_cluster_s_warning_is_left_to_the_job(tmp_path):
    """Slurm sends SIGUSR2 to every process of a job; it would end the training without saving."""
    benchmark = toy(tmp_path, axes={"kind": ["warned", "good"]}, seeds=[0])
    carry_out(benchmark)
    assert states(benchmark) == ["done", "done"]


def test_a_stop_does_not_hide_a_failure(tmp_path):
    benchmark = toy(tmp_path, seeds=[0], axes={"kind": ["waits", "fails"]}, compare=FAILS)
    fails = {"run": "fails, seed 0", "outcome": "failed", "reason": "why"}
    benchmark.folder.mkdir()
    line = json.dumps(fails | {"seconds": 1.0, "evaluating": 0.0, "before": 0.0, "after": 0.0})
    (benchmark.folder / "attempts.jsonl").write_text(line[:-5] + "\n" + line)
    thread = when(lambda: waiting(benchmark), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped):
        carry_out(benchmark)
    thread.join()
    assert [(item.state, item.reason) for item in survey(benchmark)] == [
        ("cut", ""),
        ("failed", "why"),
    ]


RECORD = {
    "run": "good, seed 0",
    "outcome": "failed",
    "reason": "why",
    "seconds": 1.0,
    "evaluating": 0.0,
    "before": 0.0,
    "after": 0.0,
}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"\xff\xfe", "not readable as JSON; expected the record of an attempt"),
        (b'{"run": "good, se', "not readable as JSON; expected the record of an attempt"),
        (b"[" * 100_000, "not readable as JSON; expected the record of an attempt"),
        (b"1" * 5_000, "not readable as JSON; expected the record of an attempt"),
        (b"null", "null; expected keys and values"),
        (b"3", "3; expected keys and values"),
        (b"{}", "run: is missing; expected str"),
        (json.dumps(RECORD | {"seconds": None}).encode(), "seconds: null; expected a finite num"),
        (json.dumps(RECORD | {"outcome": "won"}).encode(), "outcome: 'won'; expected one of"),
    ],
)
def test_a_damaged_line_of_attempts_is_told_and_hides_no_other(tmp_path, capsys, line, expected):
    benchmark = toy(tmp_path)
    benchmark.folder.mkdir()
    good = json.dumps(RECORD).encode()
    file = benchmark.folder / "attempts.jsonl"
    file.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    check(benchmark)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{file}, line 2: {expected}")
    assert told.endswith("; the line is left out")
    assert len(attempts(benchmark.folder)) == 2
    assert survey(benchmark)[0].reason == "why"


def test_attempts_that_are_no_file_are_refused(tmp_path):
    benchmark = toy(tmp_path)
    for make in (Path.mkdir, os.mkfifo):
        file = benchmark.folder / "attempts.jsonl"
        file.parent.mkdir(exist_ok=True)
        make(file)
        with pytest.raises(InputError, match=r"attempts.jsonl: is no file; expected one"):
            check(benchmark)
        file.rmdir() if file.is_dir() else file.unlink()


def test_what_a_run_said_is_kept(tmp_path):
    benchmark = toy(tmp_path, axes={"kind": ["fails", "good"]})
    carry_out(benchmark)
    said = (benchmark.folder / "logs" / "fails-seed0.txt").read_text()
    assert said.startswith(f"$ python scripts/{tmp_path}/toy_script.py --cfg")
    assert said.endswith("error: kind: fails is not allowed\nwarning: late\n")


# ------------------------------------------------------------------------- side by side


def test_workers_divide_the_cores(monkeypatch):
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.setattr(local, "available_gpus", lambda: [])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert divided_machine(3, 1, "auto") == [{"OMP_NUM_THREADS": "2"}] * 3
    assert divided_machine(2, 2, "auto") == [{"OMP_NUM_THREADS": "2"}] * 2
    assert divided_machine(None, 2, "auto") == [{"OMP_NUM_THREADS": "1"}] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert divided_machine(2, 1, "cpu") == [{"OMP_NUM_THREADS": "1"}] * 2


def test_workers_divide_the_gpus(monkeypatch):
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.setattr(local, "available_gpus", lambda: ["4", "5", "6", "7"])
    found = [part["CUDA_VISIBLE_DEVICES"] for part in divided_machine(2, 2, "auto")]
    assert found == ["4,5", "6,7"]
    assert "CUDA_VISIBLE_DEVICES" not in divided_machine(1, 1, "cpu")[0]


def test_small_runs_share_gpus(monkeypatch):
    """Catches a GPU that gets all runs while another has none."""
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.setattr(local, "available_gpus", lambda: ["4", "5"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = divided_machine(None, 1, "auto", runs_per_gpu=3)
    assert [part["CUDA_VISIBLE_DEVICES"] for part in found] == ["4", "5", "4", "5", "4", "5"]
    assert found[0]["OMP_NUM_THREADS"] == "1"
    found = divided_machine(2, 1, "auto", runs_per_gpu=3)
    assert [part["CUDA_VISIBLE_DEVICES"] for part in found] == ["4", "5"]
    with pytest.raises(InputError, match=r"workers: 7 .*; expected 1 to 6, as 6 places on 2 GPUs"):
        divided_machine(7, 1, "auto", runs_per_gpu=3)
    with pytest.raises(InputError, match=r"runs_per_gpu: 3 .*; expected 1 with several processes"):
        divided_machine(1, 2, "auto", runs_per_gpu=3)
    with pytest.raises(InputError, match=r"runs_per_gpu: 3 .*; expected 1, as no GPU is used"):
        divided_machine(1, 1, "cpu", runs_per_gpu=3)


@pytest.mark.parametrize(
    ("workers", "processes", "expected"),
    [
        (3, 1, "workers: 3 is not allowed; expected 1 to 2, as 2 cores are divided"),
        (0, 1, "workers: 0 is not allowed"),
        (1, 3, "processes_per_run: 3 is not allowed; expected 1 to 2, the cores"),
        (2, 2, "workers: 2 is not allowed; expected 1 to 1, as 2 cores"),
    ],
)
def test_a_machine_is_never_oversubscribed(monkeypatch, workers, processes, expected):
    monkeypatch.setattr(local, "available_cores", lambda: 2)
    with pytest.raises(InputError, match=expected):
        divided_machine(workers, processes, "cpu")


def test_a_run_sees_its_share_alone(tmp_path):
    benchmark = toy(tmp_path)
    carry_out(benchmark, LocalExecutor([{"OMP_NUM_THREADS": "5"}, {"OMP_NUM_THREADS": "7"}]))
    threads = {(run.folder / "threads").read_text() for run in benchmark.runs}
    assert threads <= {"5", "7"}


def test_several_processes_of_a_run_are_torchruns():
    command = Command("train_gan.py", ("--seed=0",), processes=2)
    expected = "torchrun --standalone --nproc_per_node=2 scripts/train_gan.py --seed=0"
    assert str(command) == expected
    assert command.words[2:6] == ["-m", "torch.distributed.run", *expected.split()[1:3]]
    assert str(Command("fid.py", ("a b",))) == "python scripts/fid.py 'a b'"


# -------------------------------------------------------------------------- on a cluster


def test_a_cluster_carries_out_the_same(tmp_path, monkeypatch):
    """submitit's local executor stands in for Slurm: the same pickles, processes and results."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    benchmark = toy(tmp_path, axes={"kind": ["fails", "good"]}, seeds=[0])
    carry_out(benchmark, Cluster("local", {"timeout_min": 5}, tmp_path / "jobs"))
    assert states(benchmark) == ["failed", "done"]
    assert survey(benchmark)[0].reason == "kind: fails is not allowed"


def test_a_job_of_several_processes_is_one_run(tmp_path, monkeypatch):
    """Through submitit and torchrun, whose environment has to come to the script."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    benchmark = toy(tmp_path, axes={"kind": ["good"]}, seeds=[0])
    where = Cluster("local", {"timeout_min": 5}, tmp_path / "jobs")
    execute(benchmark, where, processes=2, device="auto")
    assert (states(benchmark), begun(benchmark)) == (["done"], [[0]])
    folder = benchmark.runs[0].folder
    assert [(folder / f"rank{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


def test_a_cluster_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(InputError, match="--cluster slurm: Could not detect"):
        Cluster("slurm", {}, tmp_path)
    with pytest.raises(InputError, match=r"--cluster local: .*colour"):
        Cluster("local", {"colour": 3}, tmp_path)


# ------------------------------------------------------------------------------- the plan


def test_the_plan_shows_every_run_and_the_time_left(tmp_path):
    benchmark = toy(tmp_path)
    assert "time left: not known before the first run is done" in describe(benchmark, 1)
    for run, steps in ((benchmark.runs[0], 4), (benchmark.runs[1], 1)):
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").touch()
        log = "".join(json.dumps({"step": step}) + "\n" for step in range(1, steps + 1))
        (run.folder / "log.jsonl").write_text(log)
    (benchmark.runs[0].folder / "summary.json").touch()
    lines = [
        {
            "run": "good, seed 0",
            "outcome": "done",
            "reason": "",
            "seconds": 130.0,
            "evaluating": 30.0,
            "before": 0.0,
            "after": 1.0,
        },
        {
            "run": "better, seed 0",
            "outcome": "done",
            "reason": "",
            "seconds": 130.0,
            "evaluating": 30.0,
            "before": 0.0,
            "after": 0.25,
        },
    ]
    older = {key: value for key, value in lines[0].items() if key != "evaluating"}
    damaged = ['{"run": "good', "3", "{}", *map(json.dumps, [older, *lines])]
    (benchmark.folder / "attempts.jsonl").write_text("\n".join(damaged))
    # better: 0.75 and 1 of 400 s; good: 100 s; and 30 s to measure each
    progress = survey(benchmark)
    assert seconds_left(benchmark, progress, 1) == pytest.approx(890)
    assert seconds_left(benchmark, progress, 2) == pytest.approx(445)
    assert seconds_left(benchmark, progress, 8) == pytest.approx(430)  # the longest run
    text = describe(benchmark, 1)
    assert text.startswith("toy: 4 runs: 1 done, 1 cut, 2 not begun; time left: about 15 min\n")
    assert "  better, seed 0  cut at 25%\n" in text


def test_the_toy_is_a_pipeline_like_the_others():
    assert TOY.fraction_done(TOY.config(), {"step": 2}) == 0.5
