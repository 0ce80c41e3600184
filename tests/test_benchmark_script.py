"""scripts/benchmark.py from end to end, as small as it goes, with both pipelines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from runs import ROOT, SELECTED, TINY, TINY_CLASSIFIER, Child, arguments, script

GAN = {
    "question": "Which tiny GAN is better?",
    "pipeline": "gan",
    "base": "digits_convnorm",
    "set": {**TINY, **SELECTED, "score.every": 2},
    "axes": {"normalizer.kind": ["none", "convnorm"]},
    "seeds": [0],
    "score": {"name": "FD (digits)"},
    "compare": {"axis": "normalizer.kind", "against": "convnorm"},
}
CLASSIFIER = {
    "question": "Which tiny classifier is more robust?",
    "pipeline": "classification",
    "base": "digits_convnorm",
    "set": TINY_CLASSIFIER,
    "axes": {"normalizer.kind": ["batch", "convnorm"]},
    "seeds": [0],
    "score": {"name": "fgsm", "at": "selected"},
    "compare": {"axis": "normalizer.kind", "against": "convnorm"},
    "attacks": ["fgsm"],
}


def write(folder: Path, grid: dict, **changes) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**grid, **changes}, sort_keys=False))
    return str(path)


def start(folder: Path, *args: str) -> tuple[int, str]:
    """The benchmark as it is typed, to its end: an interpreter of its own."""
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--device", "cpu", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, timeout=300, **pipes)
    return done.returncode, done.stdout


def child(folder: Path, *args: str, monkeypatch: pytest.MonkeyPatch) -> Child:
    """The benchmark in a process that has everything imported; its runs have not."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Child(folder / "output.txt", script, "benchmark.py", "--device", "cpu", *args)


