"""The labels that people gave to CIFAR's training images, from the user's copy of CIFAR-N.

Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations",
ICLR 2022 (arXiv 2110.12088). Their licence, CC BY-NC 4.0, keeps the files out of this suite: they
are CIFAR-10_human.pt and CIFAR-100_human.pt of https://github.com/UCSC-REAL/cifar-10-100n.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnorm.experiment import saved_elsewhere
from convnorm.experiment.errors import InputError

# kind -> the number of classes, and the key in the file. Of CIFAR-10 three people labelled each
# image; `aggregate` is their majority, `worst` a wrong label wherever one of them gave one.
KINDS = {
    "human_worst": (10, "worse_label"),
    "human_aggregate": (10, "aggre_label"),
    "human_random1": (10, "random_label1"),
    "human_random2": (10, "random_label2"),
    "human_random3": (10, "random_label3"),
    "human_fine": (100, "noisy_label"),
}
CLEAN = "clean_label"


def file_of(kind: str) -> str:
    """The file that a kind is read from, in words."""
    number, _ = KINDS[kind]
    return f"CIFAR-{number}_human.pt of CIFAR-N"


def read(file: Path, kind: str, clean: Tensor) -> Tensor:
    """Return the labels of one kind, (N,) int64.

    clean: (N,) int64, CIFAR's own labels in the order of its files. Raises InputError for a file
    that is not one of CIFAR-N, or not of these images in this order.
    """
    number, key = KINDS[kind]
    expected = f"{file_of(kind)} (noise.kind: {kind})"
    state, _ = saved_elsewhere.load(file, expected)
    theirs, labels = (_labels(state, name, file, expected) for name in (CLEAN, key))
    if theirs.shape != clean.shape or not torch.equal(theirs, clean):
        differ = (theirs != clean).sum().item() if theirs.shape == clean.shape else "other numbers"
        raise InputError(
            f"noise.file: {file} holds {len(theirs)} labels, {differ} of them other than the "
            f"{len(clean)} of the data; expected the training images of CIFAR in their order"
        )
    if labels.shape != clean.shape or not 0 <= labels.min() <= labels.max() < number:
        raise InputError(f"noise.file: {file}: {key} has other labels than 0 to {number - 1}")
    return labels


def _labels(state: Any, key: str, file: Path, expected: str) -> Tensor:
    if not isinstance(state, Mapping) or key not in state:
        raise InputError(f"noise.file: {file} has no {key}; expected {expected}")
    return torch.as_tensor(state[key]).flatten().long()
