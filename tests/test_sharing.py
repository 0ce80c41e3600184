"""How many runs share a GPU: from invented cards, estimates and peaks, as no GPU is needed."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from runs import tiny, tiny_classifier
from toy import toy

from classification.benchmark import CLASSIFICATION
from convnorm.experiment.benchmark import local, sharing
from convnorm.experiment.benchmark.attempt import AttemptRecord
from convnorm.experiment.benchmark.deadline import Deadline
from convnorm.experiment.benchmark.grid import Benchmark, Run
from convnorm.experiment.benchmark.local import LocalExecutor, local_executor
from convnorm.experiment.benchmark.sharing import (
    CONTEXT,
    checked,
    fitting,
    most_needed,
    told_by,
)
from convnorm.experiment.errors import InputError
from gan.benchmark import GAN

GIB = 2**30
ESTIMATES = {"none": 1 * GIB, "full": 2 * GIB}


@pytest.mark.parametrize(
    ("estimates", "told", "cell", "gib", "known"),
    [
        (ESTIMATES, {}, "full", 2.0, "estimated, at least"),
        (ESTIMATES, {"none": 3 * GIB}, "full", 6.0, "reckoned"),  # three times its estimate too
        (ESTIMATES, {"full": 3 * GIB}, "full", 3.0, "measured"),  # and none 1.5
        (ESTIMATES, {"none": 3 * GIB, "full": 2.5 * GIB}, "none", 3.0, "measured"),
        (ESTIMATES, {"none": GIB // 2}, "full", 2.0, "reckoned"),  # an estimate is a lower bound
        ({"full": 2 * GIB}, {"done before": 9 * GIB}, "full", 2.0, "reckoned"),
    ],
)
def test_the_cell_that_takes_most_decides(estimates, told, cell, gib, known):
    need = most_needed(estimates, told)
    assert (need.cell, need.bytes, need.known) == (cell, gib * GIB + CONTEXT, known)


@pytest.mark.parametrize(
    ("card", "cores", "told", "runs", "line"),
    [
        (80, 99, {}, 1, "1 until one has been scored and tells what it takes: 2.5 GiB (full, esti"),
        (80, 99, {"none": 1, "full": 3.5}, 16, "up to 4.0 GiB (full, measured) and 80% of the GPU"),
        (80, 16, {"full": 3.5}, 16, "80% of the GPU's memory are 64.0 GiB"),
        (80, 5, {"full": 3.5}, 5, "64.0 GiB; there are cores for 5"),
        (79.9, 99, {"full": 3.5}, 15, "63.9 GiB"),
        (4, 99, {"full": 3.5}, 1, "1, as a run takes up to 4.0 GiB (full, measured)"),
    ],
)
def test_auto_stays_within_its_share_of_the_memory(card, cores, told, runs, line):
    told = {cell: int(gib * GIB) for cell, gib in told.items()}
    found, said = fitting(int(card * GIB), cores, ESTIMATES, told)
    assert found == runs
    assert said.startswith(f"runs per GPU: {runs}")
    assert line in said
    assert "\n" not in said


def test_a_number_that_cannot_fit_is_refused_and_one_that_may_not_is_warned_of():
    """The estimate is a lower bound, so it can refuse; what was measured may have been cached."""
    with pytest.raises(InputError, match=r"runs_per_gpu: 9 is not allowed; expected 8 or fewer"):
        checked(9, 20 * GIB, ESTIMATES, {})
    said = checked(8, 20 * GIB, ESTIMATES, {})
    assert said == (
        "runs per GPU: 8, each of which takes up to 2.5 GiB (full, estimated, at least) of 20.0 GiB"
    )
    said = checked(8, 20 * GIB, ESTIMATES, {"full": 3 * GIB})
    assert said.startswith("warning: runs per GPU: 8, each of which takes up to 3.5 GiB (full, mea")
    assert said.endswith("28.0 GiB do not fit, and runs may fail")
    with pytest.raises(InputError, match="expected 1 or fewer"):
        checked(2, 2 * GIB, ESTIMATES, {})


# --------------------------------------------------------------------------- what runs tell


def write_log(run: Run, *lines: dict[str, Any], scored: int | None = None) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if scored is not None:
        line = json.dumps({"step": scored, "scores": {}}) + "\n"
        (run.folder / "metrics.jsonl").write_text(line)


def finish(run: Run, memory: int | None, logged: int | None = None, world_size: int = 1) -> None:
    log = {"step": 4} | ({} if logged is None else {"device_memory": logged})
    content = {"device_memory": memory, "log": log, "segments": [{"world_size": world_size}]}
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "summary.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda run: None, None),
        (lambda run: write_log(run, {"step": 1, "device_memory": 5}), None),
        (lambda run: write_log(run, {"step": 2, "device_memory": 5}, scored=2), None),
        (lambda run: write_log(run, {"step": 3, "device_memory": 7}, scored=2), 7),
        (lambda run: write_log(run, {"step": 3}, scored=2), None),  # on a CPU
        (lambda run: finish(run, 9, 8), 9),
        (lambda run: finish(run, 8, 9), 9),  # its last part was only the end
        (lambda run: finish(run, None), None),
        (lambda run: finish(run, 9, 9, world_size=2), None),
    ],
)
def test_a_run_tells_what_it_takes_once_it_was_scored(tmp_path, write, told):
    """The scores' networks can take more than a small GAN; a line before them tells too little."""
    run = toy(tmp_path).runs[0]
    write(run)
    assert told_by(run) == told


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"device_memory": "much"}'])
def test_a_damaged_file_tells_nothing(tmp_path, content):
    run = toy(tmp_path).runs[0]
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text(content)
    assert told_by(run) is None


