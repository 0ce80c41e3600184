"""Train a GAN from Python, for a few steps, and look at what the run leaves in its folder.

    python docs/examples/train_gan.py --run_dir runs/example --device cpu

The same run by command: scripts/train_gan.py --cfg digits_convnorm, with the options below.
"""

import sys
from pathlib import Path

from convnorm.experiment.config import parse
from convnorm.experiment.run.distributed import Process, pick_device
from gan.config import GanConfig
from gan.train import train

SMALL = [
    *("--steps=4", "--train.batch_size=8", "--train.generator_batch_size=8"),
    *("--model.options.generator_width=4", "--model.options.discriminator_width=4"),
    *("--score.protocol=none", "--score.select=none"),
]


def main(argv: list[str]) -> None:
    config, options = parse(GanConfig, "gan", "digits_convnorm", [*SMALL, *argv])
    summary = train(config, options, Process(pick_device(options.device)))
    print(f"{config.normalizer.kind}: {summary['parameters']['discriminator']} parameters in D")
    print(f"loss of D after {summary['steps']} steps: {summary['log']['loss_d']:.3f}")
    for path in sorted(Path(options.run_dir).iterdir()):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
