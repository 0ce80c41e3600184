"""Measures a network: singular values and norms of its layers, its bound and its Jacobian."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convnorm.composite import Composite, NoSymbol, composite_of
from convnorm.experiment.errors import InputError
from convnorm.gram import norm_bound
from convnorm.jacobian import jacobian_norms
from convnorm.layer import ConvNorm2d
from convnorm.network_bound import NoBound, network_bound
from convnorm.placement import Placed, placed_convolutions
from convnorm.singular_values import singular_values, summary_of
from convnorm.spectrum import operator_norm
from convnorm.symbols import circular_symbol
from spectra.records import Layer, Measured, Stage
from spectra.subjects import Subject

POINTS = 200  # of a curve of singular values
PART = 16  # images whose Jacobians are taken at a time

Tick = Callable[[str], None]


def layers_of(subject: Subject) -> dict[str, Placed]:
    """The convolutions of a network by name, none of which has been measured."""
    size = subject.image_size
    device = next(subject.network.parameters()).device
    try:
        found = placed_convolutions(subject.network, torch.zeros(1, *size, device=device))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{subject.source}: does not take an image of {'x'.join(map(str, size))} ({reason})"
        ) from None
    if not found:
        raise InputError(f"{subject.source}: has no convolution; expected a network with some")
    return found


def check_alike(placed: dict[str, dict[str, Placed]]) -> None:
    """Raise InputError where networks, source -> layers, have other layers than the first."""
    (first, layers), *others = placed.items()
    for source, found in others:
        here, there = _geometries(found), _geometries(layers)
        for name in {**there, **here}:
            if here.get(name) != there.get(name):
                raise InputError(
                    f"{source}: layer {name}: {here.get(name, 'none')}, in {first}: "
                    f"{there.get(name, 'none')}; expected networks of one architecture and size"
                )


def _geometries(layers: dict[str, Placed]) -> dict[str, str]:
    sizes = {name: "x".join(map(str, it.input_size or ("nothing",))) for name, it in layers.items()}
    return {name: f"{told(_conv(it.layer))} on {sizes[name]}" for name, it in layers.items()}


def _conv(layer: nn.Module) -> nn.Conv2d:
    return next(m for m in layer.modules() if isinstance(m, nn.Conv2d))


def told(conv: nn.Conv2d) -> str:
    """The geometry of a convolution in a few words."""
    parts = [f"{conv.in_channels}->{conv.out_channels}", "x".join(map(str, conv.kernel_size))]
    if conv.stride != (1, 1):
        parts.append(f"stride {_one(conv.stride)}")
    if conv.dilation != (1, 1):
        parts.append(f"dilation {_one(conv.dilation)}")
    if conv.groups > 1:
        parts.append(f"{conv.groups} groups")
    return " ".join(parts)


def _one(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else "x".join(map(str, pair))


def measure(
    subject: Subject,
    placed: dict[str, Placed],
    dtype: torch.dtype,
    images: int,
    curve_of: str | None,
    tick: Tick,
) -> Measured:
    """Measure a network.

    curve_of: the layer whose singular values are kept. tick: gets the name of what comes next.
    """
    layers, notes = [], [*subject.notes]
    for name, place in placed.items():
        tick(name)
        layers.append(_layer(name, place, dtype, POINTS if name == curve_of else 0))
    jacobian, bound, taken = None, None, 0
    if subject.images is not None and images > 0:
        tick("Jacobian")
        shown = subject.images(images)
        taken = len(shown)
        jacobian = max(_largest_jacobians(subject.network, shown))
        tick("bound")
        norms = {layer.name: layer.above for layer in layers if layer.above is not None}
        try:
            bound = network_bound(subject.network, torch.zeros_like(shown[:1]), norms)
        except NoBound as error:
            notes.append(f"no bound of the network: {error}")
    return Measured(
        source=subject.source,
        method=subject.source,
        kind=subject.kind,
        seed=subject.seed,
        step=subject.step,
        layers=tuple(layers),
        norms=subject.norms,
        jacobian=jacobian,
        images=taken,
        bound=bound,
        notes=tuple(notes),
        settings=subject.settings,
    )


def _largest_jacobians(network: nn.Module, images: Tensor) -> list[float]:
    return [jacobian_norms(network, part).max().item() for part in images.split(PART)]


def _layer(name: str, place: Placed, dtype: torch.dtype, points: int) -> Layer:
    what = told(_conv(place.layer))
    if place.input_size is None:
        return Layer(name, what, None, None, (), None, None, ("does not run in evaluation",))
    size, notes = (place.input_size[1], place.input_size[2]), []
    if place.sizes > 1:
        notes.append(f"runs on maps of {place.sizes} sizes; this is the first")
    try:
        composite = composite_of(place.layer, place.behind, dtype)
    except NoSymbol as error:
        return Layer(name, what, size, None, (), None, None, (*notes, str(error)))
    if composite.missing is not None:
        notes.append(composite.missing)
    symbol = circular_symbol(composite, size)
    if symbol.ring != size:
        notes.append(f"taken on a map of {'x'.join(map(str, symbol.ring))}: the stride divides it")
    stages = tuple(
        Stage(stage, summary_of(values, symbol), _curve(values, points))
        for stage, values in zip(composite.stages, singular_values(symbol), strict=True)
    )
    below = above = None
    if (measured := _affine_map(place, composite)) is not None:
        below = operator_norm(measured, torch.Size((1, *place.input_size)))
    try:
        above = norm_bound(composite_of(place.layer, place.behind, torch.float64), size)
    except NoSymbol as error:
        if composite.missing is None:
            notes.append(f"no upper bound: {error}")
    return Layer(name, what, size, symbol.ring, stages, below, above, tuple(notes))


def _affine_map(place: Placed, composite: Composite) -> nn.Module | None:
    """The layer up to its last stage, with a BatchNorm behind it; None where no module is that."""
    if composite.missing is not None:
        return place.layer if composite.stages == ("conv",) and _is_plain(place.layer) else None
    if place.behind is None:
        return place.layer
    return _Scaled(place.layer, composite.parts[-1].factor((1, 1))[None])


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and not isinstance(layer, ConvNorm2d)


class _Scaled(nn.Module):
    """A layer whose outputs are multiplied, as the BatchNorm behind it does."""

    def __init__(self, layer: nn.Module, factor: Tensor):
        super().__init__()
        self.layer = layer
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor.to(x.dtype)


def _curve(values: Tensor, points: int) -> tuple[float, ...]:
    """Values in descending order at evenly spread places, the first and the last among them."""
    places = torch.linspace(0, len(values) - 1, min(points, len(values))).round().long()
    return tuple(values[places].tolist())
