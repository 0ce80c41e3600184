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
from runs import ROOT, SELECTED, TINY, TINY_CLASSIFIER, Child, script

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


def start(folder: Path, *args: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--device", "cpu", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def end(process: subprocess.Popen) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, output


def child(folder: Path, *args: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """For what starts no run: in a process that has everything imported."""
    monkeypatch.chdir(folder)
    return Child(folder / "output.txt", script, "benchmark.py", "--device", "cpu", *args).end()


def test_a_killed_benchmark_of_gans_goes_on_and_reports(tmp_path, monkeypatch):
    """Killed in its first run, it trains what is left, repeats nothing and writes the report.

    A learning rate of 1e30 ends in a loss that is no number, and stops no other run.
    """
    kinds = {kind: {"normalizer.kind": kind} for kind in ("none", "convnorm")}
    axes = {"network": {**kinds, "broken": {"normalizer.kind": "none", "optim.lr": 1e30}}}
    cfg = write(tmp_path, GAN, axes=axes, compare={"axis": "network", "against": "convnorm"})
    folder = tmp_path / "runs" / "benchmark" / "tiny"
    process = start(tmp_path, "--cfg", cfg)
    until = time.monotonic() + 60
    while not (folder / "none" / "seed0" / "last.pt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, output = end(start(tmp_path, "--cfg", cfg, "--workers", "auto"))
    assert code == 1, output
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
    code, output = child(tmp_path, "--cfg", cfg, "--print_plan", monkeypatch=monkeypatch)
    assert code == 0, output
    assert "3 runs: 2 done, 1 failed" in output


def test_a_benchmark_of_classifiers_measures_and_compares_image_by_image(tmp_path):
    code, output = end(start(tmp_path, "--cfg", write(tmp_path, CLASSIFIER), "--folder", "out"))
    assert code == 0, output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["metrics"]) == {"clean", "fgsm"}
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
    code, output = child(tmp_path, "--cfg", cfg, *args, monkeypatch=monkeypatch)
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
    code, output = child(tmp_path, "--cfg", cfg, monkeypatch=monkeypatch)
    assert code == 2
    assert "convnorm/seed0 holds a run of another config (seed: 7 there, 0 here" in output
    assert len(output.splitlines()) == 1


def test_the_plan_is_printed_and_nothing_is_made(tmp_path, monkeypatch):
    cfg = write(tmp_path, GAN)
    code, output = child(tmp_path, "--cfg", cfg, "--print_plan", monkeypatch=monkeypatch)
    assert code == 0
    assert output.splitlines()[0].startswith("tiny: 2 runs: 2 not begun; time left: not known")
    assert not (tmp_path / "runs").exists()
