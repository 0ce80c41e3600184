"""Part `cls`: training steps of ResNet-18 for each normalizer, and PGD-20 against torchattacks.

On a CPU the groups that the table of goals does not show have smaller batches, whose sizes are in
their names: what follows from weights alone then counts for more.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from classification.attacks import fgsm, pgd
from classification.config import ClassifierConfig
from convnorm.catalogue import CATALOGUE
from convnorm.experiment.data import load_images
from convnorm.experiment.run.loop import take_step
from device_checks.attacks import undecided
from device_checks.workloads import classifier_config, make_trainer
from speed.bench import Bench, compared, ratio, tell
from speed.clock import Run
from speed.gan import NATIVE

GOALS = ("batch", "spectral", "convnorm", NATIVE)
PUBLISHED_BATCH = 128
STEPS = 20  # of PGD
HALVINGS = 12  # in the search for an eps that fools half of the images


def config_of(
    name: str, batch_size: int, bench: Bench, adversary: str = "standard"
) -> ClassifierConfig:
    """The published recipe with a normalizer."""
    grid = "native" if name == NATIVE else "full"
    kind = "convnorm" if name == NATIVE else name
    config = classifier_config(bench.setup, kind, grid=grid, adversary=adversary)
    if bench.tiny:
        return config
    return replace(config, train=replace(config.train, batch_size=batch_size))


def measure(bench: Bench) -> dict[str, Any]:
    """Time steps and attacks in turn; unless for the goals alone, of every kind and Free's."""
    found = {"resnet18": _updates("resnet18", GOALS, PUBLISHED_BATCH, bench)}
    if not bench.goals:
        every = [kind for kind, known in CATALOGUE.items() if known.observe is None]
        rest = ["batch", *(kind for kind in every if kind not in GOALS)]
        rest = ["batch", "none"] if bench.tiny else rest
        batch = PUBLISHED_BATCH if bench.on_gpu else 16
        group = f"resnet18, {batch} images"
        found[group] = _updates(group, rest, batch, bench)
        batch = PUBLISHED_BATCH if bench.on_gpu else 32
        group = f"resnet18 by Free, {batch} images"
        found[group] = _updates(group, ("batch", "convnorm"), batch, bench, "free")
    networks = ("batch",) if bench.goals else ("batch", "convnorm")
    attacks = {name: attacked(name, bench) for name in networks}
    return {"steps": found, "pgd20": attacks}


def _updates(
    group: str, names: Iterable[str], batch_size: int, bench: Bench, adversary: str = "standard"
) -> dict[str, Any]:
    """Whole training steps, whose draws are in them."""
    configs = {name: config_of(name, batch_size, bench, adversary) for name in names}
    runs = {
        name: partial(take_step, make_trainer(config, bench.setup))
        for name, config in configs.items()
    }
    comparison = compared(bench.in_turn(runs, slow=True))
    tell(group, comparison)
    return comparison


def attacked(name: str, bench: Bench) -> dict[str, Any]:
    """PGD-20 on a network with random weights that withstands it on about half of the images.

    Whoever evaluates also looks at what the attack made, so both sides do.
    """
    num = 8 if bench.tiny else 512 if bench.on_gpu else 16
    config = config_of(name, PUBLISHED_BATCH, bench)
    made = undecided(config, load_images(config.data).images[:num])
    network, x, y = (each.to(bench.device) for each in made)
    eps = halving_eps(network, x, y)
    robust = {}

    def look(who: str, attack: Run) -> None:
        adversarial = attack()
        with torch.no_grad():
            robust[who] = (network(adversarial).argmax(1) == y).float().mean()

    settings = {"eps": eps, "step_size": eps / 4, "steps": STEPS, "norm": "linf"}
    attacks: dict[str, Run] = {"ours": partial(pgd, network, x, y, **settings)}
    if find_spec("torchattacks"):
        attacks["torchattacks"] = partial(_torchattacks(network, eps), x, y)
    else:
        print("torchattacks is not installed: ours is timed alone")
    runs = {who: partial(look, who, attack) for who, attack in attacks.items()}
    found = bench.in_turn(runs, slow=True, calls=1)
    comparison: dict[str, Any] = compared(found)
    comparison |= {"images": num, "eps": eps, "robust": {w: r.item() for w, r in robust.items()}}
    tell(f"PGD-{STEPS}, resnet18 with {name}, {num} images", comparison)
    if "torchattacks" in found:
        comparison["torchattacks / ours"] = asdict(ratio(found["torchattacks"], found["ours"]))
    return comparison


def _torchattacks(network: nn.Module, eps: float) -> Any:
    import torchattacks

    return torchattacks.PGD(network, eps=eps, alpha=eps / 4, steps=STEPS)


def halving_eps(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return an eps at which FGSM fools about half of the images, found by bisection."""
    low, high = 1e-7, 0.5
    for _ in range(HALVINGS):
        eps = math.sqrt(low * high)
        with torch.no_grad():
            fooled = (network(fgsm(network, x, y, eps=eps)).argmax(1) != y).float().mean()
        low, high = (eps, high) if fooled < 0.5 else (low, eps)
    return high
