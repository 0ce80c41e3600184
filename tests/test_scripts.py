"""The measurement of speed from end to end, as small as it goes."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def start(script: str, *args: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / script), *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_bench_speed_writes_what_it_prints(tmp_path):
    args = ("layer", "--batch_size", "2", "--repeats", "1", "--threads", "1", "--json", "a.json")
    done = start("bench_speed.py", *args, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "a.json").read_text())
    for name, means in result["geometric_means"].items():
        assert name in done.stdout
        assert all(ratio > 0 for ratio in means.values())
    assert result["command"].endswith(" ".join(args))
