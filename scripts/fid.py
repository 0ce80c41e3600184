"""Score generated images against real ones: FID, KID, IS, precision and recall.

    python scripts/fid.py runs/gan/sngan_convnorm/seed0 cifar10
    python scripts/fid.py digits digits:test
    python scripts/fid.py runs/gan/digits_convnorm/seed0 --all
    python scripts/fid.py

FAKE and REAL are each a run folder, a checkpoint (.pt), a folder of images, an .npz file with
`images` or `arr_0`, or digits, cifar10 or cifar100; any but a run with :train or :test if wanted.
REAL can also be an .npz file with `mu` and `sigma` of real features. Without REAL, a run is scored
against its own data by its own protocol; without FAKE, the newest run of a GAN under runs/ is
taken.

What was read of them is said on stderr. The column `floor` shows what REAL scores itself: one half
of its images against the other, IS on all of them. n/a is what has no value, such as a spread of
a single split; a line that begins with DOUBT says why a score is not to be taken at face value.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm.experiment.codec import to_json
from convnorm.experiment.config.arguments import Parser, file_to_write, path, whole
from convnorm.experiment.data import DataConfig, data_path
from convnorm.experiment.errors import InputError, exit_code
from convnorm.experiment.files import write_json
from convnorm.experiment.run.distributed import pick_device
from gan.config import GanConfig
from gan.extractors import EXTRACTORS, extractor_named, load_extractor
from gan.keys import REPORTED
from gan.protocols import ALL_IMAGES, PROTOCOLS, Protocol, protocol_named
from gan.records import ScoreRecord
from gan.reference import num_available, reference_of
from gan.runs import add_checkpoint, checkpoints_of, newest_run
from gan.score_tables import checkpoints_table, draws_table, heading, table
from gan.scoring import score
from gan.sources import (
    NAMES,
    SOURCES,
    ImageSource,
    classes_of,
    own_config,
    own_data,
    own_protocol,
    read_source,
    require_generator,
)
from gan.statistics_files import require_new, save_statistics


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "fake", metavar="FAKE", nargs="?", help=f"{SOURCES} (the newest run of a GAN under runs/)"
    )
    parser.add_argument(
        "real",
        metavar="REAL",
        nargs="?",
        help="one of the same; a data set that names no split has the protocol's (the data of the "
        "run FAKE)",
    )
    parser.add_argument(
        "--protocol",
        help=f"{', '.join(PROTOCOLS)}; by default digits for REAL digits, all images of both sides "
        "for a REAL folder or .npz, without REAL the score.protocol of the run, else fid50k_train",
    )
    add_checkpoint(parser, " FAKE")
    parser.add_argument(
        "--all",
        action="store_true",
        help="score every checkpoint of the run folder FAKE: all in checkpoints/, best.pt, last.pt",
    )
    parser.add_argument(
        "--draws",
        metavar="K",
        type=whole(1, 10_000),
        help="draw the latents of FAKE so many times, with the seeds from --seed on, and show mean "
        "and standard deviation of every score",
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
        help="folder of the CIFAR archives, which are downloaded to it, or of the run's own data, "
        f"if they were moved ({DataConfig.root}, or the run's data.root)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="file to write the whole record to; with --all or --draws the list of them",
    )
    parser.add_argument(
        "--save_statistics",
        type=path,
        metavar="FILE.npz",
        help="new file for mu and sigma of the features of REAL, which can be a REAL later",
    )
    return parser.parse_args()


def protocol_and_weights(
    args: argparse.Namespace, own: GanConfig | None
) -> tuple[Protocol, dict[str, Any]]:
    """Return the protocol that is asked for, and what `load_extractor` has to know of its weights.

    own: of the run whose own data are REAL.
    """
    weights = {"weights": args.weights, "allow_unverified": args.allow_unverified_weights}
    if args.protocol:
        return protocol_named(args.protocol), weights
    if own:
        if own.score.weights and not args.weights and not args.extractor:
            allow = own.score.allow_unverified_weights or args.allow_unverified_weights
            file = Path(own.score.weights)
            weights = {"weights": file, "allow_unverified": allow, "keys": REPORTED}
        return own_protocol(own), weights
    is_digits = args.real.partition(":")[0] == "digits"
    return protocol_named("digits" if is_digits else "fid50k_train"), weights


def tables(args: argparse.Namespace, records: Sequence[ScoreRecord]) -> str:
    """Return what is printed of the records."""
    first = records[0]
    if args.all:
        first = replace(first, fake=replace(first.fake, source=args.fake))
        return "\n".join([*heading(first), "", checkpoints_table(records)])
    if args.draws is not None:
        return "\n".join([*heading(first), draws_table(records)])
    return table(first)


def check(args: argparse.Namespace) -> None:
    """Raise an InputError for what no images are needed to know."""
    for name in ("checkpoint", "draws"):
        if args.all and getattr(args, name) is not None:
            raise InputError(f"--all: not allowed with --{name}; expected one of them")
    if args.json:
        file_to_write(args.json, "--json")
    if args.save_statistics:
        require_new(args.save_statistics)
    if args.extractor:
        args.extractor = extractor_named(args.extractor).name  # timm's have a tag by default


def fitted(
    protocol: Protocol,
    wanted: dict[str, Any],
    fake: ImageSource,
    real: ImageSource,
    *,
    takes_all: bool,
) -> Protocol:
    """Return the protocol with every number known; of all images of both sides, if it takes all."""
    available = {"num_real": num_available(real.images), "num_fake": num_available(fake.images)}
    if takes_all and not callable(real.images):
        protocol = ALL_IMAGES
        # `fitted` refuses less than the least number, and says how many there are.
        least = {key: num and max(num, protocol.min_images) for key, num in available.items()}
        wanted = least | wanted
    size, kind = fake.image_size, real.origin.kind
    protocol = protocol.changed(**wanted, split=real.origin.split, image_size=size, reference=kind)
    return protocol.fitted(*available.values())


def main() -> int:
    args = parse_args()
    check(args)
    device = pick_device(args.device)
    root = args.data_root or DataConfig.root
    if args.fake is None:
        args.fake = str(newest_run())
        print(f"FAKE: {args.fake}, the newest run", file=sys.stderr)
    files = checkpoints_of(data_path(args.fake, "FAKE")) if args.all else []

    def read_fake(text: str) -> ImageSource:
        return read_source(text, "FAKE", "train", device, root, checkpoint=args.checkpoint)

    first = str(files[0]) if files else args.fake
    fake = read_fake(first) if args.real is None else None
    own = own_config(fake) if fake else None

    base, weights = protocol_and_weights(args, own)
    given = {key: getattr(args, key) for key in ("extractor", "num_real", "num_fake")}
    wanted = {key: value for key, value in given.items() if value is not None}
    # What can be wrong without the images is told before they are read.
    base.changed(**wanted)
    load = partial(load_extractor, args.extractor or base.extractor, device, **weights)
    extractor = load() if weights["weights"] else None

    fake = fake or read_fake(first)
    if args.draws is not None:
        require_generator(fake)
    if own:
        real = own_data(own.data, base.split, args.data_root)
    else:
        real = read_source(args.real, "REAL", base.split, device, root, size=fake.image_size)
    for role, source in (("FAKE", fake), ("REAL", real)):
        if source.origin.found:
            print(f"{role}: {source.origin.found}", file=sys.stderr)

    is_named = own or args.real.partition(":")[0] in NAMES
    protocol = fitted(base, wanted, fake, real, takes_all=not args.protocol and not is_named)
    extractor = extractor or load()  # last: it may be a long download
    # Another seed than those of FAKE: a generator must not be held against its own images.
    seeds = range(args.seed, args.seed + (args.draws or 1))
    reference = reference_of(
        real.images,
        protocol,
        extractor,
        origin=real.origin,
        seed=seeds.stop,
        **classes_of(fake, real),
    )
    if args.save_statistics:
        save_statistics(args.save_statistics, reference.features, extractor, fake.image_size)
    records = [
        score(
            each.images,
            reference,
            extractor,
            seed=seed,
            origin=each.origin,
            extrapolate=args.fd_inf,
            labels=each.asked_for,
        )
        for each in chain([fake], map(read_fake, map(str, files[1:])))
        for seed in seeds
    ]
    print(tables(args, records))
    if args.json:
        found = [to_json(record) for record in records]
        write_json(args.json, found if args.all or args.draws else found[0])
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
