"""Look at the singular values of what a network's layers compute.

    python scripts/spectrum.py runs/classification/digits_convnorm/seed0
    python scripts/spectrum.py runs/benchmark/digits_cls/standard-*/seed* --out spectra
    python scripts/spectrum.py torchvision:resnet18 --input_size 32 --dtype float64

RUN is the folder of a classifier's or a GAN's run, of which the discriminator is taken, or its
checkpoint (.pt). MODEL is torchvision:NAME or timm:NAME, with random weights or those of --weights;
nothing is downloaded. Several networks must have the same layers; runs that differ in the seed
alone are one method.

Prints for each layer all singular values in a few numbers, of the convolution alone, with the gain,
with the affine and with BatchNorm, each with all that stands before it: exact, for the map as a
ring, at the size that it has in the network. With the padding that the layer has, its norm lies
between `Lanczos` and `bound`. The bound of a whole network is shown beside the largest norm of its
Jacobian over test images alone, as it is loose by orders of magnitude. --out writes spectrum.csv,
spectrum.json and pictures.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS.parent), str(SCRIPTS)]

import torch
from tqdm import tqdm

from convnorm.experiment.config.arguments import Parser, path, whole
from convnorm.experiment.config.fields import LARGEST_SEED
from convnorm.experiment.data import DataConfig
from convnorm.experiment.data.loading import Name
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.run.distributed import pick_device
from gan.runs import Which
from spectra.files import check_out, write
from spectra.measure import Tick, check_alike, layers_of, measure
from spectra.records import Measured, by_method, check_seeds
from spectra.subjects import Options, is_model, open_subject
from spectra.tables import text

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "sources",
        metavar="RUN|MODEL",
        nargs="+",
        help="folders of runs, checkpoints (.pt), torchvision:NAME or timm:NAME",
    )
    parser.add_argument(
        "--checkpoint",
        choices=get_args(Which),
        help="of a run folder: last.pt, or best.pt, which a GAN has for its generator alone (last)",
    )
    parser.add_argument(
        "--input_size",
        metavar="PIXELS",
        type=whole(1, DataConfig.MAX_SIZE),
        help="of a MODEL: height and width of an image, on which the maps of all layers depend",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        type=path,
        help="of a MODEL: a state dict, as torch.save writes it (random weights)",
    )
    parser.add_argument(
        "--data",
        choices=get_args(Name),
        help="of a MODEL: images for its Jacobian, shifted and scaled as torchvision does (none)",
    )
    parser.add_argument(
        "--data_root",
        metavar="PATH",
        help="where the data of --data are, or those of a run, if they were moved",
    )
    parser.add_argument(
        "--images",
        metavar="N",
        type=whole(0, 100_000),
        default=64,
        help="test images at which the norm of the Jacobian is measured; 0 for none (%(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="in which singular values are computed: float64 takes longer and is worth it where "
        "the smallest values matter, which float32 loses below 1e-7 of the largest or so, and with "
        "them condition numbers (%(default)s)",
    )
    parser.add_argument("--layer", metavar="NAME", help="whose singular values --out draws sorted")
    parser.add_argument(
        "--seed",
        type=whole(0, LARGEST_SEED),
        default=0,
        help="of random weights, and of which test images (%(default)s)",
    )
    parser.add_device("what computes; auto takes a GPU where there is one")
    parser.add_argument("--out", metavar="FOLDER", type=path, help="where to write all of it")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what --out has from before"
    )
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Raise an InputError for what no network is needed to know."""
    models = [source for source in args.sources if is_model(source)]
    for name in ("input_size", "weights", "data"):
        if getattr(args, name) is not None and not models:
            raise InputError(f"--{name}: is for torchvision:NAME and timm:NAME; expected one")
    if models and args.data is None and args.data_root is not None:
        raise InputError(f"--data_root: {args.data_root} is not allowed; expected it with --data")
    if models and args.checkpoint is not None:
        raise InputError(f"--checkpoint: is for runs; {models[0]} is none")
    if len(set(args.sources)) < len(args.sources):
        twice = next(source for source in args.sources if args.sources.count(source) > 1)
        raise InputError(f"RUN: {twice} is given twice; expected each network once")
    for name in ("layer", "overwrite"):
        if getattr(args, name) and args.out is None:
            raise InputError(f"--{name}: is not allowed without --out; expected both")
    if args.out is not None:
        check_out(args.out, args.overwrite)


def options_of(args: argparse.Namespace) -> Options:
    data = None
    if args.data is not None and args.input_size is not None:
        root = DataConfig.root if args.data_root is None else args.data_root
        data = DataConfig(args.data, root, args.input_size)
    return Options(
        pick_device(args.device),
        args.checkpoint,
        args.input_size,
        args.weights,
        data,
        None if args.data is not None else args.data_root,
        args.seed,
    )


@contextmanager
def progress(total: int) -> Iterator[Tick]:
    """A bar on a terminal that names what is measured; nothing elsewhere."""
    with tqdm(total=total, unit="layer", disable=None, leave=False) as bar:

        def tick(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        yield tick


def measured(args: argparse.Namespace) -> list[Measured]:
    """Open all networks, and measure them once all are known to fit."""
    options = options_of(args)
    subjects = [open_subject(source, options) for source in args.sources]
    placed = {subject.source: layers_of(subject) for subject in subjects}
    check_alike(placed)
    check_seeds(subjects)
    known = next(iter(placed.values()))
    if args.layer is not None and args.layer not in known:
        raise InputError(f"--layer: {args.layer!r}; expected one of {', '.join(known)}")
    found = []
    with progress(sum(len(layers) + 2 for layers in placed.values())) as tick:
        for subject in subjects:
            layers = placed[subject.source]
            found.append(
                measure(subject, layers, DTYPES[args.dtype], args.images, args.layer, tick)
            )
    return found


def main() -> None:
    args = parse_args()
    check(args)
    methods = by_method(measured(args))
    print(text(methods))
    if args.out is not None:
        written = write(methods, args.layer, args.out)
        print(f"\nwritten to {args.out}: {', '.join(written)}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
