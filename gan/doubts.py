"""Why scores are not to be taken at face value: too few images, or images too much alike.

A doubt is a sentence without its full stop.
"""

import hashlib
import math

from convnorm.experiment.data import Pixels, parts_of
from gan.distances import FULL, FeatureSet
from gan.models import PART
from gan.records import ExtractorFacts
from gan.score_names import Number, Scores, of_statistics
from gan.statistics_files import Statistics

COPIES = 0.01  # CIFAR, too, has a few images twice
FAR = 10  # a classifier score is this many times below its bound where the bound does not matter


def digests_of(images: Pixels) -> list[bytes]:
    """Return what tells an image (C, H, W) uint8 from others, of each of (N, C, H, W)."""
    rows = (row for part in parts_of(images, PART) for row in part.cpu().contiguous().numpy())
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


def of_images(
    digests: list[bytes], features: FeatureSet, scores: Scores, called: str
) -> tuple[str, ...]:
    """Doubt one side of a score.

    digests: of its images. features: theirs. called: "fake images", "real images".
    """
    found, num = of_distance(features, scores, called), len(digests)
    copies = num - len(set(digests))
    if copies > COPIES * num:
        found = (*found, f"{copies} of {num} {called} are copies of others")
    return found


def of_both_sides(fake: list[bytes], real: frozenset[bytes]) -> tuple[str, ...]:
    """Doubt fake images that are the real ones, which score better than any others can."""
    both = sum(digest in real for digest in fake)
    if both <= COPIES * len(fake):
        return ()
    return (f"{both} of {len(fake)} fake images are among the real ones",)


def of_distance(features: FeatureSet, scores: Scores, called: str) -> tuple[str, ...]:
    """Doubt the Fréchet distance of features (N, D) that span less than their D dimensions."""
    num, width = features.features.shape
    if features.rank == width:
        return ()
    few, alike = "which biases the distance upwards", "as many are equal, or nearly so"
    return (
        f"{scores['frechet'].name}: {num} {called} for {width} features have a singular covariance "
        f"(rank {features.rank}), {few if num <= width else alike}",
    )


def of_statistics_file(statistics: Statistics, scores: Scores) -> tuple[str, ...]:
    """Doubt a Fréchet distance to statistics, and say which scores there are not."""
    known = of_statistics(scores)
    name = known["frechet"].name
    missing = [score.name for number, score in scores.items() if number not in known]
    found = (
        f"{', '.join(missing)} and the floor are n/a: they need real images, and {statistics.file} "
        "has the mean and covariance of their features alone",
    )
    if statistics.made_by is None:
        found += (
            f"{name}: {statistics.file} does not say which network, resizing and number of images "
            "its statistics are of",
        )
    width = len(statistics.gaussian.mean)
    if statistics.rank < width:
        found += (
            f"{name}: the covariance in {statistics.file} is singular (rank {statistics.rank} of "
            f"{width}), as that of few images is, which biases the distance upwards",
        )
    return found


def of_weights(facts: ExtractorFacts, has_known_weights: bool) -> tuple[str, ...]:
    """Doubt the weights of a network of which nobody publishes a hash."""
    if has_known_weights:
        return ()
    return (
        f"nothing verifies that the weights {facts.weights_sha256[:16]} are those of {facts.name}",
    )


def of_numbers(
    computed: dict[Number, float], scores: Scores, num: int, splits: int
) -> tuple[str, ...]:
    """Doubt scores that are no number, and a classifier score of few images.

    A split of n images has a classifier score of at most n, and a lower one than more images have.

    num: Images that the classifier score is of. splits: How many parts it is averaged over.
    """
    found = []
    for number, score in scores.items():
        if score.metric is None or math.isfinite(computed[number]):
            continue
        few = number == "frechet_corrected" and math.isfinite(computed["frechet"])
        why = f"fewer than {FULL} images for each feature" if few else "not a finite number"
        found.append(f"{score.name}: {why}")
    bound = num // splits
    if "classifier" in scores and FAR * computed["classifier"] > bound:
        name = scores["classifier"].name
        found.append(
            f"{name}: splits of {bound} bound it by {bound}, and make it lower than larger ones do"
        )
    return tuple(found)
