"""Part `score`: seconds for 10,000 images, from features to numbers, and FD against scipy's sqrtm.

Features are random, of the width of Inception's; extractors see random images, on a CPU few of
them, from which the time is scaled.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from gan.distances import FeatureSet, frechet_distance, kernel_distance, neighborhoods
from gan.extractors import load_extractor
from speed.bench import Bench, Spread, ratio, spread
from speed.clock import Timing, in_turn

NUM, WIDTH = 10_000, 2048
K, K_COVERAGE = 3, 5  # as in gan.protocols
# Extractor -> images that a CPU is timed on.
EXTRACTORS = {"digits": 2000, "lite0@96": 256, "lite0@224": 64}


def measure(bench: Bench) -> dict[str, Any]:
    """Time each number by itself, and each extractor."""
    found = {"frechet": against_sqrtm(bench)}
    if bench.goals:
        return found
    sets = two_sets(WIDTH, bench)
    numbers = {
        "FD": lambda: frechet_distance(*map(FeatureSet, sets)),
        "KID": lambda: kernel_distance(*map(FeatureSet, sets)),
        "precision, recall, coverage": lambda: neighborhoods(*map(FeatureSet, sets), K, K_COVERAGE),
    }
    timings = bench.in_turn(numbers, slow=True, calls=1)
    for name, times in timings.items():
        found[name] = _seconds(name, scaled(times, NUM))
    for name, num in EXTRACTORS.items():
        if not bench.tiny or name == "digits":
            found[name] = features(name, num, bench)
    return found


def two_sets(width: int, bench: Bench) -> tuple[Tensor, Tensor]:
    """Features (N, width) of two distributions, >= 0 and of as many scales as real ones."""
    num = 64 if bench.tiny else NUM
    width = min(width, 8) if bench.tiny else width
    scales = torch.logspace(0, -2, width, device=bench.device)
    mix = torch.randn(width, width, device=bench.device) * scales[:, None] / width**0.5
    one, other = (torch.randn(num, width, device=bench.device) @ mix for _ in range(2))
    return one.relu(), (1.1 * other + 0.01).relu()


def scores(fake: Tensor, real: Tensor) -> None:
    """All numbers of two sets of features (N, D), from nothing."""
    sets = FeatureSet(fake), FeatureSet(real)
    frechet_distance(*sets)
    kernel_distance(*sets)
    neighborhoods(*sets, K, K_COVERAGE)


def scaled(times: Sequence[Timing], num: int) -> Spread:
    """Seconds for 10,000 images of what took so long for `num`."""
    return spread(timing.device / 1e3 * NUM / num for timing in times)


def _seconds(name: str, found: Spread) -> dict[str, Any]:
    print(f"{name}: {found} s for {NUM} images", flush=True)
    return {"seconds": asdict(found)}


def features(name: str, num: int, bench: Bench) -> dict[str, Any]:
    """Seconds of an extractor for 10,000 random images."""
    num = 16 if bench.tiny else NUM if bench.on_gpu else num
    extractor = load_extractor(name, bench.device)
    images = torch.randint(256, (num, 3, 32, 32), dtype=torch.uint8)
    times = bench.in_turn({name: partial(extractor, images)}, slow=True, calls=1)[name]
    return {**_seconds(f"features of {name}", scaled(times, num)), "images": num}


def sqrtm_distance(fake: np.ndarray, real: np.ndarray) -> float:
    """FD as pytorch-fid and others compute it, of features (N, D) in float64."""
    means, covariances = zip(
        *((each.mean(0), np.cov(each, rowvar=False)) for each in (fake, real)), strict=True
    )
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    difference = means[0] - means[1]
    traces = sum(np.trace(covariance) for covariance in covariances)
    return float(difference @ difference + traces - 2 * np.trace(root))


def against_sqrtm(bench: Bench) -> dict[str, Any]:
    """Ours against scipy's, from the features on; and how far the two values are apart."""
    sets = two_sets(WIDTH, bench)
    arrays = [features.double().cpu().numpy() for features in sets]
    values = {}

    def ours() -> None:
        values["ours"] = frechet_distance(*map(FeatureSet, sets))

    def scipys() -> None:
        values["scipy"] = sqrtm_distance(*arrays)

    # Where scipy computes, whatever the device: a warm-up would take a minute.
    found = in_turn({"ours": ours, "scipy": scipys}, bench.device, rounds=3, warm_up=0)
    times = ratio(found["scipy"], found["ours"])
    apart = abs(values["ours"] - values["scipy"]) / abs(values["scipy"])
    print(f"FD: scipy's sqrtm takes {times} times ours, {apart:.1e} apart", flush=True)
    return {
        "seconds": {name: asdict(scaled(each, NUM)) for name, each in found.items()},
        "scipy / ours": asdict(times),
        "relative_difference": apart,
    }
