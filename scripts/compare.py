"""Hold two finished runs of one pipeline against each other.

    python scripts/compare.py runs/gan/sngan_convnorm/seed0 runs/gan/sngan_spectral/seed0
    python scripts/compare.py RUN_A RUN_B --out pair.html

Prints in what their configs differ, their scores and, of classifiers that evaluate_cls.py has
evaluated, McNemar's exact test on the images of both evaluations. --out draws the curves of
training and the samples of both into one picture, or one page with the text. Runs that were
measured in different ways are refused. Two runs are two networks: whether one way of training is
better than another needs several seeds, see benchmark.py.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classification.benchmark import CLASSIFICATION
from classification.pair import read_pair
from convnorm.experiment.benchmark.pair import Pairing, gather_pair
from convnorm.experiment.config.arguments import Parser, file_to_write, path
from convnorm.experiment.errors import exit_code
from convnorm.experiment.report import pair as report
from gan.benchmark import GAN


def read_gans(a: Path, b: Path) -> Pairing:
    """A GAN is scored in one way, during its training."""
    return Pairing(*(GAN.read(run_dir, ()) for run_dir in (a, b)))


READERS = {GAN.name: (GAN, read_gans), CLASSIFICATION.name: (CLASSIFICATION, read_pair)}


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("a", metavar="RUN_A", type=path, help="the folder of a finished run")
    parser.add_argument("b", metavar="RUN_B", type=path, help="that of another")
    parser.add_argument(
        "--out", metavar="FILE", type=path, help="a picture (.png) or a page (.html) to write"
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.out:
        report.check_out(args.out)
        file_to_write(args.out, "--out")
    pair = gather_pair(args.a, args.b, READERS)
    print(report.text(pair))
    if args.out:
        report.write(pair, args.out)
        print(f"\nwritten: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
