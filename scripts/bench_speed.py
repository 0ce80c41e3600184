"""Measure how fast the suite is, as ratios of times that are taken in turn.

    python scripts/bench_speed.py layer     single layers: training, evaluation, memory
    python scripts/bench_speed.py filter    the filter alone: one matrix or a pair of FFTs
    python scripts/bench_speed.py gan       a full update of SNGAN's networks for each normalizer
    python scripts/bench_speed.py cls       a step of ResNet-18 for each, Free's, and PGD-20
    python scripts/bench_speed.py score     a score of 10,000 images, by its parts
    python scripts/bench_speed.py growth    what grows with batch, map, channels and processes
    python scripts/bench_speed.py table     the goals, from a file of results

What is compared takes turns within each round, so that a disturbance of the machine meets all of
it. A number is the median over the rounds, followed by the least and the most; a ratio is taken
within a round. Data are random, and a layer gets another map in each call. With --json a part is
written beside the others of its device: results/speed_DEVICE.json has all.
"""

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS.parent), str(SCRIPTS)]

import torch

from convnorm.experiment.config import require
from convnorm.experiment.config.arguments import Parser, file_to_write, path, whole
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.run.distributed import pick_device
from convnorm.experiment.run.hardware import commit, hardware
from speed import cls, filter, gan, growth, layer, record, score
from speed.bench import Bench
from speed.table import table

PARTS = {
    "layer": layer.measure,
    "filter": filter.measure,
    "gan": gan.measure,
    "cls": cls.measure,
    "score": score.measure,
    "growth": growth.measure,
}
# Option -> who reads it, where not all parts do.
READERS = {
    "batch_size": ("layer", "filter"),
    "goals": ("gan", "cls", "score", "growth"),
}
BATCH_SIZE = 32


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    choices = (*PARTS, "table")
    parser.add_argument("what", choices=choices, help="what is timed, see above")
    parser.add_argument(
        "--batch_size",
        type=whole(1, 4096),
        help=f"images at a time, of layer and filter ({BATCH_SIZE}; tiny 2)",
    )
    parser.add_argument(
        "--goals",
        action="store_true",
        default=None,
        help="of gan, cls, score and growth only what the table of goals shows",
    )
    parser.add_device("auto takes a CUDA device where there is one")
    parser.add_argument(
        "--threads",
        type=whole(1, 4096),
        default=torch.get_num_threads(),
        help="of the CPU (%(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=whole(1, 10**6),
        default=7,
        help="rounds of a comparison, at most; on a CPU 3 of what takes seconds (%(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="after which a comparison begins no further round, once it has two, or three of what "
        "takes seconds (%(default)s)",
    )
    parser.add_argument("--tiny", action="store_true", help="as small as it goes: no benchmark")
    parser.add_argument(
        "--json", type=path, help="write the part into this file too; of table: the file to read"
    )
    args = parser.parse_args()
    for option, readers in READERS.items():
        if getattr(args, option) is not None and args.what not in readers:
            raise InputError(
                f"--{option}: not read by {args.what}; expected with {', '.join(readers)}"
            )
    require(0 < args.seconds <= 86400, "--seconds", args.seconds, "more than 0, at most a day")
    return args


def measured(args: argparse.Namespace) -> None:
    """Measure a part, and write it beside those that the file has."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = pick_device(args.device)
    identity = record.Identity(device.type, hardware(device), args.tiny)
    if args.json:
        file_to_write(args.json, "--json")
        record.parts_beside(args.json, args.what, identity)
    print(f"{identity.hardware}, torch {torch.__version__}{', tiny' * args.tiny}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench_speed") as folder:
        bench = Bench(
            device,
            identity.hardware,
            args.tiny,
            bool(args.goals),
            args.batch_size or (2 if args.tiny else BATCH_SIZE),
            args.repeats,
            args.seconds,
            Path(folder),
        )
        found = PARTS[args.what](bench)
    seconds = time.monotonic() - start
    print(f"{seconds:.0f} s")
    if args.json:
        part = {**described(identity), "seconds": seconds, **found}
        # Read again: another part may have been written meanwhile.
        parts = record.parts_beside(args.json, args.what, identity)
        record.write(args.json, {**parts, args.what: part})


def described(identity: record.Identity) -> dict[str, Any]:
    """What a part was measured by, on and with."""
    return {
        "command": " ".join(["python scripts/bench_speed.py", *sys.argv[1:]]),
        **vars(identity),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit(),
    }


def main() -> None:
    args = parse_args()
    if args.what == "table":
        if args.json is None:
            raise InputError("--json: missing; expected the file of results that table reads")
        print(table(record.read(args.json)))
    else:
        measured(args)


if __name__ == "__main__":
    sys.exit(exit_code(main))
