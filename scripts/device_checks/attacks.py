"""Part `attacks`: FGSM, PGD and SimBA on the device against the same on the CPU, in float32.

A small network with random weights is attacked on images that it is right about, as the labels are
its own predictions. Every attack must keep its budget, fool as many images on both, and compute
ConvNorm's gains once.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from classification.attacks import fgsm, pgd
from classification.config import ClassifierConfig
from classification.models import build
from classification.simba import simba
from convnorm import ConvNorm2d, functional
from convnorm.experiment.data import load_images
from device_checks.numerics import tf32
from device_checks.part import Case, Finding, Setup
from device_checks.workloads import NUM_CLASSES, classifier_config, data

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
# Chosen to fool some of the images and not all: random weights are easily fooled.
EPS, EPS_L2, EPS_SIMBA = 0.5 / 255, 0.05, 32 / 255
ROUNDING = 1e-6  # of a budget


def _simba(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return simba(model, x, y, eps=EPS_SIMBA, basis="pixel", max_queries=20)[0]


def _attacks() -> dict[str, tuple[Attack, float, float]]:
    """Name -> attack, its budget, and the order of the norm that the budget is in."""
    steps = {"steps": 5, "restarts": 2}
    return {
        "fgsm": (partial(fgsm, eps=EPS), EPS, torch.inf),
        "pgd": (partial(pgd, norm="linf", eps=EPS, step_size=EPS / 4, **steps), EPS, torch.inf),
        "pgd l2": (partial(pgd, norm="l2", eps=EPS_L2, step_size=EPS_L2 / 4, **steps), EPS_L2, 2),
        "simba": (_simba, EPS_SIMBA, torch.inf),
    }


def cases(setup: Setup) -> Iterator[tuple[str, Case]]:
    """Each attack on a network with ConvNorm; on one with spectral norm too, unless tiny."""
    for kind in ("convnorm",) if setup.tiny else ("convnorm", "spectral"):
        for name, (attack, budget, order) in _attacks().items():
            yield f"{name} on {kind}", partial(against_cpu, kind, attack, budget, order, setup)


def _config(kind: str, setup: Setup) -> ClassifierConfig:
    return classifier_config(setup, kind, arch="simple_cnn")


@torch.no_grad()
def undecided(config: ClassifierConfig, images: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network whose random weights tell images apart, the images and its predictions.

    Else all images would be of one class, and stay so. images: (N, C, H, W) uint8; they are
    returned in [0, 1], the predictions are (N,).
    """
    x = images.float() / 255
    network = build(config, NUM_CLASSES, (0.5,) * 3, (0.5,) * 3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one pass tells it the statistics of these images
    network.train()(x)
    network.eval().head.linear.bias -= network(x).mean(0)
    return network, x, network(x).argmax(1)


def against_cpu(kind: str, attack: Attack, budget: float, order: float, setup: Setup) -> Finding:
    """Attack the same images on both, and count the fooled ones."""
    images = load_images(data(setup)).images[: 16 if setup.tiny else 128]
    network, x, labels = undecided(_config(kind, setup), images)
    failures, fooled = [], {}
    for where in dict.fromkeys((torch.device("cpu"), setup.device)):
        model, clean, y = copy.deepcopy(network).to(where), x.to(where), labels.to(where)
        gain = functional.spectral_gain
        with tf32(False), mock.patch.object(functional, "spectral_gain", wraps=gain) as gains:
            adversarial = attack(model, clean, y)
            computed = gains.call_count
            with torch.no_grad():
                fooled[where.type] = int((model(adversarial).argmax(1) != y).sum())
        layers = sum(isinstance(module, ConvNorm2d) for module in model.modules())
        if computed != layers:
            failures.append(f"{where.type}: {computed} gains computed for {layers} layers")
        far = (adversarial - clean).double().flatten(1).norm(order, dim=1).max().item()
        if not far <= budget + ROUNDING or not 0 <= adversarial.min() <= adversarial.max() <= 1:
            failures.append(
                f"{where.type}: changed by {far:.8f}, allowed is {budget:.8f} in [0, 1]"
            )
    cpu, device = fooled["cpu"], fooled[setup.device.type]
    if abs(cpu - device) > 1:  # rounding may decide one image
        failures.append(f"{device} images fooled, on the CPU {cpu}")
    line = f"{device} of {len(x)} images fooled, on the CPU {cpu}"
    return Finding(
        line, {"images": len(x), "fooled": device, "fooled_on_cpu": cpu}, tuple(failures)
    )
