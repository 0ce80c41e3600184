"""Score generated images against real ones: FID, KID, IS, precision and recall.

    python scripts/fid.py runs/gan/sngan_convnorm/seed0 cifar10
    python scripts/fid.py digits digits:test

FAKE and REAL are each a run folder, a checkpoint (.pt), a folder of images, an .npz file with
`images` or `arr_0`, or digits, cifar10 or cifar100; any but a run with :train or :test if wanted.
REAL can also be an .npz file with `mu` and `sigma` of real features.

What was read of them is said on stderr. The column `floor` shows what REAL scores itself: one half
of its images against the other, IS on all of them. n/a is what has no value, such as a spread over
subsets that share most of their images; a line that begins with DOUBT says why a score is not to
be taken at face value.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.codec import to_json
from convnorm.experiment.config.arguments import Parser, file_to_write, path
from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import exit_code
from convnorm.experiment.files import write_json
from convnorm.experiment.run.distributed import pick_device
from gan.extractors import EXTRACTORS, extractor_named, load_extractor
from gan.protocols import ALL_IMAGES, PROTOCOLS, protocol_named
from gan.records import ScoreRecord
from gan.reference import num_available, reference_of
from gan.scoring import score
from gan.sources import NAMES, SOURCES, read_source
from gan.statistics_files import require_new, save_statistics


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.5g}"


def table(record: ScoreRecord) -> str:
    """Return the record's scores and spreads as aligned text, between what they are scores of and
    what makes them doubtful.
    """
    rows = [
        f"protocol   {record.protocol['name']}: {record.num_fake} fake against "
        f"{'an unknown number of' if record.num_real is None else record.num_real} real images",
        f"extractor  {record.extractor.name}, weights {record.extractor.weights_sha256[:16]}",
    ]
    for side, origin in (("fake", record.fake), ("real", record.real)):
        rows.append(f"{side:9}  {origin.source}{f':{origin.split}' if origin.split else ''}")
    rows.append("")
    values = record.scores | record.spreads
    floor = record.floor_values
    width = max(map(len, values))
    rows.append(f"{'score':{width}}  {'value':>10}  {record.floor_title}")
    rows += [
        f"{name:{width}}  {_shown(value):>10}  {_shown(floor[name])}"
        for name, value in values.items()
    ]
    for name, value in record.expected.items():
        rows.append(f"{name} of equal distributions is {value:.5g}")
    if (line := record.extrapolation) is not None:
        rows.append(
            f"FD at infinitely many images: {line.value:.5g}, off a line through "
            f"{len(line.sizes)} sizes by {line.residual:.2g} (standard deviation)"
        )
    rows += [f"DOUBT: {doubt}" for doubt in record.all_doubts]
    return "\n".join(rows)


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("fake", metavar="FAKE", help=SOURCES)
    parser.add_argument(
        "real",
        metavar="REAL",
        help="one of the same; a data set that names no split has the protocol's",
    )
    parser.add_argument(
        "--protocol",
        help=f"{', '.join(PROTOCOLS)}; by default digits for REAL digits, all images of both sides "
        "for a REAL folder or .npz, else fid50k_train",
    )
    parser.add_argument(
        "--extractor",
        help=f"network whose features are compared: {', '.join(EXTRACTORS)}, or timm:NAME, a "
        "network of timm, instead of the protocol's",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        help="file of weights of Inception, DINOv2 or the network of timm; without, the hub folder "
        "has them, or downloads them",
    )
    parser.add_argument(
        "--allow_unverified_weights",
        action="store_true",
        help="accept Inception weights that do not define FID; no score is then called FID",
    )
    parser.add_argument(
        "--num_fake", type=int, help="how many images of FAKE, instead of the protocol's number"
    )
    parser.add_argument(
        "--num_real", type=int, help="how many images of REAL, instead of the protocol's number"
    )
    parser.add_argument(
        "--fd_inf",
        action="store_true",
        help="also extrapolate FD to infinitely many images, from five sizes of both sides",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of what a generator draws, and of which images of FAKE are taken (%(default)s)",
    )
    parser.add_device("what computes the features; auto takes a GPU where there is one")
    parser.add_argument(
        "--data_root",
        default=DataConfig.root,
        help="folder of the CIFAR archives, which are downloaded to it (%(default)s)",
    )
    parser.add_argument(
        "--save_statistics",
        type=path,
        metavar="FILE.npz",
        help="new file for mu and sigma of the features of REAL, which can be a REAL later",
    )
    parser.add_argument("--json", type=Path, help="file to write the whole record to")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.json:
        file_to_write(args.json, "--json")
    if args.save_statistics:
        require_new(args.save_statistics)
    device = pick_device(args.device)

    if args.extractor:
        args.extractor = extractor_named(args.extractor).name  # timm's have a tag by default
    is_digits = args.real.partition(":")[0] == "digits"
    base = protocol_named(args.protocol or ("digits" if is_digits else "fid50k_train"))
    wanted = {key: getattr(args, key) for key in ("extractor", "num_real", "num_fake")}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    # What can be wrong without the images is told before they are read.
    base.changed(**wanted)
    load = partial(
        load_extractor,
        args.extractor or base.extractor,
        device,
        weights=args.weights,
        allow_unverified=args.allow_unverified_weights,
    )
    extractor = load() if args.weights else None

    fake = read_source(args.fake, "FAKE", "train", device, args.data_root)
    real = read_source(args.real, "REAL", base.split, device, args.data_root, size=fake.image_size)
    for role, source in (("FAKE", fake), ("REAL", real)):
        if source.origin.found:
            print(f"{role}: {source.origin.found}", file=sys.stderr)

    available = {"num_real": num_available(real.images), "num_fake": num_available(fake.images)}
    is_named = args.real.partition(":")[0] in NAMES
    if not args.protocol and not is_named and not callable(real.images):
        base = ALL_IMAGES
        # `fitted` refuses less than the least number, and says how many there are.
        least = {key: num and max(num, base.min_images) for key, num in available.items()}
        wanted = least | wanted
    size, kind = fake.image_size, real.origin.kind
    protocol = base.changed(**wanted, split=real.origin.split, image_size=size, reference=kind)
    protocol = protocol.fitted(*available.values())
    extractor = extractor or load()  # last: it may be a long download
    # Another seed than that of FAKE: a generator must not be held against its own images.
    reference = reference_of(
        real.images, protocol, extractor, origin=real.origin, seed=args.seed + 1
    )
    if args.save_statistics:
        save_statistics(args.save_statistics, reference.features, extractor, size)
    record = score(
        fake.images,
        reference,
        extractor,
        seed=args.seed,
        origin=fake.origin,
        extrapolate=args.fd_inf,
    )
    print(table(record))
    if args.json:
        write_json(args.json, to_json(record))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
