"""A kind of the catalogue with its options, which turns a plain layer into a normalized one.

Networks build plain convolutions and pass each one through a `Normalizer`; they never name a
kind. Whoever needs to know something of the kind asks the Normalizer.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn

from convnorm.catalogue import CATALOGUE
from convnorm.kind import Kind
from convnorm.maps import in_evaluation, input_sizes
from convnorm.scale import scale_map, scale_weight


class Normalized(nn.Sequential):
    """A convolution and what normalizes its map, in the order in which they run."""


@dataclass(frozen=True)
class Range:
    """All numbers from `least` to `most`."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


class _Reads(Mapping):
    """Kind -> the options that it reads, also of kinds that are added to the catalogue later."""

    def __getitem__(self, kind: str) -> tuple[str, ...]:
        return CATALOGUE[kind].reads

    def __iter__(self) -> Iterator[str]:
        return iter(CATALOGUE)

    def __len__(self) -> int:
        return len(CATALOGUE)


def _number(default: float, least: float, most: float) -> Any:
    return field(default=default, metadata={"range": Range(least, most)})


@dataclass(frozen=True)
class Normalizer:
    """A kind of the catalogue with its options; call it on a plain layer to normalize it.

    A kind reads the options that its `Kind.reads` names and leaves the others alone, so that
    `kind` can be varied by itself.

    Args:
        kind: how layers are normalized, as in CATALOGUE.
        scale: a factor on what the kind makes of each layer, also of one that it leaves alone: on
            the weight or the map, never on a bias; where there is a multiplier, its start. What is
            published has 1. Classifiers multiply orthogonal weights by sqrt(2) on top. BatchNorm
            behind a kind takes it away again, and training can undo what a multiplier starts with.
        multiplier: with the kind's own learned scale (and shift); without in a discriminator by
            Miyato et al. (2018).
        batch_norm: BatchNorm after each convolution.
        grid: on which ConvNorm filters, as in ConvNorm2d.
        affine: ConvNorm's learned convolution of each channel, as in ConvNorm2d.
        affine_init: how it starts, as in ConvNorm2d.
        affine_mode: what it convolves, as in ConvNorm2d.
        gradient_through_gain: of ConvNorm, as in ConvNorm2d.
        fused_filter: ConvNorm's filter="fused", as in ConvNorm2d.
        eps: what keeps ConvNorm's gain finite, as in ConvNorm2d.
        iterations: of Newton's method.
        groups: of rows of orthogonal weights.
        penalty_weight: with 1e-3, a learning rate of 0.1 and momentum 0.9 it brings the norm of a
            filter to 1 with a time constant of 125 steps. The paper's 0.1 is for the published
            value, a norm and not its square.
        as_published: with the defects of the published code.

    Raises ValueError for a kind that does not exist, and for an option out of its range, whether
    the kind reads it or not.
    """

    kind: str = field(metadata={"reads": _Reads()})
    scale: float = _number(1.0, 1e-6, 1000)
    multiplier: bool = False
    batch_norm: bool = False
    grid: Literal["full", "native"] = "full"
    affine: bool = False
    affine_init: Literal["default", "dirac"] = "dirac"
    affine_mode: Literal["same", "circular"] = "same"
    gradient_through_gain: bool = False
    fused_filter: bool = False
    eps: float = _number(1e-6, 0, 1000)
    iterations: int = _number(5, 1, 100)
    groups: int = _number(1, 1, 65_536)
    penalty_weight: float = _number(1e-3, 0, 10**6)
    as_published: bool = False

    def __post_init__(self) -> None:
        _check("kind", self.kind, self.kind in CATALOGUE, f"one of {', '.join(CATALOGUE)}")
        for option in fields(self):
            if allowed := option.metadata.get("range"):
                value = getattr(self, option.name)
                whole = (int,) if option.type is int else (int, float)
                _check(option.name, value, type(value) in whole and value in allowed, allowed)

    @property
    def definition(self) -> Kind:
        """What the catalogue says of this kind."""
        return CATALOGUE[self.kind]

    @property
    def adds_batch_norm(self) -> bool:
        """Whether BatchNorm comes behind what the kind itself does."""
        return self.batch_norm and "batch_norm" in self.definition.reads

    @property
    def mixes_batch(self) -> bool:
        """Whether what becomes of an image in training depends on the others in its batch."""
        return self.definition.mixes_batch or self.adds_batch_norm

    @property
    def conv_has_shift(self) -> bool:
        """Whether what `convolution` returns adds a learned offset to each channel."""
        return self.definition.conv_has_shift(self)

    @property
    def has_shift(self) -> bool:
        """Whether a normalized convolution brings a learned offset, its output included.

        `batch` does not where the image enters (`Kind.at_input`).
        """
        behind = self.definition.output_has_shift(self) or self.adds_batch_norm
        return self.conv_has_shift or behind

    @property
    def ignores_scale(self) -> bool:
        """Whether a factor on all weights of a normalized convolution changes nothing."""
        # BatchNorm behind a kind has a factor of its own.
        return self.definition.ignores_scale(self) and not self.adds_batch_norm

    def for_relu(self) -> "Normalizer":
        """The same for a network of ReLUs: its scale times the kind's `relu_gain`."""
        scale = self.scale * self.definition.relu_gain
        twin = copy.copy(self)
        object.__setattr__(twin, "scale", scale)  # `replace` would refuse one beyond the range
        return twin

    def penalty(self, network: nn.Module) -> torch.Tensor | None:
        """What to add to the loss of a normalized network, a scalar; None for most kinds."""
        penalty = self.definition.penalty
        return None if penalty is None else penalty(network, self)

    def observe(self, discriminator: nn.Module, logits: torch.Tensor) -> None:
        """Adapt a discriminator after an update of it, if the kind does (`Kind.observe`).

        logits: those of the real images (N,) in that update, of all processes.
        """
        if self.definition.observe is not None:
            self.definition.observe(discriminator, logits)

    def convolution(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
        """What the kind makes of the convolution itself; `conv` may be changed and is part of it.

        Raises ValueError for a transposed one where the kind has no form for it.

        The global random state is left as it was found, here and in `__call__`, so that all
        kinds build the rest of a network from the same random numbers.
        """
        kind = self.definition
        make: Callable[[Any, Normalizer], nn.Module] | None = kind.conv
        if isinstance(conv, nn.ConvTranspose2d):
            make = kind.transposed
        if make is None:
            able = [name for name, known in CATALOGUE.items() if known.transposed is not None]
            raise ValueError(
                f"normalizer.kind: {self.kind!r} has no form for a transposed convolution; "
                f"expected one of {', '.join(able)}"
            )
        with torch.random.fork_rng(devices=[]):
            made = make(conv, self)
        scaled = kind.conv_scales or kind.normalizes_map
        return self._marked(made if scaled else scale_weight(made, self.scale))

    def output(self, channels: int) -> list[nn.Module]:
        """What normalizes a map of so many channels, in its order; empty for many kinds."""
        with torch.random.fork_rng(devices=[]):
            own = self.definition.output(channels, self)
            modules = [] if own is None else [own]
            if own is not None and not self.definition.conv_scales:
                modules = scale_map(own, self.scale)
            if self.adds_batch_norm:
                modules.append(nn.BatchNorm2d(channels))
            return [self._marked(module) for module in modules]

    def __call__(
        self,
        layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding,
        *,
        at_input: bool = False,
        output_first: bool = False,
    ) -> nn.Module:
        """Return the normalized layer; `layer` itself may be changed and is part of it.

        at_input: the layer sees the image itself. output_first: normalize the map that enters a
        convolution, and not the one that it returns.
        """
        if isinstance(layer, nn.Linear | nn.Embedding):
            with torch.random.fork_rng(devices=[]):
                if isinstance(layer, nn.Linear):
                    made = self.definition.linear(layer, self)
                else:
                    made = self.definition.embedding(layer, self)
            return self._marked(scale_weight(made, self.scale))
        device, dtype = layer.weight.device, layer.weight.dtype
        conv = self.convolution(layer)
        if at_input and not self.definition.at_input:  # no map is normalized there, or scaled
            return conv if self.definition.conv_scales else scale_weight(conv, self.scale)
        output = self.output(layer.in_channels if output_first else layer.out_channels)
        if not output:
            return conv
        output = [module.to(device, dtype) for module in output]
        return self._marked(Normalized(*((*output, conv) if output_first else (conv, *output))))

    def _marked(self, module: nn.Module) -> nn.Module:
        # Found by `normalized_layers`, also in a deepcopy. Torch declares attributes of modules as
        # tensors and modules.
        module.normalized_by = self  # type: ignore[assignment]
        return module


def normalized_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module, Normalizer]]:
    """Find in a network what a Normalizer returned: (name, normalized layer, its Normalizer)."""
    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        normalizer = getattr(module, "normalized_by", None)
        if isinstance(normalizer, Normalizer) and module not in inside:
            inside.update(module.modules())
            yield name, module, normalizer


def fit_to_maps(network: nn.Module, *example: torch.Tensor) -> None:
    """Adapt each normalized layer to the size of its input, where its kind asks for it.

    `example` is one input of the network. State, modes and the global random state stay as they
    are, but for what is fitted; a network without such layers is not run.
    """
    fits = {
        layer: normalizer.definition.fit
        for _, layer, normalizer in normalized_layers(network)
        if normalizer.definition.fit is not None
    }
    if not fits:
        return
    with in_evaluation(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for layer, size in input_sizes(network, fits, *example).items():
            fits[layer](layer, size)


def _check(option: str, value: object, allowed: bool, expected: object) -> None:
    if not allowed:
        raise ValueError(f"normalizer.{option}: {value!r} is not allowed; expected {expected}")
