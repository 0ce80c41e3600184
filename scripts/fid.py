"""Score generated images against real ones: FID, KID, IS, precision and recall.

    python scripts/fid.py runs/gan/sngan_convnorm/seed0 cifar10
    python scripts/fid.py digits digits:test

FAKE and REAL are each a run folder, a checkpoint (.pt), a folder of images, an .npz file with
`images`, or digits, cifar10 or cifar100, with :train or :test if wanted. The value in the column
`floor` is what two halves of REAL score against each other.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.files import write_json
from convnorm.experiment.run.distributed import pick_device
from gan.extractors import load_extractor
from gan.protocols import PROTOCOLS, protocol_named
from gan.scoring import Record, num_available, reference_of, score
from gan.sources import SOURCES, read_source, resized


def table(record: Record) -> str:
    """Return the record's scores as aligned text under the lines that say what they are of."""
    protocol, extractor = record["protocol"], record["extractor"]
    rows = [
        f"protocol   {protocol['name']}: {record['num_fake']} fake against "
        f"{record['num_real']} real images",
        f"extractor  {extractor['name']}, weights {extractor['weights_sha256'][:16]}",
    ]
    for side in ("fake", "real"):
        split = record[side]["split"]
        rows.append(f"{side:9}  {record[side]['source']}{f':{split}' if split else ''}")
    rows.append("")
    width = max(map(len, record["scores"]))
    rows.append(f"{'score':{width}}  {'value':>10}  floor (two halves of {record['floor']['n']})")
    rows += [
        f"{label:{width}}  {value:10.5g}  {record['floor'][label]:.5g}"
        for label, value in record["scores"].items()
    ]
    return "\n".join(rows)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fake", metavar="FAKE", help=SOURCES)
    parser.add_argument(
        "real", metavar="REAL", help="likewise; a data set's split is the protocol's"
    )
    parser.add_argument(
        "--protocol",
        help=f"{', '.join(PROTOCOLS)}; by default digits for REAL digits, else fid50k_train",
    )
    parser.add_argument("--extractor", help="inception or digits, if not the protocol's")
    parser.add_argument("--weights", type=Path, help="file of Inception weights")
    parser.add_argument(
        "--allow_unverified_weights",
        action="store_true",
        help="accept other Inception weights than those that define FID; no score is called FID",
    )
    parser.add_argument("--num_fake", type=int, help="if not the protocol's")
    parser.add_argument("--num_real", type=int, help="if not the protocol's")
    parser.add_argument("--seed", type=int, default=0, help="of the generated images (%(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--data_root", default=DataConfig.root, help="the CIFAR archives' folder")
    parser.add_argument("--json", type=Path, help="file to write the whole record to")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    # Told before hours of work, not after them.
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise InputError(
            f"json: {args.json} cannot be written; expected a file in a folder that exists"
        )
    device = pick_device(args.device)

    is_digits = args.real.partition(":")[0] == "digits"
    base = protocol_named(args.protocol or ("digits" if is_digits else "fid50k_train"))

    fake = read_source(args.fake, "FAKE", "train", device, args.data_root)
    real = read_source(args.real, "REAL", base.split, device, args.data_root)
    real = resized(real, fake.image_size)

    wanted = {key: getattr(args, key) for key in ("extractor", "num_real", "num_fake")}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    protocol = base.changed(**wanted, split=real.facts["split"], image_size=fake.image_size)
    protocol = protocol.fitted(num_available(real.images), num_available(fake.images))
    extractor = load_extractor(
        protocol.extractor,
        device,
        weights=args.weights,
        allow_unverified=args.allow_unverified_weights,
    )
    # Another seed than the fakes': a generator against itself must not score the same images.
    reference = reference_of(
        real.images, protocol, extractor, source=real.facts, seed=args.seed + 1
    )
    record = score(fake.images, reference, extractor, seed=args.seed, source=fake.facts)
    print(table(record))
    if args.json:
        write_json(args.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