def test_a_killed_benchmark_of_gans_goes_on_and_reports(tmp_path, monkeypatch):
    """Killed in its first run, it trains what is left, repeats nothing and writes the report.

    A learning rate of 1e30 ends in a loss that is no number, and stops no other run. The run with
    ConvNorm is done before.
    """
    kinds = {kind: {"normalizer.kind": kind} for kind in ("none", "convnorm")}
    axes = {"network": {**kinds, "broken": {"normalizer.kind": "none", "optim.lr": 1e30}}}
    cfg = write(tmp_path, GAN, axes=axes, compare={"axis": "network", "against": "convnorm"})
    folder = tmp_path / "runs" / "benchmark" / "tiny"
    run_dir, kind = folder / "convnorm" / "seed0", {"normalizer.kind": "convnorm"}
    carry_out(tmp_path, "train_gan.py", *arguments(run_dir, {**GAN["set"], **kind}))
    done = content(folder / "convnorm")
    killed = child(tmp_path, "--cfg", cfg, monkeypatch=monkeypatch)
    until = time.monotonic() + 60
    while not (folder / "none" / "seed0" / "last.pt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(killed.process.pid, signal.SIGKILL)
    assert killed.end()[0] == -signal.SIGKILL
    code, output = start(tmp_path, "--cfg", cfg, "--workers", "auto")
    assert code == 1, output
    assert content(folder / "convnorm") == done
    assert "broken, seed 0: FAILED: " in output
    assert "Traceback" not in output
    assert output.endswith(f"report: {folder.relative_to(tmp_path)}/report.html\n")
    results = json.loads((folder / "results.json").read_text())
    assert [run["state"] for run in results["runs"]] == ["done", "done", "failed"]
    assert [cell["n"] for cell in results["cells"]] == [1, 1, 0]
    report = (folder / "report.md").read_text()
    assert "n = 1" in report
    assert "| broken | failed: step 1: the loss is NaN or infinite" in report
    assert "data:image" in (folder / "report.html").read_text()
    code, output = child(tmp_path, "--cfg", cfg, "--print_plan", monkeypatch=monkeypatch).end()
    assert code == 0, output
    assert "3 runs: 2 done, 1 failed" in output


def carry_out(folder: Path, name: str, *words: str) -> None:
    """What a run of a benchmark does, in a process that has everything imported."""
    code, output = Child(folder / "output.txt", script, name, *words).end()
    assert code == 0, output


def content(folder: Path) -> dict[Path, bytes]:
    """What is in the files of a folder and of those below."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_benchmark_of_classifiers_measures_and_compares_image_by_image(tmp_path, monkeypatch):
    """One cell is trained and evaluated by the benchmark, the other was before."""
    before = tmp_path / "out" / "convnorm" / "seed0"
    kind = {"normalizer.kind": "convnorm"}
    carry_out(tmp_path, "train_cls.py", *arguments(before, kind, TINY_CLASSIFIER))
    for checkpoint in ("last", "best"):
        words = (f"--checkpoint={checkpoint}", "--attacks", "fgsm", "--device=cpu")
        carry_out(tmp_path, "evaluate_cls.py", str(before), *words)
    done = content(before)
    cfg = write(tmp_path, CLASSIFIER)
    benchmark = child(tmp_path, "--cfg", cfg, "--folder", "out", monkeypatch=monkeypatch)
    code, output = benchmark.end(300)
    assert code == 0, output
    assert content(before) == done
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["metrics"]) == {"clean", "fgsm", "ECE", "NLL"}
    (test,) = results["mcnemar"]
    assert (test["cell"], test["against"], test["images"]) == ("batch", "convnorm", 360)
    assert set(results["runs"][0]["result"]["scores"]) == {"final", "selected"}


@pytest.mark.parametrize(
    ("changes", "args", "expected"),
    [
        ({"axes": {"optim.lrr": [1]}}, [], ": compare.axis: 'normalizer.kind' is not allowed"),
        ({"set": {"optim.lrr": 1}}, [], "tiny.yaml: optim.lrr: no such key; expected optim.lr"),
        ({}, ["--report"], "runs/benchmark/tiny: nothing to report: none of 2 runs is done"),
        ({}, ["--workers", "0"], "error: --workers: '0' is not allowed; expected 1 to "),
        ({}, ["--submitit", "a=1"], "error: --submitit: ['a=1'] is not allowed; expected none"),
        ({}, ["--cluster", "local", "--submitit", "a"], "--submitit: 'a' is not allowed"),
        ({}, ["--cluster", "local", "--workers", "2"], "--workers: 2 is not allowed"),
        (
            {},
            ["--cluster", "local", "--submitit", "timeout_min=-1"],
            "--submitit timeout_min: -1 is not allowed; expected 5 minutes or more",
        ),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(tmp_path, monkeypatch, changes, args, expected):
    cfg = write(tmp_path, GAN, **changes)
    code, output = child(tmp_path, "--cfg", cfg, *args, monkeypatch=monkeypatch).end()
    assert code == 2
    assert expected in output
    assert len(output.splitlines()) == 1
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_run_of_another_config_is_in_the_way(tmp_path, monkeypatch):
    cfg = write(tmp_path, GAN)
    place = tmp_path / "runs" / "benchmark" / "tiny" / "convnorm" / "seed0"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("seed: 7\n")
    (place / "log.jsonl").touch()
    code, output = child(tmp_path, "--cfg", cfg, monkeypatch=monkeypatch).end()
    assert code == 2
    assert "convnorm/seed0 holds a run of another config (seed: 7 there, 0 here" in output
    assert len(output.splitlines()) == 1


def test_the_plan_is_printed_and_nothing_is_made(tmp_path, monkeypatch):
    cfg = write(tmp_path, GAN)
    code, output = child(tmp_path, "--cfg", cfg, "--print_plan", monkeypatch=monkeypatch).end()
    assert code == 0
    assert output.splitlines()[0].startswith("tiny: 2 runs: 2 not begun; time left: not known")
    assert not (tmp_path / "runs").exists()
