"""Publish the trained generator of a GAN: a folder that others can use.

    python scripts/publish.py runs/gan/digits_convnorm/seed0 digits_convnorm
    python scripts/publish.py RUN OUT --checkpoint best
    python scripts/publish.py RUN OUT --discriminator

OUT gets the weights as safetensors, the config, the scores with all that they depend on, a picture
of samples, and README.md, a card that says what the weights are, how to use them, and how they were
made. `gan.load(OUT)` reads it, and so do fid.py and generate.py. It tells of no path of this
machine. What is there already is never overwritten, and what is not complete gets no name.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.config.arguments import Parser, path
from convnorm.experiment.errors import exit_code
from gan.publishing import publish
from gan.runs import add_checkpoint


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", type=path, help="the folder of a GAN's run")
    parser.add_argument("out", metavar="OUT", type=path, help="a folder that is new or empty")
    add_checkpoint(parser)
    parser.add_argument(
        "--discriminator", action="store_true", help="publish it too; best.pt holds none"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    model = publish(args.run, args.out, args.checkpoint, discriminator=args.discriminator)
    print(f"the generator after step {model.step} is in {args.out}; README.md tells of it")


if __name__ == "__main__":
    sys.exit(exit_code(main))
