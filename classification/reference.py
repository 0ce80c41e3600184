"""Checkpoints of ConvNorm's published code: their networks under the names that they have here.

A checkpoint of that code (github.com/shengliu66/ConvNorm, base/base_trainer.py) holds a state dict
and neither config nor data. Which ResNet it is of, --arch says; what normalizes it follows from its
names, the data from the number of its classes. Its gains come from the weights here, where its own
evaluation takes a running average of the spectrum.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from classification.config import ClassifierConfig, ModelConfig
from classification.label_noise import CIFAR10, CIFAR100
from classification.models import LoadedClassifier, build
from classification.networks import ARCHITECTURES as NETWORKS
from convnorm import Normalizer, from_reference
from convnorm.experiment import saved_elsewhere
from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import InputError

ARCHITECTURES = tuple(name for name in NETWORKS if name.startswith("resnet"))
# Number of classes -> data, classes, and the mean and std that the code standardizes with.
DATA = {
    10: ("cifar10", CIFAR10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    100: ("cifar100", CIFAR100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
EXPECTED = "a checkpoint of ConvNorm's published code"
# The name of something in the first layer -> what normalizes the network; the first found counts.
KINDS = {
    "conv1.running_V": Normalizer(
        "convnorm", affine=True, affine_init="default", batch_norm=True, eps=0.0
    ),
    "conv1.conv.weight_orig": Normalizer("spectral"),
    "conv1.WNScale": Normalizer("oni", multiplier=True, iterations=3, as_published=True),
    "norm1.weight": Normalizer("batch", multiplier=True),
    "conv1.weight": Normalizer("none"),
}
# Names within a convolution, there -> here.
SPECTRAL = "parametrizations.weight.0.parametrization"
WITHIN = {
    "conv.weight_orig": "parametrizations.weight.original",
    "conv.weight_u": f"{SPECTRAL}._u",
    "conv.weight_v": f"{SPECTRAL}._v",
    "WNScale": "parametrizations.weight.1.scale",
}
NAME = re.compile(r"(?:layer(\d+\.\d+)\.)?(conv|norm|shortcut\.)(\d)\.(.+)")


def load_reference(file: Path, arch: str, device: torch.device | str = "cpu") -> LoadedClassifier:
    """Read a classifier of ConvNorm's published code.

    arch: one of ARCHITECTURES. Raises InputError for a file that is none, or of another
    architecture.
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"arch: {arch!r} is not allowed; expected {' or '.join(ARCHITECTURES)}")
    saved, sha256 = saved_elsewhere.load(file, EXPECTED)
    found = saved.get("state_dict") if isinstance(saved, Mapping) else None
    state = _whole(found) if isinstance(found, Mapping) else {}
    if "linear.weight" not in state:
        raise InputError(f"{file}: has no state_dict with linear.weight; expected {EXPECTED}")
    number = len(state["linear.weight"])
    if number not in DATA:
        raise InputError(f"{file}: a network of {number} classes; expected CIFAR's 10 or 100")
    name, classes, mean, std = DATA[number]
    activation = "srelu" if "relu.srelu_bias" in state else "relu"
    config = ClassifierConfig(
        DataConfig(name=name),
        model=ModelConfig(arch, activation=activation, init="default"),
        normalizer=_normalizer(state, file),
    )
    network = build(config, number, mean, std)
    try:
        network.load_state_dict(_translated(state, network.state_dict()))
    except (AttributeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: is no {arch} of that code ({reason:.120})") from None
    return LoadedClassifier(
        network.to(device).eval().requires_grad_(False),
        config,
        classes,
        channels=len(mean),
        step=0,
        epoch=int(saved.get("epoch", 0)),
        file=file,
        sha256=sha256,
        data_sha256=None,
    )


def _whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefix that torch.nn.DataParallel puts before each name."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def _normalizer(state: Mapping[str, Tensor], file: Path) -> Normalizer:
    """What normalizes the network, by the names in its first layer."""
    found = next((kind for name, kind in KINDS.items() if name in state), None)
    if found is None:
        raise InputError(f"{file}: its first layer has no known name; expected {EXPECTED}")
    if found.kind == "convnorm" and "norm1.weight" in state:
        raise InputError(
            f"{file}: has a BatchNorm behind that of ConvNorm; expected norm_layer_type no beside "
            "prec_conv"
        )
    behind = found.kind in ("spectral", "oni") and "norm1.weight" in state
    return replace(found, batch_norm=found.batch_norm or behind)


def _translated(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of a state dict under our names.

    Raises AttributeError for a name that has no place here.
    """
    translated = {name: value for name, value in ours.items() if name.startswith("standardize.")}
    for name, value in from_reference(state).items():
        flat = name.endswith(("WNScale", "srelu_bias"))  # with dimensions of size 1
        for place in _places(name, ours):
            translated[place] = value.flatten() if flat else value
    if not any(name.endswith("running_mean") for name in ours):
        # Without BatchNorm our convolutions have a bias, and theirs have none.
        biases = {name: value for name, value in ours.items() if name.startswith("features.")}
        for name, value in biases.items():
            if name.endswith(".bias"):
                translated[name] = torch.zeros_like(value)
    return translated


def _places(name: str, ours: Mapping[str, Tensor]) -> list[str]:
    """Where a value of theirs stands here: once, and the shift of a block's activation twice."""
    if name.startswith("linear."):
        return [f"head.{name}"]
    if name == "relu.srelu_bias":
        return ["features.stem.1.shift"]
    if name.endswith(".relu.srelu_bias"):
        block = f"features.{name.removesuffix('.relu.srelu_bias').replace('layer', 'stage')}"
        return [f"{block}.residual.1.shift", f"{block}.activation.shift"]
    block, part, number, inner = NAME.fullmatch(name).groups()
    if block is None:
        layer = "features.stem.0"
    elif part == "shortcut.":
        layer, part = f"features.stage{block}.shortcut", ("conv", "norm")[int(number)]
    else:  # each convolution but the last has its activation behind it
        layer = f"features.stage{block}.residual.{2 * (int(number) - 1)}"
    if part == "norm":
        return [f"{layer}.1.{inner}"]
    if inner.startswith("batch_norm."):
        return [f"{layer}.1.{inner.removeprefix('batch_norm.')}"]
    conv = f"{layer}.0" if f"{layer}.1.running_mean" in ours else layer
    stored = f"{conv}.parametrizations.weight.original"
    if inner == "weight" and stored in ours:
        return [stored]
    return [f"{conv}.{WITHIN.get(inner, inner)}"]
