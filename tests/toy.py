"""A pipeline whose runs take no time, for the tests of what surrounds runs in a benchmark."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.loading import load
from convnorm.experiment.benchmark.pipeline import Pipeline, Result
from convnorm.experiment.records import Cost, CurvePoint, Metric, Segment, When
from convnorm.experiment.run.memory import Estimate

# "Trains" `steps` steps; the kind decides how: `fails`, `waits` for a signal at half of them.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

given = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
folder, kind, steps = Path(given["run_dir"]), given.get("kind", "good"), int(given.get("steps", 4))
folder.mkdir(parents=True, exist_ok=True)
rank = os.environ.get("RANK", "0")
(folder / f"rank{rank}").write_text(os.environ.get("WORLD_SIZE", "1"))
if rank != "0":
    sys.exit()
(folder / "threads").write_text(os.environ.get("OMP_NUM_THREADS", ""))
(folder / "config.yaml").write_text(f"kind: {kind}\\nsteps: {steps}\\nseed: {given['seed']}\\n")
log = folder / "log.jsonl"
done = len(log.read_text().splitlines()) if log.exists() else 0
(folder / "began").open("a").write(f"{done}\\n")
for step in range(done + 1, steps + 1):
    with log.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
    if kind == "fails":
        print("error: kind: fails is not allowed\\nwarning: late", file=sys.stderr)
        sys.exit(2)
    if kind == "dies":
        print(f"step {step} of {steps}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "warned":
        os.kill(os.getpid(), signal.SIGUSR2)
    if kind == "waits" and done == 0 and step == steps // 2:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        (folder / "waiting").write_text(str(os.getpid()))
        time.sleep(60)
(folder / "summary.json").write_text(json.dumps({"score": len(kind) + int(given["seed"])}))
"""


@dataclass(frozen=True)
class Config:
    """Of a run that takes no time."""

    kind: str = "good"
    steps: int = 4
    seed: int = 0


def _fraction_done(config: Config, line: dict[str, Any]) -> float:
    return line["step"] / config.steps


def _scores(config: Config, attacks: tuple[str, ...]) -> dict[When, dict[str, Metric]]:
    metrics = {"FD": Metric("lower")}
    return {"final": metrics, "selected": metrics if config.steps > 1 else {}}


def _remaining_evaluations(
    folder: Path, attacks: tuple[str, ...], num: int | None
) -> list[list[str]]:
    return []


def _read(folder: Path, attacks: tuple[str, ...], num: int | None) -> Result:
    score = float(json.loads((folder / "summary.json").read_text())["score"])
    return Result(
        metrics={"FD": Metric("lower")},
        scores={"final": {"FD": score}, "selected": {"FD": score - 1}},
        selected_step=2,
        curve_name="FD",
        curve=(CurvePoint(2, 1.0, score - 1), CurvePoint(4, 2.0, score)),
        norms={},
        protocol={"name": "toy"},
        floor={"FD": 0.1},
        cost=Cost(network="toy", parameters=10, macs=100, steps=4, seconds=2.0, peak_memory=1000),
        segments=(Segment(0, None, "2.11.0", "3.11.7", None, "cpu", "toy", 1),),
        versions={"toy": "1"},
    )


TOY = Pipeline(
    name="gan",
    config=Config,
    script="toy_script.py",
    format="toy/1",
    memory=lambda config: Estimate(weights=config.steps * 2**20, batch=2**20),
    scores=_scores,
    conditions=lambda config, attacks: {},
    fraction_done=_fraction_done,
    remaining_evaluations=_remaining_evaluations,
    read=_read,
)


def write_grid(folder: Path, **changes: Any) -> Path:
    """Write toy.yaml, a grid of two kinds at two seeds but for `changes`, and what it needs."""
    (folder / "base.yaml").write_text("kind: good\n")
    (folder / "toy_script.py").write_text(SCRIPT)
    grid = {
        "question": "Which toy is better?",
        "pipeline": "gan",
        "base": str(folder / "base.yaml"),
        "axes": {"kind": ["good", "better"]},
        "seeds": [0, 1],
        "score": {"name": "FD"},
        "compare": {"axis": "kind", "against": "good"},
        **changes,
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path


def toy(folder: Path, **changes: Any) -> Benchmark:
    """The benchmark of `write_grid`, whose runs are below folder/out."""
    path = write_grid(folder, **changes)
    pipeline = replace(TOY, script=str(folder / "toy_script.py"))
    return load(str(path), folder / "out", {"gan": pipeline})
