"""Score generated images against real ones: FID, KID, IS, precision and recall.

    python scripts/fid.py runs/gan/sngan_convnorm/seed0 cifar10
    python scripts/fid.py digits digits:test

FAKE and REAL are each a run folder, a checkpoint (.pt), a folder of images, an .npz file with
`images`, or digits, cifar10 or cifar100, with :train or :test if wanted. The column `floor` shows
what REAL scores itself: one half of its images against the other, IS on all of them.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.codec import to_json
from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.files import write_json
from convnorm.experiment.run.distributed import pick_device
from gan.extractors import EXTRACTORS, load_extractor
from gan.protocols import PROTOCOLS, protocol_named
from gan.records import ScoreRecord
from gan.scoring import num_available, reference_of, score
from gan.sources import SOURCES, read_source, resized


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def table(record: ScoreRecord) -> str:
    """Return the record's scores and spreads as aligned text, below what they are scores of."""
    rows = [
        f"protocol   {record.protocol['name']}: {record.num_fake} fake against "
        f"{record.num_real} real images",
        f"extractor  {record.extractor.name}, weights {record.extractor.weights_sha256[:16]}",
    ]
    for side, origin in (("fake", record.fake), ("real", record.real)):
        rows.append(f"{side:9}  {origin.source}{f':{origin.split}' if origin.split else ''}")
    rows.append("")
    values = record.scores | record.spreads
    floor = record.floor.scores | record.floor.spreads
    width = max(map(len, values))
    rows.append(
        f"{'score':{width}}  {'value':>10}  floor (two halves of {record.floor.num_images})"
    )
    rows += [
        f"{name:{width}}  {_shown(value):>10}  {_shown(floor[name])}"
        for name, value in values.items()
    ]
    return "\n".join(rows)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fake", metavar="FAKE", help=SOURCES)
    parser.add_argument(
        "real",
        metavar="REAL",
        help="one of the same; a data set that names no split has the protocol's",
    )
    parser.add_argument(
        "--protocol",
        help=f"{', '.join(PROTOCOLS)}; by default digits for REAL digits, else fid50k_train",
    )
    parser.add_argument("--extractor", help=f"{' or '.join(EXTRACTORS)}, instead of the protocol's")
    parser.add_argument("--weights", type=Path, help="file of Inception weights")
    parser.add_argument(
        "--allow_unverified_weights",
        action="store_true",
        help="accept Inception weights that do not define FID; no score is then called FID",
    )
    parser.add_argument("--num_fake", type=int, help="instead of the protocol's")
    parser.add_argument("--num_real", type=int, help="instead of the protocol's")
    parser.add_argument("--seed", type=int, default=0, help="of the generated images (%(default)s)")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="(%(default)s)"
    )
    parser.add_argument("--data_root", default=DataConfig.root, help="the CIFAR archives' folder")
    parser.add_argument("--json", type=Path, help="file to write the whole record to")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    # Said before hours of work, not after them.
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
    protocol = base.changed(**wanted, split=real.origin.split, image_size=fake.image_size)
    protocol = protocol.fitted(num_available(real.images), num_available(fake.images))
    extractor = load_extractor(
        protocol.extractor,
        device,
        weights=args.weights,
        allow_unverified=args.allow_unverified_weights,
    )
    # Another seed than that of FAKE: a generator must not be held against its own images.
    reference = reference_of(
        real.images, protocol, extractor, origin=real.origin, seed=args.seed + 1
    )
    record = score(fake.images, reference, extractor, seed=args.seed, origin=fake.origin)
    print(table(record))
    if args.json:
        write_json(args.json, to_json(record))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
