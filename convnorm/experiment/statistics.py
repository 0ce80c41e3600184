"""What a sample says about the whole from which it was drawn."""

from scipy.stats import binomtest


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval (low, high) of a proportion, of which `successes` of `n` were seen.

    By Wilson (1927), without continuity correction: inside [0, 1], and of the promised coverage
    near both ends too, where accuracies under attack lie. It speaks of other test images, not of
    other training seeds.

    Raises:
        ValueError: `n` is 0, or `successes` is not in 0 to `n`.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"no proportion: {successes} of {n}")
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
