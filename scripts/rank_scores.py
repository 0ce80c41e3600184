"""Do scores rank? Change real images in known ways, step by step, and score what comes out.

    python scripts/rank_scores.py                                    CIFAR-10, by lite0@96
    python scripts/rank_scores.py --data npz --data_root FILE        your images

Test images are changed by noise, blur, JPEG, dropped classes and duplicates, each in five
strengths, and scored against training images. A good score gets worse with each step. --out gets
ranking.json (every score and what it depends on), ranking.md (a table) and ranking.png. Started
again, the command goes on: what was scored is not scored again.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

SCRIPTS = Path(__file__).resolve().parent
sys.path[:0] = [str(SCRIPTS.parent), str(SCRIPTS)]

from convnorm.experiment import files
from convnorm.experiment.config.arguments import Parser, path, whole
from convnorm.experiment.config.fields import LARGEST_SEED
from convnorm.experiment.data import DataConfig
from convnorm.experiment.data.loading import Name
from convnorm.experiment.errors import exit_code
from convnorm.experiment.run.distributed import pick_device
from gan.extractors import EXTRACTORS, load_extractor
from gan.protocols import MOST_IMAGES
from ranking.page import PAGE, write_page
from ranking.scores import rank


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--data", default="cifar10", choices=get_args(Name), help="images (%(default)s)"
    )
    parser.add_argument(
        "--data_root",
        default=DataConfig.root,
        help="folder of the CIFAR archives, or the folder or file itself (%(default)s)",
    )
    parser.add_argument(
        "--image_size",
        type=whole(1, DataConfig.MAX_SIZE),
        default=DataConfig.image_size,
        help="height and width to which images are resized (%(default)s)",
    )
    parser.add_argument(
        "--num",
        type=whole(10, MOST_IMAGES),
        default=5000,
        help="images of either side; FD is corrected from 2.4 for each feature on (%(default)s)",
    )
    parser.add_argument(
        "--extractor",
        default="lite0@96",
        choices=list(EXTRACTORS),
        help="network whose features are compared (%(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole(0, LARGEST_SEED),
        default=0,
        help="of which test images are taken, and of the noise (%(default)s)",
    )
    parser.add_device("what computes the features; auto takes a GPU where there is one")
    parser.add_argument(
        "--out", type=path, default=Path("results/ranking_lite0"), help="folder (%(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    data = DataConfig(args.data, args.data_root, args.image_size)
    extractor = load_extractor(args.extractor, pick_device(args.device))
    files.make_folder(args.out, "--out")
    ranking = rank(data, args.num, extractor, args.seed, args.out)
    write_page(ranking, args.out)
    print(f"written: {args.out / PAGE}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
