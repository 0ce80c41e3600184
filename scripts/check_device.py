"""Check a new machine: is the suite right on this GPU, and how fast?

    python scripts/check_device.py                           # all, on the GPU if there is one
    python scripts/check_device.py --parts layer attacks     # some
    python scripts/check_device.py --device cpu --tiny       # whether the check itself works

It needs no network and no data. Parts, in the order in which they run:

runs     short trainings of both pipelines, killed in the middle and resumed: equal to the last bit
layer    ConvNorm2d, forward and backward, against float64 on the CPU, in every precision
attacks  FGSM, PGD and SimBA against the same on the CPU: budgets, success, gains computed once
steps    what an update waits for (nothing), the kernels that a step launches, and the same step as
         a CUDA graph: equal in bits, and its time; GPU only
speed    whole training steps of the normalizers in turn, as ratios to the plain network
layers   the single layers of bench_speed.py, as replays of CUDA graphs
filter   the circular filter by FFT, by a matrix and fused, and the two ceilings of the card

Only runs, layer, attacks, steps and the fused filter judge; the others measure. Numbers under
--tiny or --device cpu are no benchmark. A part that has used its share of --seconds begins no
further case, and is said to be skipped. check_device.json is written after every part, so a check
that is cut keeps what it has.
The exit code is 0 if everything that was checked is right, else 1.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS.parent), str(SCRIPTS)]

import torch

from convnorm.experiment.config import require
from convnorm.experiment.config.arguments import Parser, path
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.files import write_json
from convnorm.experiment.run.distributed import pick_device
from convnorm.experiment.run.hardware import commit, hardware
from device_checks import attacks, filtering, layer, layers, runs, session, speed, steps
from device_checks.children import in_child
from device_checks.part import Part, Setup

RECORD = "check_device.json"
STARTING = 120.0  # seconds until a device answers, at most


@dataclass(frozen=True)
class Share:
    """A part, and how much of the budget it may use in proportion to the others."""

    part: Part
    weight: float


# In this order: children are forked before this process touches CUDA. The weights are about the
# seconds that the parts take on an H100, of 460.
PARTS = {
    "runs": Share(runs.cases, 150),
    "layer": Share(layer.cases, 45),
    "attacks": Share(attacks.cases, 8),
    "steps": Share(steps.cases, 47),
    "speed": Share(speed.cases, 110),
    "layers": Share(layers.cases, 36),
    "filter": Share(filtering.cases, 64),
}


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_device("what is checked; auto takes a CUDA device where there is one")
    parser.add_argument("--tiny", action="store_true", help="as small as it goes: a test, no check")
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="which (all)"
    )
    parser.add_argument("--out", type=path, default=Path(), help=f"folder of {RECORD} (this one)")
    parser.add_argument("--seconds", type=float, default=460.0, help="budget (%(default)s)")
    args = parser.parse_args()
    require(0 < args.seconds <= 86400, "--seconds", args.seconds, "more than 0, and at most a day")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {args.out} cannot be made ({error.strerror})") from None
    return args


def device_and_card(device: str) -> tuple[torch.device, str]:
    """Touches CUDA, to ask what there is."""
    picked = pick_device(device)
    return picked, hardware(picked)


def tell(start: float, part: str, case: str, result: session.CaseResult) -> None:
    """Print a line, with the seconds since `start`."""
    passed = time.monotonic() - start
    print(f"[{passed:4.0f} s] {part}: {case}: {result.status}: {result.line}", flush=True)


def check(names: Iterable[str], setup: Setup, out: Path) -> dict[str, Any]:
    """Carry out parts, print what they find and keep it in `out`; return the record."""
    start, seconds = time.monotonic(), setup.seconds_left()
    record: dict[str, Any] = {
        "seconds_given": seconds,
        "hardware": setup.card,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "commit": commit(),
        "benchmark": setup.on_gpu and not setup.tiny,
        "parts": {},
    }
    chosen = {name: share for name, share in PARTS.items() if name in names}
    weights = {name: share.weight for name, share in chosen.items()}
    deadlines = session.deadlines(weights, start, seconds)
    for name, share in chosen.items():
        own = replace(setup, deadline=deadlines[name])
        result = session.carry_out(share.part, own, partial(tell, start, name))
        record["parts"][name] = result.record()
        record["seconds"] = time.monotonic() - start
        write_json(out / RECORD, record)
    return record


def table(record: dict[str, Any]) -> str:
    """A line a part."""
    words = {"ok": "ok", "failed": "FAILED", "skipped": "skipped"}
    lines = (
        f"{name + ':':9}{words[part['status']]}{', ' * bool(part['why'])}{part['why']}"
        for name, part in record["parts"].items()
    )
    return "\n".join(lines)


def main() -> int:
    args = parse_args()
    device, card = in_child(device_and_card, args.device, seconds=STARTING)
    print(f"{card}, torch {torch.__version__}")
    if args.tiny or device.type == "cpu":
        print("numbers under --tiny or on a CPU are no benchmark")
    with tempfile.TemporaryDirectory(prefix="check_device") as folder:
        setup = Setup(device, card, args.tiny, Path(folder), time.monotonic() + args.seconds)
        record = check(args.parts, setup, args.out)
    print(f"\n{table(record)}\nwritten: {args.out / RECORD}")
    return int(any(part["status"] == "failed" for part in record["parts"].values()))


if __name__ == "__main__":
    sys.exit(exit_code(main))
