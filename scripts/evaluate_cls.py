"""Measure how robust a trained classifier is.

    python scripts/evaluate_cls.py runs/classification/digits_convnorm/seed0
    python scripts/evaluate_cls.py RUN --attacks pgd50x10 autoattack simba_pixel sweep corruptions

RUN is a run folder or a checkpoint (.pt). Prints a table and writes beside the checkpoint the
record and a picture, evaluation/best.json and .png, and which images it is right about, best.npz;
the last command's replace the one's before. The same command again goes on where it was stopped.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classification.evaluate import Options, checkpoint_of, evaluate
from classification.evaluation_files import save
from classification.evaluation_report import table
from classification.models import load_classifier
from classification.named_attacks import NAMES, Budget
from convnorm.experiment.errors import Stopped, exit_code
from convnorm.experiment.run.distributed import pick_device


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s RUN [options]",  # in this order: --attacks takes all that follows
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or a checkpoint (.pt)")
    parser.add_argument(
        "--attacks",
        nargs="*",
        default=Options.attacks,
        metavar="NAME",
        help=f"{NAMES}; by default {' '.join(Options.attacks)}; none for the clean accuracy alone",
    )
    parser.add_argument(
        "--checkpoint", choices=["best", "last"], default="best", help="which one of a folder"
    )
    parser.add_argument(
        "--eps",
        type=float,
        help="of attacks under linf, in grey levels of 1/255 (the run's adversary.eps)",
    )
    parser.add_argument(
        "--eps_l2",
        type=float,
        default=Budget.eps_l2,
        help="under l2, pixels in [0, 1] (%(default)s)",
    )
    parser.add_argument(
        "--step_size", type=float, help="of PGD under linf, in grey levels (eps / 4, as under l2)"
    )
    parser.add_argument(
        "--max_queries", type=int, default=Budget.max_queries, help="of SimBA (%(default)s)"
    )
    parser.add_argument(
        "--split",
        choices=["test", "validation"],
        default=Options.split,
        help="which images (%(default)s)",
    )
    parser.add_argument("--num", type=int, help="evaluate a random subset of so many images")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=Options.batch_size,
        help="images at a time; AutoAttack's result depends on it (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=Budget.seed, help="of all random numbers")
    parser.add_argument("--corruptions_dir", type=Path, help="official CIFAR-10-C or CIFAR-100-C")
    parser.add_argument("--data_root", help="where the data are, if they were moved")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="(%(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = pick_device(args.device)
    loaded = load_classifier(checkpoint_of(args.run, args.checkpoint), device)
    eps = loaded.config.adversary.eps if args.eps is None else args.eps
    names = ("eps_l2", "step_size", "max_queries", "seed")
    budget = Budget(eps, **{name: getattr(args, name) for name in names})
    names = ("split", "num", "batch_size", "data_root", "corruptions_dir")
    options = Options(tuple(args.attacks), budget, **{name: getattr(args, name) for name in names})
    try:
        record, per_image = evaluate(loaded, options, device)
    except KeyboardInterrupt:
        raise Stopped("interrupted; the same command goes on where it was", 130) from None
    print(table(record))
    print(f"\nwritten to {save(record, per_image, loaded.file)}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
