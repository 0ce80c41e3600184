"""Train a classifier: `python scripts/train_cls.py --cfg NAME`, the same again to resume."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classification.config import ClassifierConfig
from classification.train import train
from convnorm.experiment.config import parse
from convnorm.experiment.errors import exit_code
from convnorm.experiment.run import distributed


def main() -> None:
    config, options = parse(ClassifierConfig, "classification", default="digits_convnorm")
    process = distributed.start(options.device)
    try:
        summary = train(config, options, process)
    finally:
        distributed.stop()
    if process.is_main:
        print(f"trained {summary['epochs']} epochs; the run is in {options.run_dir}")
        if summary["best"] is not None:
            scores = summary["best"]["scores"].items()
            shown = ", ".join(f"{name} {value:.4f}" for name, value in scores)
            print(f"selected epoch {summary['best']['epoch']} on the validation split: {shown}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
