"""What makes networks conditional on a class: BatchNorm by class in generators, heads that know it.

    kind          generator                discriminator, h what enters its head
    none          BatchNorm                w.h
    projection    BatchNorm by class       w.h + e_y.h      Miyato & Koyama (ICLR 2018, 1802.05637)
    acgan         BatchNorm by class       w.h, and a classifier's logits V h
                                                            Odena et al. (ICML 2017, 1610.09585)

As in the released code of the former (pfnet-research/sngan_projection), the last BatchNorm of a
generator, before the convolution that makes the image, knows no class, and labels enter nowhere
else. That code has residual networks alone; `sngan_cnn` follows the same two rules here: three of
its four BatchNorms know the class, and h is the whole flattened map.

With all gammas 1 and all betas 0, as at the start, BatchNorm by class is plain BatchNorm, and an
embedding is drawn behind all other weights: all kinds start from the same where shapes agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnorm.experiment.errors import InputError
from gan.networks.layers import Labelled

Kind = Literal["none", "projection", "acgan"]
Weighted = TypeVar("Weighted", nn.Linear, nn.Embedding)


@dataclass(frozen=True)
class Conditioning:
    """How two networks know classes.

    num_classes: of the data. Raises InputError for a single one, unless the kind is none.
    """

    kind: Kind = "none"
    num_classes: int = 1

    def __post_init__(self):
        if self.kind != "none" and self.num_classes < 2:
            raise InputError(
                f"model.conditional: {self.kind!r} needs classes, and the data have only one; "
                "expected none, or data with two classes or more"
            )

    def batch_norm(self, channels: int, eps: float) -> nn.Module:
        """Make what a generator has in the place of each BatchNorm but its last."""
        if self.kind == "none":
            return nn.BatchNorm2d(channels, eps=eps)
        return ConditionalBatchNorm2d(self.num_classes, channels, eps)

    def head(
        self,
        normalize: Callable[..., nn.Module],
        initialized: Callable[[Weighted], Weighted],
        linear: nn.Linear,
    ) -> list[nn.Module]:
        """Make a discriminator's last layers: h (N, C) -> logits (N,).

        linear: w, initialized. initialized: draws the weights of a layer, sets a bias to 0, and
            returns it.
        """
        head = normalize(linear)
        if self.kind == "none":
            return [head, nn.Flatten(0)]
        if self.kind == "projection":
            embedding = initialized(nn.Embedding(self.num_classes, linear.in_features))
            return [ProjectionHead(head, normalize(embedding))]
        has_bias = linear.bias is not None
        classes = initialized(nn.Linear(linear.in_features, self.num_classes, bias=has_bias))
        return [AuxiliaryHead(head, normalize(classes))]


UNCONDITIONAL = Conditioning()


class ConditionalBatchNorm2d(nn.Module):
    """BatchNorm with a scale and a shift of each class: gamma[y] * BN(x) + beta[y].

    Statistics, the running ones too, are of all classes together, as published; so they depend on
    how often each class is asked for.
    """

    takes_labels = True

    def __init__(self, num_classes: int, channels: int, eps: float):
        super().__init__()
        self.batch_norm = nn.BatchNorm2d(channels, eps=eps, affine=False)
        self.gammas = nn.Parameter(torch.ones(num_classes, channels))
        self.betas = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """x: (N, C, H, W), labels: (N,) -> (N, C, H, W)."""
        gamma, beta = F.embedding(labels, self.gammas), F.embedding(labels, self.betas)
        return gamma[:, :, None, None] * self.batch_norm(x) + beta[:, :, None, None]


class ProjectionHead(nn.Module):
    """w.h + e_y.h (Miyato & Koyama 2018, equation 4, with the linear w for psi)."""

    takes_labels = True

    def __init__(self, linear: nn.Module, embedding: nn.Module):
        super().__init__()
        self.linear, self.embedding = linear, embedding

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        """h: (N, C), labels: (N,) -> logits (N,); without labels w.h, which is of no class."""
        logits = self.linear(h).flatten()
        return logits if labels is None else logits + (self.embedding(labels) * h).sum(1)


class AuxiliaryHead(nn.Module):
    """Two linear layers on one h: real or generated, and which class (Odena et al. 2017)."""

    takes_labels = True

    def __init__(self, linear: nn.Module, classes: nn.Module):
        super().__init__()
        self.linear, self.classes = linear, classes

    def judged(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """h: (N, C), labels: (N,) -> logits (N,), and of each image -log p(label) (N,)."""
        errors = F.cross_entropy(self.classes(h).float(), labels, reduction="none")
        return self.linear(h).flatten(), errors

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        """h: (N, C) -> logits (N,), which do not depend on the labels."""
        return self.linear(h).flatten() if labels is None else self.judged(h, labels)[0]


def judged(discriminator: Labelled, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Run a discriminator whose head is an `AuxiliaryHead`; see `AuxiliaryHead.judged`."""
    *layers, head = discriminator
    h = images
    for layer in layers:
        h = layer(h)
    return head.judged(h, labels)
