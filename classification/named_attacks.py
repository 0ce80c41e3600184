"""The attacks that an evaluation is asked for by name, such as pgd50x10, with their settings."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from classification.adversary_config import AdversaryConfig
from classification.attacks import Norm, fgsm, pgd
from classification.autoattack import STAGES, autoattack
from classification.radii import Length, euclidean_norm, grey_levels, step_levels
from classification.simba import simba
from convnorm.experiment.config import require
from convnorm.experiment.errors import InputError

NAMES = (
    "fgsm, pgd<STEPS>[x<RESTARTS>][_l2] (such as pgd20, pgd50x10 or pgd20_l2), apgd_ce_t[_l2], "
    "autoattack[_l2], simba_pixel, simba_dct, sweep, certified, corruptions"
)
# In grey levels of 1/255. Within the last every image can become one uniform grey, so that no
# network can be right about more than one class: a working attack ends at chance or below.
SWEEP = (1, 2, 4, 8, 16, 32, 64, 128)
SWEEP_STEPS = 20
MOST_STEPS, MOST_RESTARTS = 10_000, 1_000

# (network, x, y, positions in the data set) -> results with a row for each image: `fooled_at`,
# the least eps at which the image was misclassified (infinite if at none), and further columns.
Run = Callable[[nn.Module, Tensor, Tensor, Tensor], dict[str, Tensor]]

# Of what pyautoattack runs: name -> the version in its settings, and its stages.
_VERSIONS = {
    "apgd_ce_t": ("APGD-CE + APGD-T, the first two stages of AutoAttack", STAGES[:2]),
    "autoattack": ("standard", STAGES),
}
# In a record's order.
_KINDS = ("fgsm", "pgd", *_VERSIONS, "simba_pixel", "simba_dct", "sweep")
_OTHERS = (
    "fgsm",
    *(name + norm for name in _VERSIONS for norm in ("", "_l2")),
    "simba_pixel",
    "simba_dct",
    "sweep",
    "certified",
    "corruptions",
)
_PGD = re.compile(r"pgd([1-9][0-9]*)(?:x([1-9][0-9]*))?(_l2)?")


@dataclass(frozen=True)
class Budget:
    """How far attacks may change an image, and how long they may search.

    eps: of linf attacks, in grey levels of 255: 8 or "8/255", from 0.5. eps_l2: of l2 attacks, the
        Euclidean norm of an image's change, for values in [0, 1]: 0.5 or "128/255".
    step_size: of PGD under linf, in grey levels, up to 2 eps; None for eps / 4. Under l2 it is
        eps_l2 / 4.
    max_queries: how often SimBA may show an image to the network, up to 1,000,000.

    Lengths are kept as numbers.
    """

    eps: Length = AdversaryConfig.eps
    eps_l2: Length = 0.5
    step_size: Length | None = None
    max_queries: int = 5000
    seed: int = 0

    def __post_init__(self):
        eps = grey_levels(self.eps, "eps")
        step_size = step_levels(self.step_size, "step_size", eps)
        numbers = {"eps": eps, "step_size": step_size}
        for name, value in (numbers | {"eps_l2": euclidean_norm(self.eps_l2, "eps_l2")}).items():
            object.__setattr__(self, name, value)
        queries = 1 <= self.max_queries <= 1_000_000
        require(queries, "max_queries", self.max_queries, "1 to 1,000,000")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")


@dataclass(frozen=True)
class Attack:
    """settings: JSON-able, everything but the network and the images that determines the result."""

    name: str
    settings: dict[str, Any]
    run: Run


def attack_named(name: str, budget: Budget) -> Attack:
    """Return the attack of a name in `NAMES`, certified and corruptions excepted.

    Raises InputError for other names.
    """
    ball = {"norm": "linf", "eps": budget.eps / 255}
    if name.endswith("_l2"):
        ball = {"norm": "l2", "eps": budget.eps_l2}
    settings = {**ball, "seed": budget.seed}
    if found := _PGD.fullmatch(name):
        step_size = ball["eps"] / 4
        if ball["norm"] == "linf" and budget.step_size is not None:
            step_size = budget.step_size / 255
        loop = {
            "step_size": step_size,
            "steps": _count(name, found[1], MOST_STEPS, "steps"),
            "restarts": _count(name, found[2] or "1", MOST_RESTARTS, "restarts"),
        }
        return _attack(name, _pgd, settings | loop)
    if stages := stages_of(name):
        versions = {"version": _version_of(name)[0], "pyautoattack": _pyautoattack(name)}
        return Attack(name, settings | versions, partial(_autoattack, stages=stages, **settings))
    match name:
        case "fgsm":
            return _attack(name, _fgsm, ball)
        case "simba_pixel" | "simba_dct":
            search = {"basis": name.removeprefix("simba_"), "max_queries": budget.max_queries}
            return _attack(name, _simba, settings | search)
        case "sweep":
            ladder = {"norm": "linf", "eps": [eps / 255 for eps in SWEEP], "seed": budget.seed}
            climb = {"steps": SWEEP_STEPS, "step_size_of_eps": 1 / 4}
            return _attack(name, _sweep, ladder | climb)
    raise InputError(f"attacks: no attack is named {name!r:.60}; expected {_meant(name)}")


def stages_of(name: str) -> tuple[str, ...]:
    """The stages of AutoAttack that an attack of this name consists of, in their order."""
    return _version_of(name)[1]


def _version_of(name: str) -> tuple[str, tuple[str, ...]]:
    return _VERSIONS.get(name.removesuffix("_l2"), ("", ()))


def rank(attack: Attack) -> tuple[int, bool, int, int, str]:
    """Where an attack stands among others in a record, whichever was measured first."""
    kind = next(place for place, kind in enumerate(_KINDS) if attack.name.startswith(kind))
    given = attack.settings
    is_l2 = given["norm"] == "l2"
    return kind, is_l2, given.get("steps", 0), given.get("restarts", 0), attack.name


def _count(name: str, digits: str, most: int, what: str) -> int:
    if len(digits) > len(str(most)) or int(digits) > most:
        raise InputError(f"attacks: {name!r:.60} is not allowed; expected 1 to {most:,} {what}")
    return int(digits)


def _meant(name: str) -> str:
    """The right spelling of a name in capitals, with a slip, or of several in one word."""
    words = [re.sub(r"[-\s]", "", word) for word in re.split("[,;]", name.lower())]
    close = [[w] if _PGD.fullmatch(w) else get_close_matches(w, _OTHERS, 1, 0.8) for w in words]
    if not all(close):
        return NAMES
    found = [first for (first,) in close]
    return " and ".join(found) + (", each by itself" if len(found) > 1 else "")


def _attack(name: str, function: Callable, settings: dict[str, Any]) -> Attack:
    return Attack(name, settings, partial(function, **settings))


def _pyautoattack(name: str) -> str:
    """Return the package's version; InputError before any work is done if it is missing."""
    try:
        return version("pyautoattack")
    except PackageNotFoundError:
        raise InputError(f"{name}: expected pyautoattack: pip install pyautoattack") from None


