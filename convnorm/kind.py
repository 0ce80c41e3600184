"""What the suite knows of one kind of normalizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from convnorm.normalizers import Normalizer


def as_it_is(layer: nn.Module, options: "Normalizer") -> nn.Module:
    return layer


def _nothing(channels: int, options: "Normalizer") -> None:
    return None


def _never(options: "Normalizer") -> bool:
    return False


@dataclass(frozen=True)
class Kind:
    """All that the suite knows of one kind of normalizer. Functions get the options last.

    does: what becomes of each convolution, in a few words for a table, with the source.

    How it normalizes:
    conv: what a convolution becomes; it may be changed and is part of the result.
    linear: what the last, linear layer of a discriminator becomes.
    embedding: what the embedding of classes of a conditional discriminator becomes, whose weight
        (classes, C) has a row for each class. It is the linear map of one-hot inputs with the
        transposed weight, and not a linear layer of that weight, whose rows are outputs.
    transposed: what a transposed convolution becomes, likewise; None where the kind has no form for
        one, and refuses it.
    output: makes what normalizes a map of so many channels; None where nothing does.
    at_input: whether `output` also normalizes the maps of a discriminator's layers that see the
        image itself; `conv` always does its part.
    reads: the fields of `Normalizer` that it reads: "scale" always, which the Normalizer applies.
        With "batch_norm" among them, BatchNorm comes behind `output` where that option is on;
        nothing below has to speak of it.
    conv_scales: `conv` multiplies by `scale` itself. Else the normalizer multiplies the map that
        `output` returns, or the weight where there is no `output`.

    fit: adapts a normalized layer to the size (N, C, H, W) of its input; `fit_to_maps` calls it
        once, behind the building of a network. None where no size matters.

    What that is:
    is_affine: in evaluation mode, a convolution with its `output` is an affine map of its input.
    conv_has_shift, output_has_shift: what `conv` returns, and `output`, adds a learned offset to
        each channel at its end, so that a bias just before it would be one too many.
    mixes_batch: in training, what becomes of an image depends on the others in its batch.
    waits: a pass in training waits for what the device computes, so that no CUDA graph can hold it.
    ignores_scale: in training, a factor on all parameters of a convolution and its `output` but
        the biases changes nothing, so that a bound on them bounds nothing.

    relu_gain: what a classifier, whose activations are ReLUs, multiplies `scale` by.

    What training does about it:
    penalty: what to add to the loss of a network, a scalar; None where nothing is added.
    statistics: names of buffers of its own that are statistics of the data, which an average over
        steps or processes averages; buffers named as BatchNorm's need no mention.
    observe: gets a discriminator and its logits of real images (N,), those of all processes, after
        each update of it, and adapts the layers to them. None where nothing adapts; a kind that
        does is for discriminators alone.
    advance: moves the buffers that follow from the weights, such as vectors of power iterations,
        one step on, where the weights changed by other means than training. It gets a normalized
        layer, or its `output` where that stands apart, in training mode. None where there are no
        such buffers.
    """

    does: str = ""
    conv: Callable[[nn.Conv2d, "Normalizer"], nn.Module] = as_it_is
    linear: Callable[[nn.Linear, "Normalizer"], nn.Module] = as_it_is
    embedding: Callable[[nn.Embedding, "Normalizer"], nn.Module] = as_it_is
    transposed: Callable[[nn.ConvTranspose2d, "Normalizer"], nn.Module] | None = None
    output: Callable[[int, "Normalizer"], nn.Module | None] = _nothing
    at_input: bool = True
    reads: tuple[str, ...] = ("scale",)
    conv_scales: bool = False
    fit: Callable[[nn.Module, torch.Size], None] | None = None
    is_affine: bool = True
    conv_has_shift: Callable[["Normalizer"], bool] = _never
    output_has_shift: Callable[["Normalizer"], bool] = _never
    mixes_batch: bool = False
    waits: bool = False
    ignores_scale: Callable[["Normalizer"], bool] = _never
    relu_gain: float = 1.0
    penalty: Callable[[nn.Module, "Normalizer"], torch.Tensor] | None = None
    statistics: tuple[str, ...] = ()
    observe: Callable[[nn.Module, torch.Tensor], None] | None = None
    advance: Callable[[nn.Module], None] | None = None

    @property
    def normalizes_convolution(self) -> bool:
        """Whether it does anything to a convolution itself."""
        return self.conv is not as_it_is

    @property
    def normalizes_linear(self) -> bool:
        """Whether it does anything to the last, linear layer of a discriminator."""
        return self.linear is not as_it_is

    @property
    def normalizes_embedding(self) -> bool:
        """Whether it does anything to the embedding of a conditional discriminator."""
        return self.embedding is not as_it_is

    @property
    def stands_in_generators(self) -> bool:
        """Whether it normalizes transposed convolutions, and that is all it does.

        A generator has a BatchNorm of its own on its maps, and no loss that takes a penalty.
        """
        alone = not self.normalizes_map and self.penalty is None and self.observe is None
        return self.transposed is not None and alone

    @property
    def normalizes_map(self) -> bool:
        """Whether it has an `output`."""
        return self.output is not _nothing
