"""The demo and the benchmark from end to end, as small as they go."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def start(script: str, *args: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / script), *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_demo_trains_every_kind_and_leaves_table_numbers_and_picture(tmp_path):
    """Catches a demo that breaks where the pieces, each tested, are put together."""
    done = start("demo.py", "--seeds", "1", "--steps", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for kind in ("none", "spectral", "convnorm", "untrained", "real digits"):
        assert f"\n{kind} " in done.stdout
    results = json.loads((tmp_path / "runs" / "demo.json").read_text())
    assert results["command"] == "python scripts/demo.py --seeds 1 --steps 2"
    assert results["steps"] == 2
    scores = [results["scores"][kind][0]["FD (digits)"] for kind in results["scores"]]
    assert len(set(scores)) == 3
    assert all(results["floor"]["FD (digits)"] < score for score in scores)
    with Image.open(tmp_path / "runs" / "demo.png") as picture:
        assert picture.width > picture.height > 300


def test_demo_says_which_run_is_in_the_way(tmp_path):
    (tmp_path / "runs" / "gan" / "digits_none" / "seed0").mkdir(parents=True)
    (tmp_path / "runs" / "gan" / "digits_none" / "seed0" / "thesis.tex").touch()
    done = start("demo.py", "--seeds", "1", "--steps", "2", folder=tmp_path)
    assert done.returncode == 2
    assert "holds other files" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_speed_writes_what_it_prints(tmp_path):
    args = ("layer", "--batch_size", "2", "--repeats", "1", "--threads", "1", "--json", "a.json")
    done = start("bench_speed.py", *args, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "a.json").read_text())
    for name, means in result["geometric_means"].items():
        assert name in done.stdout
        assert all(ratio > 0 for ratio in means.values())
    assert result["command"].endswith(" ".join(args))
