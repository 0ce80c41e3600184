"""The main job on embedded data: GANs on digits that differ in the normalizer alone, compared.

Trains the configs digits_none, digits_spectral and digits_convnorm at equal seeds by
`python scripts/train_gan.py --cfg NAME --seed SEED`, then prints one table and draws one picture.
The same command again resumes, or shows the results of finished runs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib
import numpy as np
import torch
from torchvision.utils import make_grid

from convnorm.experiment import checkpoint, streams
from convnorm.experiment.data import load_images
from convnorm.experiment.distributed import pick_device
from convnorm.experiment.errors import Stopped, exit_code
from gan.config import GanConfig
from gan.models import build, load_generator, sample
from gan.scoring import Scorer

KINDS = ("none", "spectral", "convnorm")
COLUMNS = ("FD", "CS", "KID", "precision", "recall")
SHOWN = 64  # digits of each normalizer in the picture


def available_cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train_side_by_side(kind: str, folders: list[Path], steps: int | None) -> None:
    """Train or resume one run a folder, with seeds 0, 1, ..., and the cores divided among them.

    The first run shows its progress; what the others said is shown if they fail.
    """
    threads = max(1, available_cores() // len(folders))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # A plain `kill` is a Ctrl-C here: the runs save and end before this process does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as files:
        runs = {}
        for seed, folder in enumerate(folders):
            print(f"digits_{kind}, seed {seed}: {folder}", file=sys.stderr)
            command = [sys.executable, str(ROOT / "scripts" / "train_gan.py")]
            command += ["--cfg", f"digits_{kind}", "--seed", str(seed), "--run_dir", str(folder)]
            command += [] if steps is None else ["--steps", str(steps)]
            said = files.enter_context(tempfile.TemporaryFile("w+")) if seed > 0 else None
            quiet = {"stdout": subprocess.DEVNULL, "stderr": said}
            runs[subprocess.Popen(command, env=environment, **quiet)] = said
        try:
            failed = [run for run in runs if run.wait() != 0]
        except KeyboardInterrupt:
            for run in runs:
                run.terminate()
                run.wait()
            raise Stopped("stopped and saved; the same command again resumes", 130) from None
        for run in failed:
            if runs[run] is not None:
                runs[run].seek(0)
                sys.stderr.write(runs[run].read())
        if failed:
            raise Stopped(f"digits_{kind} failed, see above", failed[0].returncode)


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, to three digits."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{mean(values):.3g} ± {stdev(values):.2g}"


def untrained(config: GanConfig, device: torch.device) -> tuple[dict, dict]:
    """Scores of a generator that has learned nothing, and the real-against-real floor."""
    generator, _ = build(config, channels=1)
    scorer = Scorer(config.score.protocol, config.data, device)
    record = scorer(lambda num, seed: sample(generator, config.model.z_dim, num, seed), config.seed)
    return record["scores"], record["floor"]


def print_table(records: dict[str, list[dict]], nothing: dict, floor: dict) -> None:
    """One row a normalizer, then what is best and worst possible."""
    seeds = len(next(iter(records.values())))
    rows = [["normalizer", *(f"{column} (digits)" for column in COLUMNS)]]
    cells = {
        kind: [spread([scores[name] for scores in found]) for name in rows[0][1:]]
        for kind, found in records.items()
    }
    rows += [[kind, *row] for kind, row in cells.items()]
    rows.append(["untrained", *(f"{nothing[name]:.3g}" for name in rows[0][1:])])
    rows.append(["real digits", *(f"{floor[name]:.3g}" for name in rows[0][1:])])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\nmean ± standard deviation over n = {seeds} seeds; FD and KID: lower is better")
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print("real digits: two halves of the training images against each other (the floor)")


def draw(path: Path, grids: dict[str, torch.Tensor]) -> None:
    """One panel a title: images (N, 1, H, W) uint8."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(grids), figsize=(4 * len(grids), 4.4))
    for axis, (title, images) in zip(axes, grids.items(), strict=True):
        grid = make_grid(images, nrow=8, padding=1, pad_value=64)
        axis.imshow(np.asarray(grid.permute(1, 2, 0)), interpolation="nearest")
        axis.set_title(title, fontsize=13)
        axis.axis("off")
    figure.tight_layout()
    checkpoint.write(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="runs of each normalizer (2)")
    parser.add_argument("--steps", type=int, help="shorter or longer runs than the configs'")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs' folder (runs)")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("--seeds: expected 1 or more")

    device = pick_device("auto")
    records, grids = {}, {}
    for kind in KINDS:
        folders = [
            args.runs / "gan" / f"digits_{kind}" / f"seed{seed}" for seed in range(args.seeds)
        ]
        train_side_by_side(kind, folders, args.steps)
        summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        records[kind] = [summary["metrics"]["scores"] for summary in summaries]
        first = load_generator(folders[0])
        fd = spread([scores["FD (digits)"] for scores in records[kind]])
        grids[f"{kind}: FD (digits) {fd}"] = first.sample(SHOWN, seed=0)
    config = first.config

    real = load_images(config.data).images
    shown = torch.randperm(len(real), generator=streams.generator("cpu", "demo"))[:SHOWN]
    picture = args.runs / "demo.png"
    draw(picture, {"real digits": real[shown], **grids})
    nothing, floor = untrained(config, device)
    print_table(records, nothing, floor)
    results = {
        "command": " ".join(["python scripts/demo.py", *sys.argv[1:]]),
        "seeds": args.seeds,
        "steps": first.step,
        "hardware": summaries[0]["hardware"],
        "torch": torch.__version__,
        "scores": records,
        "untrained": nothing,
        "floor": floor,
    }
    checkpoint.write_json(args.runs / "demo.json", results)
    print(f"\npicture:     {picture}\nnumbers:     {args.runs / 'demo.json'}")
    print(f"everything:  .venv/bin/tensorboard --logdir {args.runs}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
