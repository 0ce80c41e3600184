"""Measure how robust a trained classifier is.

    python scripts/evaluate_cls.py runs/classification/digits_convnorm/seed0
    python scripts/evaluate_cls.py RUN --attacks pgd50x10 autoattack simba_pixel sweep corruptions
    python scripts/evaluate_cls.py --reference model_best.pth --arch resnet18

RUN is a run folder or a checkpoint (.pt). Prints a table and writes beside the checkpoint the
record and a picture, evaluation/best.json and .png, and which images it is right about, best.npz.
Another command with the same settings adds its attacks to the record. One with other settings has a
record of its own, whose name says which, such as best_num=60_eps=4.json. Where both best.pt and
last.pt were evaluated with the same settings, it says how much worse the last weights are on the
same images (robust overfitting). Nothing is measured twice: the same command again goes on where it
was stopped, and says what is known by now. --reference takes a checkpoint of ConvNorm's published
code in place of RUN.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classification.evaluate import checkpoint_of, evaluate, load
from classification.evaluation_files import others, record_file, save
from classification.evaluation_options import Options
from classification.evaluation_report import table, told_apart
from classification.named_attacks import NAMES, Budget
from classification.overfitting import overfitting
from classification.reference import ARCHITECTURES as REFERENCES
from classification.reference import load_reference
from convnorm.experiment.config.arguments import Parser
from convnorm.experiment.errors import Stopped, exit_code
from convnorm.experiment.run.distributed import pick_device


def parse_args() -> argparse.Namespace:
    # In this order: --attacks takes all that follows.
    parser = Parser(__doc__, usage="%(prog)s RUN [options]")
    parser.add_argument(
        "run", metavar="RUN", type=Path, nargs="?", help="a run folder or a checkpoint (.pt)"
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        type=Path,
        help="a checkpoint (.pth) of ConvNorm's published code, in place of RUN (none)",
    )
    parser.add_argument("--arch", choices=REFERENCES, help="the network of --reference (none)")
    parser.add_argument(
        "--checkpoint",
        choices=["best", "last"],
        help="of a run folder: best.pt, selected on the validation split, or last.pt (best)",
    )
    add_attacks(parser)
    parser.add_argument(
        "--split",
        choices=["test", "validation"],
        default=Options.split,
        help="validation: what the run held out of its training images (%(default)s)",
    )
    parser.add_argument(
        "--num",
        metavar="N",
        type=int,
        help="evaluate a random subset of so many images (all of the split)",
    )
    parser.add_argument(
        "--batch_size",
        metavar="N",
        type=int,
        default=Options.batch_size,
        help="images at a time, 1 to 100,000; AutoAttack's result and that of its first stages "
        "depend on it (%(default)s)",
    )
    parser.add_argument(
        "--data_root", metavar="PATH", help="where the data are, if moved (the run's data.root)"
    )
    parser.add_device("auto takes a CUDA device where there is one")
    args = parser.parse_args()
    if args.run is None and args.reference is None:
        parser.error("RUN: missing; expected it, or --reference FILE --arch NAME; see --help")
    if args.run is not None and args.reference is not None:
        parser.error(f"RUN: {args.run} is not allowed; expected none beside --reference")
    if args.checkpoint is not None and (args.run is None or args.run.is_file()):
        parser.error(
            f"--checkpoint: {args.checkpoint} is not allowed; expected it with the folder of a run"
        )
    if (args.reference is None) != (args.arch is None):
        parser.error(
            f"--arch: {args.arch} is not allowed; expected it with --reference, and only so"
        )
    return args


def add_attacks(parser: Parser) -> None:
    """Add the options of what images go through."""
    parser.add_argument(
        "--attacks",
        nargs="*",
        default=Options.attacks,
        metavar="NAME",
        help=f"{NAMES}; apgd_ce_t is APGD-CE + APGD-T, the first two stages of AutoAttack; by "
        f"default {' '.join(Options.attacks)}; none for the clean accuracy alone",
    )
    parser.add_argument(
        "--eps",
        metavar="LEVELS",
        help="of attacks under linf, in grey levels of 255: 8 or 8/255 (the run's adversary.eps)",
    )
    parser.add_argument(
        "--eps_l2",
        metavar="NORM",
        default=Budget.eps_l2,
        help="of attacks under l2, the Euclidean norm of an image's change for pixels in [0, 1]: "
        "0.5 or 128/255 (%(default)s)",
    )
    parser.add_argument(
        "--step_size",
        metavar="LEVELS",
        help="of PGD under linf, in grey levels of 255: 2 or 2/255, at most 2 eps (eps / 4, which "
        "it always is under l2)",
    )
    parser.add_argument(
        "--max_queries",
        metavar="N",
        type=int,
        default=Budget.max_queries,
        help="how often SimBA may show an image to the network, 1 to 1,000,000 (%(default)s)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=int,
        default=Budget.seed,
        help="of all random numbers, 0 to 2**63 - 1 (%(default)s)",
    )
    parser.add_argument(
        "--corruptions_dir",
        metavar="FOLDER",
        type=Path,
        help="the .npy files of the official CIFAR-10-C or CIFAR-100-C (corruptions made here)",
    )


def main() -> None:
    args = parse_args()
    device = pick_device(args.device)
    if args.reference is None:
        loaded = load(checkpoint_of(args.run, args.checkpoint or "best"), device)
    else:
        loaded = load_reference(args.reference, args.arch, device)
    own_eps = loaded.config.adversary.eps
    names = ("eps_l2", "step_size", "max_queries", "seed")
    eps = own_eps if args.eps is None else args.eps
    budget = Budget(eps, **{name: getattr(args, name) for name in names})
    names = ("split", "num", "batch_size", "data_root", "corruptions_dir")
    options = Options(tuple(args.attacks), budget, **{name: getattr(args, name) for name in names})
    try:
        found = evaluate(loaded, options, device)
    except KeyboardInterrupt:
        raise Stopped("interrupted; the same command goes on where it was", 130) from None
    file = record_file(loaded.file, options, own_eps)
    save(found.record, found.right, file)
    print(f"{table(found.record)}\n\n{told_apart(found.record, found.computed)}")
    for line in overfitting(loaded.file.parent, file, found.record, found.right):
        print(line)
    for other, record in others(file, found.record).items():
        print(f"\n{other.name}, another record of these weights:\n{table(record)}")
    print(f"\nwritten to {file}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
