"""Make one file of bytes of many images of any size, for runs that read it from memory or disk.

    mkdir prepared
    python scripts/prepare_data.py imagenet/train prepared/train.npy --size 64
    python scripts/train_gan.py --data.name prepared --data.root prepared --data.image_size 64

SOURCE is a folder of images or of class folders; .tar files in WebDataset's layout, or a folder of
them; .parquet files as of Hugging Face, or a folder of them; or LSUN's LMDB. The largest square in
the middle of each image, or area in the shape of --size, is resized by Pillow's Lanczos filter, in
the order of names.

A call that was stopped goes on where it was. A damaged image stops it, unless --skip_damaged.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.benchmark.local import available_cores
from convnorm.experiment.config.arguments import Parser, file_to_write, path, size, whole
from convnorm.experiment.data import DataConfig
from convnorm.experiment.data.preparing.find import SOURCES, source_at
from convnorm.experiment.data.preparing.prepare import prepare
from convnorm.experiment.errors import InputError, exit_code


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", type=path, help=f"{SOURCES}: one split")
    parser.add_argument("out", metavar="OUT", type=path, help="the file to write, as train.npy")
    parser.add_argument(
        "--size",
        type=size(DataConfig.MAX_SIZE),
        required=True,
        help="in pixels that images get: the side of squares, or [HEIGHT,WIDTH]",
    )
    parser.add_argument(
        "--workers",
        type=whole(1, 1024),
        default=available_cores(),
        help="processes that decode (%(default)s)",
    )
    parser.add_argument(
        "--skip_damaged", action="store_true", help="leave out images that cannot be read"
    )
    parser.add_argument(
        "--image_column", default="image", help="of parquet files, with bytes (%(default)s)"
    )
    parser.add_argument(
        "--label_column",
        help="of parquet files, with whole numbers (label, if they have it)",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    file_to_write(args.out, "OUT")
    if args.out.suffix != ".npy":
        raise InputError(f"OUT: got {args.out}, expected a name that ends in .npy")
    source = source_at(args.source, args.image_column, args.label_column)
    print(f"{args.source}: {len(source.labels)} images in {source.found}", file=sys.stderr)
    file = prepare(
        source, args.out, args.size, workers=args.workers, skip_damaged=args.skip_damaged
    )
    num, channels, height, width = file.shape
    print(
        f"{file.path}: {num} images of {channels}x{height}x{width} in {len(file.classes)} classes "
        f"({file.about.made}), SHA-256 {file.about.sha256}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
