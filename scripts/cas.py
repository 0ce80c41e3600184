"""Score a conditional GAN by what a classifier learns from its images (CAS).

    python scripts/cas.py runs/gan/digits_projection_convnorm/seed0 runs/cas --cfg digits_batch
    python scripts/cas.py RUN OUT --num 50000 --seed 1

The classification accuracy score (Ravuri & Vinyals, NeurIPS 2019) is the accuracy on real test
images of a classifier that was trained on generated images alone, labelled by the classes that were
asked for. Beside it stands that of the same classifier trained on the real images, with the same
config and seed. A generator that leaves out parts of a class, or makes another one, is seen here.
The number depends on the classifier and on how many images it learns from: compare those of one
--cfg and --num alone.

OUT gets the images, both classifiers and cas.json. The same command again goes on where it was
stopped.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classification.config import ClassifierConfig
from classification.evaluate import evaluate, load
from classification.evaluation_options import Options
from classification.records import Accuracy
from classification.train import train
from convnorm.experiment import files
from convnorm.experiment.codec import to_json
from convnorm.experiment.config import RunOptions, differences, parse
from convnorm.experiment.config.arguments import Parser, path, whole
from convnorm.experiment.config.fields import LARGEST_SEED
from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.report.tables import aligned
from convnorm.experiment.run.checkpoint import CHECKPOINT
from convnorm.experiment.run.distributed import Process, pick_device
from gan.models import LoadedGenerator, load_generator
from gan.protocols import MOST_IMAGES
from gan.runs import add_checkpoint, checkpoint_of

FACTS = "cas.json"  # of OUT: what was asked for, then what was found


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "run", metavar="RUN", type=path, help="a conditional run, a checkpoint or published weights"
    )
    parser.add_argument("out", metavar="OUT", type=path, help="the folder of all that is made")
    parser.add_argument(
        "--cfg",
        default="cifar10_resnet18_batch",
        help="of both classifiers, a path or a name in configs/classification; their images are "
        "those of the GAN (%(default)s)",
    )
    parser.add_argument(
        "--num",
        metavar="N",
        type=whole(1, MOST_IMAGES),
        help=f"generated images, 1 to {MOST_IMAGES} (as many as there are real ones)",
    )
    parser.add_argument(
        "--seed",
        type=whole(0, LARGEST_SEED),
        default=0,
        help="of the generated images and of both classifiers, 0 to 2**63 - 1 (%(default)s)",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--data_root", metavar="PATH", help="where the data are, if moved (the run's data.root)"
    )
    parser.add_device("what generates and trains")
    return parser.parse_args()


def write_images(loaded: LoadedGenerator, data: DataConfig, args: argparse.Namespace) -> DataConfig:
    """Write generated images to train on and real ones to test on; return where they are."""
    real, test = (load_images(data, split) for split in ("train", "test"))
    if real.classes != loaded.classes:
        raise InputError(
            f"RUN: {args.run} knows other classes than {data.root}; expected the data it saw"
        )
    num = args.num or len(real.images)
    folder = args.out / "images"
    files.make_folder(folder, "OUT")
    claim(args.out / FACTS, {"sha256": loaded.sha256, "num": num, "seed": args.seed})
    images = loaded.sample(num, args.seed)
    made = {"train": (images, loaded.labels(num, args.seed)), "test": (test.images[:], test.labels)}
    for split, (pixels, labels) in made.items():
        arrays = {"images": pixels.permute(0, 2, 3, 1).numpy(), "labels": labels.numpy()}
        with_classes = {**arrays, "classes": np.array(loaded.classes)}
        files.write(folder / f"{split}.npz", lambda out, it=with_classes: np.savez(out, **it))
    return DataConfig("npz", str(folder), data.image_size)


def claim(file: Path, asked: dict[str, Any]) -> None:
    """Note in OUT what its images are; InputError where it has those of something else."""
    if file.exists():
        there = {key: value for key, value in noted(file).items() if key in asked}
        if differing := differences(there, asked):
            raise InputError(
                f"OUT: {file.parent} holds the CAS of other images ({'; '.join(differing)}); "
                "expected another folder"
            )
    else:
        files.write_json(file, asked)


def noted(file: Path) -> dict[str, Any]:
    """Read cas.json."""
    try:
        found = json.loads(files.read(file))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"OUT: {file} is damaged; expected what cas.py writes, or another folder")
    return found


def accuracy(config: ClassifierConfig, run_dir: Path, device: torch.device) -> tuple[int, Accuracy]:
    """Train, or go on with, the classifier in `run_dir`.

    Returns the number of its training images and its accuracy on the test images.
    """
    summary = train(config, RunOptions(run_dir=str(run_dir)), Process(device))
    loaded = load(run_dir / CHECKPOINT, device)
    # Where the data are now: the run's own folder may have moved.
    root = None if config.data.name == "digits" else config.data.root
    found = evaluate(loaded, Options(attacks=(), data_root=root), device)
    return summary["train_images"], found.record.clean.top1


def main() -> None:
    args = parse_args()
    device = pick_device(args.device)
    # No weights are selected, so no images are held out to do so.
    given = [f"--seed={args.seed}", "--split.validation=0"]
    config, _ = parse(ClassifierConfig, "classification", args.cfg, given)
    loaded = load_generator(checkpoint_of(args.run, args.checkpoint), device)
    if not loaded.classes:
        raise InputError(f"RUN: {args.run} knows no classes; expected one of model.conditional")
    data = loaded.config.data.at(args.data_root) if args.data_root else loaded.config.data
    sources = {"generated": write_images(loaded, data, args), "real": data}
    found = {
        name: accuracy(replace(config, data=source), args.out / name, device)
        for name, source in sources.items()
    }
    file, scores = args.out / FACTS, {name: to_json(each) for name, (_, each) in found.items()}
    facts = {"step": loaded.step, "cfg": args.cfg, "accuracy": scores}
    files.write_json(file, {**noted(file), **facts})
    rows = [
        (name, f"{n:,}", f"{it.value:.4f}", f"{it.interval[0]:.4f} to {it.interval[1]:.4f}")
        for name, (n, it) in found.items()
    ]
    print(aligned(("trained on", "images", "accuracy", "95 % interval"), rows))
    _, generated = found["generated"]
    print(f"CAS {generated.value:.4f} on {generated.n:,} test images; everything is in {args.out}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
