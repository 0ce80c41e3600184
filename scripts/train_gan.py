"""Train a GAN: `python scripts/train_gan.py --cfg NAME`, the same again to resume."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.config import parse
from convnorm.experiment.errors import exit_code
from convnorm.experiment.run import distributed
from gan.config import GanConfig
from gan.train import train


def main() -> None:
    config, options = parse(GanConfig, "gan", default=None)
    process = distributed.start(options.device)
    try:
        summary = train(config, options, process)
    finally:
        distributed.stop()
    if process.is_main:
        print(f"trained {summary['steps']} steps; the run is in {options.run_dir}")
        if summary["metrics"] is not None:
            scores = summary["metrics"]["scores"].items()
            print(
                ", ".join(
                    f"{name} {'not finite' if v is None else f'{v:.3g}'}" for name, v in scores
                )
            )


if __name__ == "__main__":
    sys.exit(exit_code(main))