# ------------------------------------------------------------------------------ the executor


@dataclass
class Waiting:
    """An attempt that goes on until it is let go."""

    benchmark: Benchmark
    run: Run
    environment: dict[str, str] = field(default_factory=dict)
    log: Path = Path("log.txt")
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> AttemptRecord:
        assert self.over.wait(30)
        return AttemptRecord(self.run.name, "done", "", 1.0, 0.0, 0.0, 1.0)

    def stop(self) -> None:
        self.over.set()


@pytest.fixture
def machine(monkeypatch) -> Callable[..., LocalExecutor]:
    """Makes what carries out runs on two GPUs of 10 GiB with 16 cores."""
    monkeypatch.setattr(local, "available_cores", lambda: 16)
    monkeypatch.setattr(local, "available_gpus", lambda: ["4", "5"])
    monkeypatch.setattr(local, "gpu_memory", lambda: 10 * GIB)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(workers: int | None = None, runs_per_gpu: int | None = None) -> LocalExecutor:
        return local_executor(workers, runs_per_gpu, 1, "auto", Deadline())

    return make


def submit_all(executor: LocalExecutor, waiting: list[Waiting]) -> list[Waiting]:
    """Submit as many as there is room for."""
    going = []
    while waiting and executor.has_room():
        going.append(waiting.pop(0))
        executor.submit(going[-1])
    return going


def gpus(attempts: list[Waiting]) -> list[str]:
    return sorted(attempt.environment["CUDA_VISIBLE_DEVICES"] for attempt in attempts)


def test_runs_come_in_when_the_first_has_told_what_it_takes(tmp_path, machine, capsys):
    benchmark = toy(tmp_path, seeds=list(range(10)))
    waiting = [Waiting(benchmark, run) for run in benchmark.runs]
    executor = machine()
    try:
        going = submit_all(executor, waiting)
        assert gpus(going) == ["4", "5"]
        assert executor.workers == 2
        assert going[0].environment["OMP_NUM_THREADS"] == "8"
        assert "runs per GPU: 1 until one has been scored" in capsys.readouterr().err
        write_log(going[0].run, {"step": 3, "device_memory": int(1.5 * GIB)}, scored=2)
        assert list(executor.ended()) == []
        told = capsys.readouterr().err.splitlines()
        assert told == [
            "runs per GPU: 4, as a run takes up to 2.0 GiB (good, measured) and 80% of the GPU's "
            "memory are 8.0 GiB"
        ]
        going += submit_all(executor, waiting)
        assert gpus(going) == ["4"] * 4 + ["5"] * 4
        assert going[-1].environment["OMP_NUM_THREADS"] == "2"
        # A cell that takes more: no further run, until fewer go on than fit.
        write_log(going[1].run, {"step": 3, "device_memory": int(3.5 * GIB)}, scored=2)
        for attempt in going[:5]:
            attempt.over.set()
            executor.wait(10)
        while len(executor._going) > 3:
            list(executor.ended())
        assert "runs per GPU: 2, as a run takes up to 4.0 GiB (better" in capsys.readouterr().err
        left = [each.attempt for each in executor._going]
        more = submit_all(executor, waiting)
        assert len(more) == 1
        assert gpus([*left, *more]) == ["4", "4", "5", "5"]
    finally:
        executor.stop()


def test_what_runs_told_before_counts_from_the_start(tmp_path, machine):
    benchmark = toy(tmp_path, seeds=list(range(10)))
    finish(benchmark.runs[0], int(1.5 * GIB), GIB)
    executor = machine()
    try:
        going = submit_all(executor, [Waiting(benchmark, run) for run in benchmark.runs[1:]])
        assert gpus(going) == ["4"] * 4 + ["5"] * 4
    finally:
        executor.stop()


def test_a_number_is_checked_before_the_first_run(tmp_path, machine, monkeypatch):
    benchmark = toy(tmp_path)
    monkeypatch.setattr(local, "gpu_memory", lambda: GIB)
    executor = machine(runs_per_gpu=3)
    with pytest.raises(InputError, match=r"runs_per_gpu: 3 is not allowed; expected 1 or fewer"):
        executor.submit(Waiting(benchmark, benchmark.runs[0]))
    monkeypatch.setattr(local, "gpu_memory", lambda: 4 * GIB)
    executor = machine(runs_per_gpu=2)
    try:
        going = submit_all(executor, [Waiting(benchmark, run) for run in benchmark.runs])
        assert gpus(going) == ["4", "4", "5", "5"]
    finally:
        executor.stop()


def test_without_gpus_there_is_nothing_to_share(machine, monkeypatch):
    monkeypatch.setattr(local, "available_gpus", lambda: [])
    for asked, shown in ((None, "auto"), (3, "3")):
        with pytest.raises(
            InputError, match=f"runs_per_gpu: '?{shown}'? .*; expected 1, as no GPU"
        ):
            machine(runs_per_gpu=asked)


def test_the_memory_of_both_pipelines_is_estimated():
    """As the runs themselves do: of another config, another run would be refused."""
    for pipeline, config in ((GAN, tiny()), (CLASSIFICATION, tiny_classifier())):
        estimate = pipeline.memory(config)
        assert 0 < estimate.weights + estimate.batch < sharing.GIB
