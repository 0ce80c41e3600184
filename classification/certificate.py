"""Certified accuracy: how many images no change within an l2 radius can turn to another class.

With L a Lipschitz bound of the logits, the difference of two logits changes by at most sqrt(2) L a
unit of l2. So an image with the margin m = top - second logit keeps its class within a radius of
m / (sqrt(2) L) (Tsuzuku, Sato & Sugiyama, NeurIPS 2018, proposition 1), against every attack. It
holds of the network in exact arithmetic; what rounding in float32 changes is not covered.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

from classification.evaluation_options import CERTIFIED
from classification.evaluation_record import accuracy
from classification.per_image import Rows, Subject
from classification.records import Certified, CertifiedPoint
from convnorm.network_bound import NoBound, network_bound

RADII = tuple(levels / 255 for levels in (36, 72, 108, 255))  # of Prach & Lampert (ECCV 2022)
SCORED = RADII[0]  # the radius at which a certified accuracy is one number
PROOF = "the layers' operator norms multiplied, branches added (convnorm.network_bound)"


def lipschitz_bound(network: nn.Module, example: Tensor) -> tuple[float, str]:
    """Return an l2 Lipschitz bound of the logits from the pixels, and how it is proven.

    Of the network in evaluation mode, on images of the size of `example`, (1, C, H, W); infinity
    with the reason where no bound is known. Standardization counts with 1 / std, a layer that a
    kind makes 1-Lipschitz with the norm that it has, a block x + f(x) with 1 + L(f).
    """
    try:
        bound = network_bound(network, example)
    except NoBound as error:
        return math.inf, f"no bound: {error}"
    return (bound, PROOF) if math.isfinite(bound) else (math.inf, "no bound: it is not finite")


def certified_radii(logits: Tensor, bound: float) -> Tensor:
    """Return the l2 radius within which each image keeps its class, (N,) float64.

    logits: (N, classes) float32. bound: of `lipschitz_bound`; where it is infinite, radii are 0.
    """
    top, second = logits.double().topk(2).values.unbind(1)
    return (top - second) / (math.sqrt(2) * bound)


def certify(subject: Subject, queue: Tensor) -> Rows:
    """`radius`, and for each image the same `bound`, of the images of `queue`, which are right."""
    bound_of = cache(lambda: lipschitz_bound(subject.network, _example(subject))[0])

    def compute(positions: Tensor) -> Rows:
        with torch.no_grad():
            radii = certified_radii(subject.network(subject.pixels(positions)), bound_of())
        return {"radius": radii, "bound": torch.full_like(radii, bound_of())}

    rows = subject.rows(CERTIFIED, {}, queue, compute)
    return rows if len(queue) else dict.fromkeys(("radius", "bound"), torch.empty(0).double())


def certified_record(subject: Subject, rows: Rows, n: int) -> Certified:
    """Of `n` images; `rows` are of those that are right."""
    kept = rows["bound"][:1].tolist()
    if kept and math.isfinite(kept[0]):
        bound, proof = kept[0], PROOF
    else:  # the reason is not kept
        bound, proof = lipschitz_bound(subject.network, _example(subject))
    points = (CertifiedPoint(r, accuracy(int(is_certified(rows, r).sum()), n)) for r in RADII)
    return Certified(bound if math.isfinite(bound) else None, proof, tuple(points))


def is_certified(rows: Rows, radius: float) -> Tensor:
    """Which images keep their class within a radius, (N,) bool."""
    return rows["radius"] > radius


def _example(subject: Subject) -> Tensor:
    return subject.pixels(subject.positions[:1])
