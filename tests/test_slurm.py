"""A benchmark on Slurm: with commands that answer as Slurm 22.05 was seen to, and with a real one.

What submitit and the controller do is the same in both; the real Slurm is used where there is one.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import cloudpickle
import pytest
from runs import Child
from test_execute import begun, carry_out, states, waiting, when
from toy import toy

from convnorm.experiment.benchmark import cluster, slurm
from convnorm.experiment.benchmark import execute as execution
from convnorm.experiment.benchmark.attempt import Attempt, AttemptRecord
from convnorm.experiment.benchmark.attempt_records import attempts
from convnorm.experiment.benchmark.cluster import PYTHON, Cluster
from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.plan import survey
from convnorm.experiment.errors import InputError, Stopped

COMMANDS = {
    "srun": "",
    # A job gets the state that lies in `state`; nothing is run.
    "sbatch": """
        if [ -f refusal ]; then cat refusal >&2; exit 1; fi
        id=$(($(cat queue | wc -l) + 1))
        echo "$id|$(cat state)|None|$(sed -n 's/^#SBATCH --job-name=//p' "$1")" >> queue
        cp "$1" script
        echo "Submitted batch job $id"
    """,
    "squeue": """
        echo >> asked
        if [ -f silent ]; then echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1; fi
        if [ "$SQUEUE_PARTITION" = "" ]; then cat queue; fi
    """,
    "scancel": """
        echo "$@" >> cancelled
        for id in "$@"; do sed -i "s/^$id|[A-Z_]*|/$id|CANCELLED|/" queue; done
    """,
}


class FakeSlurm:
    """Commands on the PATH that stand in for Slurm's; their state lies in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        for name, body in COMMANDS.items():
            file = folder / name
            file.write_text(f"#!/bin/sh\ncd {folder}\n{body}")
            file.chmod(0o755)
        self.write("queue", "")
        self.write("state", "PENDING\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def read(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def ends(self, jobs: Path, job: str, state: str, result: object = None) -> None:
        """Let a job end, with the result that submitit would have written."""
        if result is not None:
            jobs.joinpath(f"{job}_0_result.pkl").write_bytes(cloudpickle.dumps(result))
        lines = [line.split("|") for line in self.read("queue")]
        lines = [[i, state if i == job else old, *rest] for i, old, *rest in lines]
        self.write("queue", "".join("|".join(line) + "\n" for line in lines))


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeSlurm:
    found = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{found.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(execution, "POLL", 0.05)
    monkeypatch.setattr(slurm, "POLL", 0.05)
    monkeypatch.setattr(cluster, "GRACE", 0.1)
    return found


def on_slurm(benchmark: Benchmark, **parameters: object) -> Cluster:
    return Cluster("slurm", parameters, benchmark.folder / "jobs")


def record(benchmark: Benchmark, outcome: str = "done", reason: str = "") -> AttemptRecord:
    return AttemptRecord(benchmark.runs[0].name, outcome, reason, 1.0, 0.0, 0.0, 1.0)


def one_run(folder: Path) -> Benchmark:
    return toy(folder, axes={"kind": ["good"]}, seeds=[0])


# ------------------------------------------------------------------------- submitting


REFUSALS = [
    "sbatch: error: invalid partition specified: nope\n"
    "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
    "sbatch: error: Invalid generic resource (gres) specification\n",
]


@pytest.mark.parametrize("words", REFUSALS)
def test_a_refused_job_is_one_line_with_slurm_s_words(tmp_path, fake, capsys, words):
    benchmark = one_run(tmp_path)
    fake.write("refusal", words)
    with pytest.raises(InputError, match="--cluster slurm: good, seed 0: sbatch: error: ") as error:
        carry_out(benchmark, on_slurm(benchmark))
    assert words.strip() in str(error.value)
    assert "sbatch" not in capsys.readouterr().err  # said twice
    assert states(benchmark) == ["not begun"]
    assert not list((benchmark.folder / "jobs").glob("*.json"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("timeout_min", 4, "5 minutes or more: the cluster's warning comes 90 s and up to a min"),
        ("timeout_min", -5, "5 minutes or more"),
        ("timeout_min", True, "5 minutes or more"),
        ("slurm_time", "01:00:00", "5 minutes or more"),
        ("slurm_time", float("nan"), "5 minutes or more"),
        ("slurm_timeout_min", 0, "5 minutes or more"),
        ("slurm_signal_delay_s", -1, "a number of seconds"),
        ("slurm_signal_delay_s", "90", "a number of seconds"),
        ("name", "mine", "none: each run is a job, named after it"),
        ("slurm_job_name", "mine", "none: each run is a job, named after it"),
        ("nodes", 2, "1, as --processes_per_run sets the others"),
        ("tasks_per_node", 2, "1, as --processes_per_run sets the others"),
    ],
)
def test_what_no_job_can_run_under_is_refused(tmp_path, fake, key, value, expected):
    with pytest.raises(InputError) as error:
        on_slurm(one_run(tmp_path), **{key: value})
    assert str(error.value).startswith(f"--submitit {key}: {value!r} is not allowed; expected ")
    assert expected in str(error.value)


@pytest.mark.parametrize("key", ["gpus_per_node", "slurm_gpus_per_node"])
def test_processes_without_a_gpu_each_are_refused_before_they_wait_for_hours(tmp_path, fake, key):
    benchmark = one_run(tmp_path)
    where = on_slurm(benchmark, **{key: 1})
    expected = r"--submitit gpus_per_node: 1 is not allowed; expected 2 or more, as --processes"
    with pytest.raises(InputError, match=expected):
        where.submit(Attempt(benchmark, benchmark.runs[0], processes=2))
    assert fake.read("queue") == []
    where.submit(Attempt(benchmark, benchmark.runs[0], processes=2, device="cpu"))
    assert len(fake.read("queue")) == 1


def test_a_longer_warning_needs_a_longer_time(tmp_path, fake):
    benchmark = one_run(tmp_path)
    with pytest.raises(InputError, match=r"expected 14 minutes or more: .* comes 600 s"):
        on_slurm(benchmark, timeout_min=13, slurm_signal_delay_s=600)
    on_slurm(benchmark, timeout_min=14, slurm_signal_delay_s=600)


@pytest.mark.parametrize("missing", ["squeue", "scancel", "sbatch"])
def test_a_cluster_without_its_commands_is_said_to_be_one(tmp_path, fake, monkeypatch, missing):
    (fake.folder / missing).unlink()
    monkeypatch.setenv("PATH", str(fake.folder))
    with pytest.raises(InputError, match=f"--cluster slurm: there is no {missing}; expected it"):
        on_slurm(one_run(tmp_path))


def test_a_job_has_a_name_and_srun_its_cores(tmp_path, fake):
    benchmark = one_run(tmp_path)
    fake.write("state", "CANCELLED\n")
    carry_out(benchmark, on_slurm(benchmark, cpus_per_task=3))
    script = (fake.folder / "script").read_text()
    assert "#SBATCH --job-name=toy:good-seed0\n" in script
    assert "#SBATCH --cpus-per-task=3\n" in script
    assert "--cpus-per-task=3 sh -c " in script


# ------------------------------------------------------------------------ how jobs end


@pytest.mark.parametrize("state", sorted(cluster.INTERRUPTED))
def test_a_job_that_the_cluster_ended_is_stopped(tmp_path, fake, capsys, state):
    """Its run has not failed, and resumes."""
    benchmark = one_run(tmp_path)
    fake.write("state", f"{state}\n")
    carry_out(benchmark, on_slurm(benchmark))
    told = f"good, seed 0: stopped: job 1 ended without a result ({state}); the next start goes on"
    assert told in capsys.readouterr().err
    assert states(benchmark) == ["not begun"]
    assert attempts(benchmark.folder) == []


@pytest.mark.parametrize("state", sorted(slurm.OVER - cluster.INTERRUPTED))
def test_a_job_that_died_has_failed_and_is_named_with_its_log(tmp_path, fake, capsys, state):
    benchmark = one_run(tmp_path)
    fake.write("state", f"{state}\n")
    log = benchmark.folder / "jobs" / "1_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"loading\nerror: out of \xff memory\n\n")
    carry_out(benchmark, on_slurm(benchmark))
    (item,) = survey(benchmark)
    reason = f"job 1 ended without a result ({state}); its log ends: error: out of \ufffd memory"
    assert (item.state, item.reason) == ("failed", reason)
    own = benchmark.folder / "logs" / "good-seed0.txt"
    assert f"FAILED: {reason} (job 1: {own}, {log})" in capsys.readouterr().err


def test_a_killed_job_is_noticed_without_accounting(tmp_path, fake):
    """There is no sacct, and after some minutes squeue knows the job no more."""
    benchmark = one_run(tmp_path)
    asked = when(lambda: len(fake.read("asked")) > 1, lambda: fake.write("queue", ""))
    carry_out(benchmark, on_slurm(benchmark))
    asked.join()
    assert survey(benchmark)[0].reason == "job 1 ended without a result (gone from the queue)"


def test_the_job_of_someone_else_with_the_same_id_is_not_ours(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(cluster, "GRACE", 0)
    benchmark = one_run(tmp_path)
    where = on_slurm(benchmark)
    where.submit(Attempt(benchmark, benchmark.runs[0]))
    fake.write("queue", "1|RUNNING|None|other\n")
    assert [ended.record.outcome for ended in where.ended()] == ["failed"]


@pytest.mark.parametrize("busy", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"])
def test_a_job_goes_on_until_slurm_says_otherwise(tmp_path, fake, busy):
    """Also while Slurm does not answer, and where a requeued job has left a result before."""
    benchmark = one_run(tmp_path)
    where = on_slurm(benchmark)
    where.submit(Attempt(benchmark, benchmark.runs[0]))
    jobs = benchmark.folder / "jobs"
    fake.ends(jobs, "1", busy, ("success", record(benchmark, "stopped")))
    assert list(where.ended()) == []
    fake.write("silent", "")
    fake.write("queue", "")
    time.sleep(0.1)
    assert list(where.ended()) == []


def test_a_slurm_that_does_not_answer_is_told_once(tmp_path, fake, capsys):
    benchmark = one_run(tmp_path)
    where = on_slurm(benchmark)
    where.submit(Attempt(benchmark, benchmark.runs[0]))
    fake.write("silent", "")
    for _ in range(3):
        list(where.ended())
        time.sleep(0.1)
    told = "squeue does not answer, waiting: slurm_load_jobs error: Unable to contact\n"
    assert capsys.readouterr().err == told


def test_a_job_that_may_never_start_is_told_once(tmp_path, fake, capsys):
    benchmark = toy(tmp_path)
    where = on_slurm(benchmark)
    for run in benchmark.runs:
        where.submit(Attempt(benchmark, run))
    fake.write("queue", "\n".join(fake.read("queue")).replace("None", "PartitionConfig"))
    for _ in range(3):
        assert list(where.ended()) == []
        time.sleep(0.1)
    assert capsys.readouterr().err == "job 1 (toy:good-seed0) waits: PartitionConfig\n"


def test_all_jobs_are_asked_for_at_once(tmp_path, fake, monkeypatch):
    """A user's own settings of squeue would hide them, and an older answer knows no newer job."""
    monkeypatch.setenv("SQUEUE_PARTITION", "debug")
    monkeypatch.setattr(slurm, "POLL", 60)
    monkeypatch.setattr(cluster, "GRACE", 0)
    benchmark = toy(tmp_path)
    where = on_slurm(benchmark)
    for run in benchmark.runs:
        where.submit(Attempt(benchmark, run))
        assert list(where.ended()) == []
    assert len(fake.read("asked")) == 1


def test_what_a_job_says_of_its_run_counts(tmp_path, fake, capsys):
    benchmark = one_run(tmp_path)
    jobs = benchmark.folder / "jobs"
    results = [
        ("success", record(benchmark, "failed", "the loss is NaN")),
        ("error", "Traceback\n  File\nUncompletedJobError: timed-out too many times.\n"),
        "no result at all",
    ]
    expected = ["the loss is NaN", "UncompletedJobError: timed-out too many times.", "cannot be"]
    for number, (result, reason) in enumerate(zip(results, expected, strict=True), start=1):
        ends = when(
            lambda: (jobs / "good-seed0.json").exists(),
            lambda number=number, r=result: fake.ends(jobs, str(number), "COMPLETED", r),
        )
        carry_out(benchmark, on_slurm(benchmark))
        ends.join()
        assert reason in survey(benchmark)[0].reason
        assert f"(job {number}: " in capsys.readouterr().err


def test_the_result_of_an_earlier_job_with_the_same_id_does_not_count(tmp_path, fake):
    """A Slurm that is set up anew counts from 1 again."""
    benchmark = one_run(tmp_path)
    jobs = benchmark.folder / "jobs"
    jobs.mkdir(parents=True)
    fake.ends(jobs, "1", "", ("success", record(benchmark, "failed", "old")))
    fake.write("state", "TIMEOUT\n")
    carry_out(benchmark, on_slurm(benchmark))
    assert attempts(benchmark.folder) == []


def test_ctrl_c_cancels_all_jobs_adopted_ones_too(tmp_path, fake):
    benchmark = toy(tmp_path, seeds=[0])
    submitted(benchmark)
    asked = when(lambda: len(fake.read("queue")) == 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    gone = when(lambda: fake.read("cancelled"), lambda: fake.write("queue", ""))
    with pytest.raises(Stopped, match="the same command again goes on"):
        carry_out(benchmark, on_slurm(benchmark))
    asked.join()
    gone.join()
    assert fake.read("cancelled") == ["1 2"]
    assert states(benchmark) == ["not begun"] * 2
    assert attempts(benchmark.folder) == []


# --------------------------------------------------------------- after a killed controller


def submitted(benchmark: Benchmark) -> None:
    """Leave a job as a controller does that is killed."""
    on_slurm(benchmark).submit(Attempt(benchmark, benchmark.runs[0]))


def test_jobs_that_go_on_are_adopted_and_nothing_is_queued_twice(tmp_path, fake, capsys):
    benchmark = toy(tmp_path, axes={"kind": ["good", "better"]}, seeds=[0])
    submitted(benchmark)
    ends = when(
        lambda: len(fake.read("queue")) == 2,
        lambda: [
            fake.ends(benchmark.folder / "jobs", "1", "COMPLETED", ("success", record(benchmark))),
            fake.ends(benchmark.folder / "jobs", "2", "CANCELLED"),
        ],
    )
    carry_out(benchmark, on_slurm(benchmark))
    ends.join()
    assert "good, seed 0: goes on as job 1\n" in capsys.readouterr().err
    assert [line.split("|")[3] for line in fake.read("queue")] == [
        "toy:good-seed0",
        "toy:better-seed0",
    ]
    assert attempts(benchmark.folder) == [record(benchmark)]
    assert not list((benchmark.folder / "jobs").glob("*.json"))


def test_a_job_that_ended_unwatched_is_noted_and_its_run_tried_again(tmp_path, fake, capsys):
    benchmark = one_run(tmp_path)
    submitted(benchmark)
    failed = record(benchmark, "failed", "the loss is NaN")
    fake.ends(benchmark.folder / "jobs", "1", "COMPLETED", ("success", failed))
    fake.write("state", "CANCELLED\n")
    carry_out(benchmark, on_slurm(benchmark))
    assert "good, seed 0: FAILED: the loss is NaN (job 1: " in capsys.readouterr().err
    assert attempts(benchmark.folder) == [failed]
    assert len(fake.read("queue")) == 2


def test_a_job_with_other_settings_is_not_adopted(tmp_path, fake):
    """It would train what the grid asked for when it was submitted."""
    submitted(one_run(tmp_path))
    benchmark = toy(tmp_path, axes={"kind": ["good"]}, seeds=[0], set={"steps": 2})
    where = on_slurm(benchmark)
    with pytest.raises(InputError, match=r"job 1 carries out good, seed 0 with other .*scancel 1"):
        where.submit(Attempt(benchmark, benchmark.runs[0]))
    where.stop()
    assert fake.read("queue") == ["1|PENDING|None|toy:good-seed0"]
    assert fake.read("cancelled") == []


@pytest.mark.parametrize(
    "content", [b"", b"null", b"3", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"job": 1}']
)
def test_a_damaged_id_is_one_line(tmp_path, fake, content):
    benchmark = one_run(tmp_path)
    submitted(benchmark)
    (file,) = (benchmark.folder / "jobs").glob("*.json")
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        on_slurm(benchmark)
    assert str(error.value).startswith(f"{file}: damaged (")
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------- in the job


@pytest.mark.parametrize(
    ("variables", "processes", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "8"}, 1, "6"),
        ({"SLURM_CPUS_ON_NODE": "8"}, 1, "8"),
        ({"SLURM_CPUS_ON_NODE": "8"}, 3, "2"),
        ({"SLURM_CPUS_ON_NODE": "64"}, 1, "16"),  # bound to 16
        ({"SLURM_CPUS_ON_NODE": "8", "OMP_NUM_THREADS": "3"}, 1, "3"),
        ({}, 1, "1"),
    ],
)
def test_threads_follow_the_cores_of_the_job(tmp_path, monkeypatch, variables, processes, expected):
    """Two jobs of a node that take all its cores each are many times slower than one."""
    monkeypatch.setattr(cluster, "available_cores", lambda: 16)
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Attempt, "__call__", lambda self: self.environment)
    benchmark = one_run(tmp_path)
    job = cluster._Job(Attempt(benchmark, benchmark.runs[0], processes))
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert job()["OMP_NUM_THREADS"] == expected
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_scancel_s_signal_stops_the_run(tmp_path, monkeypatch):
    """All processes of the job get it; the run saves, and has not failed."""
    benchmark = toy(tmp_path, axes={"kind": ["waits"]}, seeds=[0], compare=WAITS)

    def terminate() -> None:
        os.kill(int((waiting(benchmark)[0] / "waiting").read_text()), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.getsignal(signal.SIGTERM)
    thread = when(lambda: waiting(benchmark), terminate)
    try:
        found = cluster._Job(Attempt(benchmark, benchmark.runs[0]))()
    finally:
        signal.signal(signal.SIGTERM, previous)
        thread.join()
    assert (found.outcome, found.after) == ("stopped", 0.5)


def test_a_run_that_someone_stopped_has_not_failed(tmp_path, capsys):
    benchmark = toy(tmp_path, axes={"kind": ["waits"]}, seeds=[0], compare=WAITS)
    thread = when(
        lambda: waiting(benchmark),
        lambda: os.kill(int((waiting(benchmark)[0] / "waiting").read_text()), signal.SIGTERM),
    )
    carry_out(benchmark)
    thread.join()
    assert states(benchmark) == ["cut"]
    assert "waits, seed 0: stopped: " in capsys.readouterr().err


def test_a_warning_before_python_listens_does_not_end_the_job():
    warned = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('goes on')"
    words = [*shlex.split(PYTHON), "-c", warned]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "goes on\n")


WAITS = {"axis": "kind", "against": "waits"}


# ------------------------------------------------------------------------- a real Slurm


def real_slurm() -> bool:
    """Whether there is a Slurm that answers."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return False
    try:
        words = ["sinfo", "--noheader", "--states=idle,mixed"]
        found = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return False
    return found.returncode == 0 and bool(found.stdout.strip())


def _start(folder: str) -> None:
    benchmark = toy(Path(folder), axes={"kind": ["waits", "good"]}, seeds=[0])
    carry_out(benchmark, on_slurm(benchmark, timeout_min=5, cpus_per_task=1))


@pytest.mark.skipif(not real_slurm(), reason="no Slurm that answers")
def test_a_real_slurm_is_adopted_stopped_and_goes_on(tmp_path, monkeypatch, capsys):
    """A killed controller, a second one that adopts its job, Ctrl-C, and a third one."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    benchmark = toy(tmp_path, axes={"kind": ["waits", "good"]}, seeds=[0])
    first = Child(tmp_path / "output.txt", _start, str(tmp_path))
    until = time.monotonic() + 120
    while not waiting(benchmark) and time.monotonic() < until:
        time.sleep(0.1)
    first.process.kill()
    first.end()
    (file,) = (benchmark.folder / "jobs").glob("waits*.json")
    job = json.loads(file.read_text())["job"]
    queue = ["squeue", "--noheader", "--format=%A %j"]
    named = subprocess.run(queue, capture_output=True, text=True, check=True).stdout
    assert f"{job} toy:waits-seed0" in named
    thread = when(
        lambda: f"waits, seed 0: goes on as job {job}" in capsys.readouterr().err,
        lambda: os.kill(os.getpid(), signal.SIGINT),
    )
    with pytest.raises(Stopped):
        carry_out(benchmark, on_slurm(benchmark, timeout_min=5, cpus_per_task=1))
    thread.join()
    assert states(benchmark)[0] == "cut"
    assert [attempt for attempt in attempts(benchmark.folder) if attempt.outcome == "failed"] == []
    carry_out(benchmark, on_slurm(benchmark, timeout_min=5, cpus_per_task=1))
    assert states(benchmark) == ["done", "done"]
    assert begun(benchmark)[0] == [0, 2]
    assert (benchmark.runs[0].folder / "threads").read_text() == "1"


@pytest.mark.skipif(not real_slurm(), reason="no Slurm that answers")
def test_a_real_slurm_refuses_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    benchmark = one_run(tmp_path)
    with pytest.raises(InputError, match=r"--cluster slurm: good, seed 0: sbatch: error: .*nope"):
        carry_out(benchmark, on_slurm(benchmark, slurm_partition="nope"))
