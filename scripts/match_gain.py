"""Find the normalizer.scale at which the discriminator of a config has a gain that is asked for.

    python scripts/match_gain.py --cfg sngan_spectral --target 0.3
    python scripts/match_gain.py --cfg digits_convnorm --target 0.3 --kinds none spectral convnorm
    python scripts/match_gain.py --cfg sngan_spectral --target 0.1 --at init

The gain is the median norm of the gradient of the discriminator's logit to an image. At init it is
that before the first step, over three seeds. At the plateau it is that over 10 to 20 % of the
training, from pilot runs of a fifth of the steps in runs/match/NAME, at a seed of their own; the
same command again goes on with these. A grid of benchmark.py does the same for its cells.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.catalogue import CATALOGUE
from convnorm.experiment import files
from convnorm.experiment.benchmark import matching
from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.local import LocalExecutor, divided_machine
from convnorm.experiment.benchmark.targets import LARGEST, Target, target_of
from convnorm.experiment.codec import to_json
from convnorm.experiment.config import find_config, read
from convnorm.experiment.config.arguments import Parser, file_to_write, path, whole
from convnorm.experiment.config.files import list_of_configs
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.records import Match, Matched
from convnorm.experiment.report.formats import number
from convnorm.experiment.report.tables import aligned, tried
from gan.benchmark import GAN
from gan.config import GanConfig


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--cfg", help="a path or a name; without it, the configs are listed")
    parser.add_argument("--target", type=gain, metavar="G", help="the gain")
    parser.add_argument(
        "--at", choices=["init", "plateau"], default="plateau", help="(%(default)s)"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=[*CATALOGUE],
        metavar="KIND",
        help="of normalizers, instead of the config's own",
    )
    parser.add_argument("--folder", type=path, help="of the pilot runs (runs/match/NAME)")
    parser.add_argument("--out", type=path, metavar="FILE", help="for what was found, as JSON")
    parser.add_argument(
        "--workers", type=whole(1, 1024), default=1, help="pilot runs side by side (%(default)s)"
    )
    parser.add_device("of the pilot runs; auto takes CUDA devices where there are some")
    args = parser.parse_args()
    if args.cfg is None:
        parser.print_help()
        print(f"\n{list_of_configs(GAN.name)}", flush=True)
        raise InputError("--cfg: nothing given; expected a path or one of the names above")
    if args.target is None:
        raise InputError("--target: missing; expected a gain")
    if args.out:
        file_to_write(args.out, "--out")
    return args


def gain(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if target_of({"init_matched": found}) is None:
        expected = f"more than 0 and less than {LARGEST}"
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; expected {expected}")
    return found


def wanted(args: argparse.Namespace) -> Benchmark:
    """What is to be matched: the config with each of the kinds."""
    file = find_config(args.cfg, GAN.name)
    own = read(GanConfig, file).normalizer.kind
    return matching.matching_alone(
        name=file.stem,
        base=args.cfg,
        axes={"normalizer.kind": list(dict.fromkeys(args.kinds or [own]))},
        target=Target(f"{args.at}_matched", args.target),
        pipeline=GAN,
        folder=args.folder or Path("runs/match") / file.stem,
    )


def table(matches: list[Match]) -> str:
    """What was found, with all that was tried."""
    rows = []
    for match in matches:
        rows.append([match.cell, f"{match.scale:g}", number(match.gain), tried(match)])
    return aligned(["kind", "scale", "gain", "gains tried"], rows)


def main() -> int:
    args = parse_args()
    benchmark = wanted(args)
    machine = divided_machine(args.workers, 1, args.device)
    print(matching.describe(benchmark, len(machine)), flush=True)
    where = LocalExecutor(machine)  # the same for all folders
    found = list(matching.match(benchmark, lambda folder: where, 1, args.device))
    print(table(found))
    for match in found:
        for doubt in match.doubts:
            print(f"{match.cell}: {doubt}", file=sys.stderr)
    if args.out:
        files.write_json(args.out, to_json(Matched(tuple(found))))
        print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
