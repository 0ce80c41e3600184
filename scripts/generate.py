"""Write images of a trained GAN.

    python scripts/generate.py runs/gan/digits_convnorm/seed0 --num 10000 --out images
    python scripts/generate.py RUN --num 50000 --out samples.npz --checkpoint best
    python scripts/generate.py RUN --num 8 --out between.png --interpolate
    python scripts/generate.py CONDITIONAL_RUN --num 100 --out ships --class ship

RUN is a run folder or a checkpoint (.pt). A folder gets PNGs, 000000.png and so on, which fid.py,
torch-fidelity and pytorch-fid read; an .npz file `arr_0` (N, H, W, 3) uint8, which fid.py and ADM's
evaluator read. These are the images that fid.py scores with the same seed and number. What is there
already is never overwritten, and what is not complete gets no name.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.config.arguments import Parser, path, whole
from convnorm.experiment.config.fields import LARGEST_SEED
from convnorm.experiment.data import data_path
from convnorm.experiment.data.pixels import size_text
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.run.distributed import pick_device
from gan.interpolation import STEPS, interpolated
from gan.models import ROWS, SAMPLES, load_generator
from gan.pictures import check_out, write_folder, write_grid, write_npz
from gan.protocols import MOST_IMAGES
from gan.runs import add_checkpoint, checkpoint_of, is_run


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint (.pt)")
    parser.add_argument(
        "--num",
        metavar="N",
        type=whole(1, MOST_IMAGES),
        required=True,
        help=f"how many images, 1 to {MOST_IMAGES}; with --interpolate, how many rows; with --grid "
        "of a conditional run, how many of each class, unless --class is given",
    )
    parser.add_argument(
        "--out",
        metavar="DIR|FILE",
        type=path,
        required=True,
        help="a folder that is new or empty, or a new FILE.npz; with --grid or --interpolate a new "
        "FILE.png",
    )
    parser.add_argument(
        "--seed",
        type=whole(0, LARGEST_SEED),
        default=0,
        help="of the latents, 0 to 2**63 - 1 (%(default)s)",
    )
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument(
        "--grid",
        action="store_true",
        help="write one picture of all images, enlarged to 256 pixels at least; of a conditional "
        f"run with a row for each class, {ROWS} at most",
    )
    pictures.add_argument(
        "--interpolate",
        action="store_true",
        help=f"the same, with rows of {STEPS} images on the great circle between two latents",
    )
    parser.add_argument(
        "--class",
        dest="label",
        metavar="CLASS",
        help="of a conditional run, of which class all images are: its name, else its index from 0 "
        "on (classes are drawn)",
    )
    add_checkpoint(parser)
    parser.add_device("what generates; the images of a GPU may differ in a few grey levels")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_out(args.out, args.num, args.grid or args.interpolate)
    run = data_path(args.run, "RUN")
    if not is_run(run):
        raise InputError(f"RUN: {args.run!r} is no run; expected a run folder or a checkpoint .pt")
    loaded = load_generator(checkpoint_of(run, args.checkpoint), pick_device(args.device))
    size = loaded.config.data.image_size
    label = None if args.label is None else loaded.class_named(args.label, "--class")
    columns = STEPS if args.interpolate else max(1, round(args.num**0.5))
    if args.interpolate:
        latents = interpolated(loaded.prior, args.num, args.seed)
    elif args.grid and loaded.classes and label is None:
        latents, columns = loaded.prior.by_class(args.num, args.seed, SAMPLES), args.num
    else:
        latents = loaded.prior.draw(args.num, args.seed, SAMPLES)
    if label is not None:
        latents = latents.of_class(label)
    batches, num = loaded.batches(latents), len(latents.z)
    if args.interpolate or args.grid:
        write_grid(batches, num, size, columns, args.out)
    elif args.out.suffix.lower() == ".npz":
        write_npz(batches, num, size, args.out)
    else:
        write_folder(batches, num, args.out)
    print(f"{num} images of {size_text(size)} pixels, after step {loaded.step}, are in {args.out}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
