"""The table of goals: what was measured, from a file of results, and what is wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convnorm.experiment.errors import InputError
from speed.bench import Spread

Parts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """A goal, or two that stand together.

    at: where the ratios are in the parts. goals: device -> in words; none where nothing is wanted.
    """

    what: str
    at: tuple[tuple[str, ...], ...]
    goals: Mapping[str, str]


def _means(network: str, ratio: str) -> tuple[str, ...]:
    return ("layer", "geometric_means", network, "training", ratio)


def _gan(*kinds: str) -> tuple[tuple[str, ...], ...]:
    return tuple(("gan", "updates", "sngan_cnn", "runs", kind, "ratio") for kind in kinds)


def _cls(*kinds: str) -> tuple[tuple[str, ...], ...]:
    return tuple(("cls", "steps", "resnet18", "runs", kind, "ratio") for kind in kinds)


ROWS = (
    Row(
        "published formulation / `full`, training step, all but 1x1",
        (_means("all but 1x1", "published / full"),),
        {"cpu": ">= 2.2", "cuda": ">= 3"},
    ),
    Row(
        "`native` / conv + BN, training step, all shapes",
        (_means("all", "native / conv_bn"),),
        {"cpu": "<= 1.30", "cuda": "<= 1.6"},
    ),
    Row(
        "the same with `affine_mode: circular`",
        (_means("all", "circular / conv_bn"),),
        {"cuda": "<= 1.3"},
    ),
    Row(
        "SNGAN CNN update, convnorm full, native / none",
        _gan("convnorm", "convnorm native"),
        {"cpu": "<= 2.0, <= 1.2", "cuda": "<= 1.5, <= 1.25 with capture"},
    ),
    Row(
        "SNGAN CNN update, spectral_convnorm, oni / none",
        _gan("spectral_convnorm", "oni"),
        {"cpu": "<= 2, <= 2"},
    ),
    Row(
        "ResNet-18 step, native, full / batch",
        _cls("convnorm native", "convnorm"),
        {"cpu": "<= 1.3, <= 2.0", "cuda": "<= 1.4, <= 2"},
    ),
    Row(
        "peers' plain loop / GAN update, SNGAN CNN, spectral, and with channels_last",
        tuple(
            ("gan", "updates", "sngan_cnn", "plain loop / ours", name)
            for name in ("spectral", "spectral, channels_last")
        ),
        {"cpu": ">= 1.15", "cuda": ">= 4"},
    ),
    Row(
        "torchattacks / PGD-20 evaluation, a half-robust ResNet-18",
        (("cls", "pgd20", "batch", "torchattacks / ours"),),
        {"cpu": ">= 1.3", "cuda": ">= 1.5"},
    ),
    Row(
        "scipy's sqrtm / FD of 10,000 x 2,048 features",
        (("score", "frechet", "scipy / ours"),),
        {"cpu": ">= 3"},
    ),
    Row(
        "updates a second of 8 processes on one GPU / of one",
        (("growth", "processes", "8", "ratio"),),
        {"cuda": ">= 3"},
    ),
)


def table(parts: Parts) -> str:
    """Return the table as Markdown, and below it what was measured with which versions."""
    device = next(iter(parts.values()))["device"] if parts else "cpu"
    lines = ["| what | measured ratio | goal |", "| --- | --- | --- |"]
    for row in ROWS:
        if device in row.goals:
            found = ", ".join(_measured(parts, path) for path in row.at)
            lines.append(f"| {row.what} | {found} | {row.goals[device]} |")
    sources: dict[str, list[str]] = {}
    for name, part in parts.items():
        tiny = ", tiny, which is no benchmark" if part["tiny"] else ""
        source = f"{part['hardware']}, torch {part['torch']}{tiny}"
        sources.setdefault(source, []).append(name)
    lines += ["", "Median (least to most) of the ratios within a round."]
    lines += [f"{', '.join(names)}: {source}." for source, names in sources.items()]
    return "\n".join(lines)


def _measured(parts: Parts, path: tuple[str, ...]) -> str:
    found: Any = parts
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return "not measured"
        found = found[key]
    try:
        return str(Spread(**found))
    except (TypeError, ValueError):
        raise InputError(f"--json: {'.'.join(path)} is {found!r:.60}; expected a ratio") from None
