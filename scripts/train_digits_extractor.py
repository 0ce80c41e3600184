"""Train the digits extractor that comes with the package, and say how good it is.

    python scripts/train_digits_extractor.py

This writes gan/weights/digits_extractor.pt and .json, and takes a minute on one CPU core. Scores
compare only between equal weights, so the only reason to run it again is to see how they were made.
"""

import hashlib
import io
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.config.arguments import Parser, file_to_write, path, whole
from convnorm.experiment.config.fields import LARGEST_SEED
from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.errors import exit_code
from convnorm.experiment.files import write, write_json
from convnorm.experiment.streams import generator
from gan.digits_network import DIGITS_SIZE, DIGITS_WEIGHTS, DigitsNet, digits_input

NUM_EPOCHS = 60
BATCH_SIZE = 64
PEAK_LR = 5e-3
MAX_SHIFT = 2  # pixels of 16


def train(images: Tensor, labels: Tensor, seed: int) -> DigitsNet:
    """Return the network after a fixed recipe: nothing is selected on other images."""
    torch.manual_seed(seed)
    network = DigitsNet()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    num_steps = NUM_EPOCHS * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=num_steps)
    progress = tqdm(range(num_steps), desc="digits extractor", disable=None)
    for step in progress:
        rng = generator("cpu", seed, "batch", step)
        batch = torch.randint(len(images), (BATCH_SIZE,), generator=rng)
        dx, dy = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2,), generator=rng).tolist()
        shifted = F.pad(images[batch], (dx, -dx, dy, -dy), value=-1)  # -1 is the background
        loss = F.cross_entropy(network(shifted)[1], labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "--seed",
        type=whole(0, LARGEST_SEED),
        default=0,
        help="of the weights, batches and shifts (%(default)s)",
    )
    parser.add_argument("--out", type=path, default=DIGITS_WEIGHTS, help="the .pt file to write")
    args = parser.parse_args()
    file_to_write(args.out, "--out")
    torch.set_num_threads(1)  # the order of sums, hence the weights, depends on the threads

    data = {
        split: load_images(DataConfig("digits", image_size=DIGITS_SIZE), split)
        for split in ("train", "test")
    }
    network = train(digits_input(data["train"].images), data["train"].labels, args.seed)
    with torch.no_grad():
        logits = network(digits_input(data["test"].images))[1]
    num_test = len(logits)
    accuracy = (logits.argmax(1) == data["test"].labels).float().mean().item()

    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    write(args.out, lambda file: file.write(buffer.getvalue()))
    facts = {
        "command": f"python scripts/train_digits_extractor.py --seed {args.seed}",
        "seed": args.seed,
        "test_accuracy": round(accuracy, 4),
        "num_test": num_test,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "torch": torch.__version__,
    }
    write_json(args.out.with_suffix(".json"), facts)
    print(f"{args.out}: {accuracy:.2%} of {num_test} held-out digits")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
