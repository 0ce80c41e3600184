"""What is measured of a network's spectra, and how runs of one method are gathered."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convnorm.experiment.errors import InputError
from convnorm.experiment.records import NormPoint
from convnorm.singular_values import Summary
from spectra.subjects import Subject

# Stage of a composite -> what a reader is told of it.
TOLD = {
    "conv": "conv",
    "gain": "+ gain",
    "affine": "+ affine",
    "norm": "/ operator norm",
    "chain": "+ CHAIN",
    "factor": "+ factor",
    "batch_norm": "+ BatchNorm",
}


@dataclass(frozen=True)
class Stage:
    """A layer up to a part of it; curve: its singular values, falling, where they are drawn."""

    name: str
    values: Summary
    curve: tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution with what normalizes it.

    what: its geometry in words. size, ring: (H, W) of its input, and what was taken for it.
    below, above: its norm with the padding that it has, by Lanczos' method and by Gram iteration.
    notes: what is missing, and why.
    """

    name: str
    what: str
    size: tuple[int, int] | None
    ring: tuple[int, int] | None
    stages: tuple[Stage, ...]
    below: float | None
    above: float | None
    notes: tuple[str, ...]

    @property
    def whole(self) -> Stage | None:
        return self.stages[-1] if self.stages else None

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)


@dataclass(frozen=True)
class Measured:
    """All of a network.

    jacobian: the largest norm of its Jacobian over so many `images`. bound: of its Lipschitz
    constant; never without jacobian. settings: see `Subject`.
    """

    source: str
    method: str
    kind: str | None
    seed: int | None
    step: int | None
    layers: tuple[Layer, ...]
    norms: dict[str, tuple[NormPoint, ...]]
    jacobian: float | None
    images: int
    bound: float | None
    notes: tuple[str, ...]
    settings: dict[str, Any]


def check_seeds(subjects: Sequence[Subject]) -> None:
    """Raise InputError where two networks are one training: n would count it twice."""
    for i, one in enumerate(subjects):
        for other in subjects[:i]:
            if one.seed is not None and (one.seed, one.settings) == (other.seed, other.settings):
                raise InputError(
                    f"{one.source}: has the config and the seed of {other.source}; expected each "
                    "training once"
                )


def by_method(measured: Iterable[Measured]) -> dict[str, list[Measured]]:
    """Gather networks of equal settings, under names that tell the methods apart."""
    groups: list[list[Measured]] = []
    for one in measured:
        group = next((g for g in groups if g[0].settings == one.settings), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    names = _names([group[0] for group in groups])
    return {
        name: [replace(one, method=name) for one in group]
        for name, group in zip(names, groups, strict=True)
    }


def _names(firsts: list[Measured]) -> list[str]:
    """The kind of each method, and the settings in which it is not as most of them are."""
    keys = dict.fromkeys(key for one in firsts for key in one.settings)
    usual = {
        key: Counter(repr(one.settings.get(key)) for one in firsts).most_common(1)[0][0]
        for key in keys
    }
    names = []
    for one in firsts:
        differing = [
            f"{key} {one.settings.get(key)}"
            for key in keys
            if key not in ("normalizer.kind", "model") and repr(one.settings.get(key)) != usual[key]
        ]
        names.append(", ".join([one.kind or one.source, *differing]))
    return names
