"""Score a folder of images against the digits, from Python; the command is scripts/fid.py.

python docs/examples/score_a_folder.py FOLDER
"""

import sys

import torch

from gan.extractors import load_extractor
from gan.protocols import protocol_named
from gan.reference import reference_of
from gan.scoring import score
from gan.sources import read_source

DEVICE = torch.device("cpu")


def main(folder: str) -> None:
    protocol = protocol_named("digits_test").changed(num_fake=200)  # and its name says so
    real = read_source("digits", "REAL", "test", DEVICE, "data", size=protocol.image_size)
    fake = read_source(folder, "FAKE", "train", DEVICE, "data", size=protocol.image_size)
    extractor = load_extractor(protocol.extractor, DEVICE)
    protocol = protocol.fitted(len(real.images), len(fake.images))
    reference = reference_of(real.images, protocol, extractor, origin=real.origin)
    record = score(fake.images, reference, extractor, seed=0, origin=fake.origin)
    print(f"protocol {record.protocol['name']}")
    for name, value in record.scores.items():
        print(f"{name}: {value:.3g} (real against real {record.floor.scores[name]:.3g})")
    for doubt in record.all_doubts:
        print(f"DOUBT {doubt}")


if __name__ == "__main__":
    main(sys.argv[1])
