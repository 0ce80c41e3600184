"""Scores images, changed in every way and strength, against real ones; goes on where it ended."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.data import DataConfig, Images, load_images
from convnorm.experiment.data.loading import ON_DISK
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.hardware import hardware
from convnorm.experiment.streams import generator
from gan.extractor import Extractor
from gan.keys import OPTIONS
from gan.protocols import Protocol
from gan.records import Origin
from gan.reference import Reference, reference_of
from gan.score_names import metrics
from gan.scoring import expected_scores, score, versions
from ranking.changes import CHANGES, UNCHANGED, Change, unspoiled
from ranking.records import Point, Ranking, Setup

RECORD = "ranking.json"
KEYS = replace(OPTIONS, num_real="--num", num_fake="--num")


def rank(data: DataConfig, num: int, extractor: Extractor, seed: int, out: Path) -> Ranking:
    """Score the test images after each change against the training images.

    The record is written after every point; what it holds is not scored again.

    Args:
        num: Images of either side.
        seed: Of which test images are taken, and of the noise.
        out: A folder.

    Raises:
        InputError: Missing data, too few images, or a record in `out` of other conditions.
    """
    real, fake = load_images(data, "train"), load_images(data, "test")
    protocol = Protocol("ranking", extractor.spec.name, "train", num, num)
    protocol = replace(protocol, image_size=data.image_size)
    protocol = protocol.fitted(len(real.images), len(fake.images), keys=KEYS)
    pool, todo = shuffled(fake, seed), points()
    chosen = [change.choose(pool, num, strength) for change, strength in todo]  # or an error
    source = data.root if data.name in ON_DISK else data.name
    reference = reference_of(
        real.images, protocol, extractor, origin=Origin(source, "train", found=real.found)
    )
    origin = Origin(source, "test", sha256=fake.sha256(), found=fake.found)
    ranking = before(out / RECORD, setup_of(reference, extractor, origin, seed))
    remembering = with_memory(extractor)
    for (change, strength), choice in zip(tqdm(todo, "scores", disable=None), chosen, strict=True):
        if strength in ranking.of(change.name):
            continue
        images = change.spoil(pool.images[choice], strength, seed)
        network = remembering if change.spoil is unspoiled else extractor
        record = score(images, reference, network, seed=seed, origin=origin)
        point = Point(change.name, strength, record.scores, record.spreads, record.doubts)
        ranking = replace(ranking, points=(*ranking.points, point))
        files.write_json(out / RECORD, to_json(ranking))
    return ranking


def points() -> list[tuple[Change, float]]:
    """Return every change with each of its strengths; none comes first."""
    changes = (UNCHANGED, *CHANGES)
    return [(change, float(strength)) for change in changes for strength in change.strengths]


def shuffled(images: Images, seed: int) -> Images:
    """Return the images in random order: files come sorted by class."""
    order = torch.randperm(len(images.images), generator=generator("cpu", seed, "ranking"))
    return images.take(order)


def with_memory(extractor: Extractor) -> Extractor:
    """Return the same extractor, but its network sees no image twice."""
    seen: dict[bytes, tuple[Tensor, Tensor | None]] = {}

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        keys = [hashlib.sha256(image.numpy()).digest() for image in images.cpu().contiguous()]
        new = {key: place for place, key in enumerate(keys) if key not in seen}
        if new:
            features, logits = extractor.forward(images[list(new.values())])
            rows = [None] * len(new) if logits is None else logits
            seen.update(zip(new, zip(features, rows, strict=True), strict=True))
        features, rows = zip(*(seen[key] for key in keys), strict=True)
        return torch.stack(features), None if rows[0] is None else torch.stack(rows)

    return replace(extractor, forward=forward)


def setup_of(reference: Reference, extractor: Extractor, fake: Origin, seed: int) -> Setup:
    """Return the conditions of scores against `reference` of images changed from `fake`."""
    protocol = reference.protocol
    return Setup(
        seed=seed,
        protocol=protocol.facts,
        extractor=extractor.facts,
        metrics=metrics(extractor.scores),
        expected=expected_scores(extractor.scores, protocol),
        floor=reference.floor,
        fake=fake,
        real=reference.origin,
        versions={**versions(), "pillow": PIL.__version__},
        hardware=hardware(extractor.device),
    )


def before(file: Path, setup: Setup) -> Ranking:
    """Return the ranking that a file holds; one without points where there is no file.

    Raises:
        InputError: The file is no ranking, or one of other conditions.
    """
    if not file.exists():
        return Ranking(setup, ())
    expected = "a ranking, or none"
    try:
        content = json.loads(files.read(file, expected))
    except ValueError as error:
        raise InputError(f"{file}: is not JSON ({error}); expected {expected}") from None
    found = from_json(Ranking, content, file)
    if difference := found.setup.difference(setup):
        raise InputError(f"{file}: was made with {difference}; expected the same, or another --out")
    return found