def _fooled_at(network: nn.Module, x_adv: Tensor, y: Tensor, eps: float) -> Tensor:
    """Ask the network once more, so that no result rests on what an attack claims."""
    with torch.no_grad():
        wrong = network(x_adv).argmax(1) != y
    # In float64, as eps is: rounded to float32, an eps could lie above itself.
    return torch.where(wrong, *torch.tensor([eps, math.inf], dtype=torch.float64, device=y.device))


def _fgsm(
    network: nn.Module, x: Tensor, y: Tensor, positions: Tensor, *, norm: Norm, eps: float
) -> dict[str, Tensor]:
    return {"fooled_at": _fooled_at(network, fgsm(network, x, y, eps=eps), y, eps)}


def _pgd(
    network: nn.Module, x: Tensor, y: Tensor, positions: Tensor, *, eps: float, **settings: Any
) -> dict[str, Tensor]:
    x_adv = pgd(network, x, y, eps=eps, indices=positions.tolist(), **settings)
    return {"fooled_at": _fooled_at(network, x_adv, y, eps)}


def _sweep(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    positions: Tensor,
    *,
    eps: list[float],
    step_size_of_eps: float,
    **settings: Any,
) -> dict[str, Tensor]:
    """Run PGD at growing eps, each time on the images that withstood all smaller ones."""
    fooled_at = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    for radius in eps:
        left = fooled_at.isinf().nonzero().flatten()
        if len(left) == 0:
            break
        step = {"eps": radius, "step_size": step_size_of_eps * radius}
        found = _pgd(network, x[left], y[left], positions[left.cpu()], **step, **settings)
        fooled_at[left] = found["fooled_at"]
    return {"fooled_at": fooled_at}


def _simba(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    positions: Tensor,
    *,
    norm: Norm,
    eps: float,
    **settings: Any,
) -> dict[str, Tensor]:
    x_adv, queries = simba(network, x, y, eps=eps, indices=positions.tolist(), **settings)
    return {"fooled_at": _fooled_at(network, x_adv, y, eps), "queries": queries}


def _autoattack(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    positions: Tensor,
    *,
    norm: Norm,
    eps: float,
    seed: int,
    stages: tuple[str, ...],
) -> dict[str, Tensor]:
    """`stage`: which of `stages` fooled, from 0; -1 if wrong before, their number if none did."""
    outcome = autoattack(network, x, y, norm=norm, eps=eps, seed=seed, stages=stages)
    numbers = {None: len(stages), "clean": -1, **{name: k for k, name in enumerate(stages)}}
    stage = torch.tensor([numbers[name] for name in outcome.fooled_by])
    return {"fooled_at": _fooled_at(network, outcome.x_adv, y, eps), "stage": stage}
