"""Normalize the convolutions of a model that is there already, and take it back."""

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from convnorm.calibration import LeastSquares, calibrate_on_weights
from convnorm.catalogue import CATALOGUE
from convnorm.conversion import Conversion, ConversionReport
from convnorm.execution import (
    call,
    hooked,
    observe,
    random_state_kept,
    relative_error,
    tensors_in,
    undisturbed,
)
from convnorm.kind import Kind
from convnorm.layer import ConvNorm2d
from convnorm.normalizers import Normalizer
from convnorm.replacement import normalized_layer, plain_layer, replaced
from convnorm.selection import (
    SKIPS,
    Candidate,
    Selector,
    candidates,
    kind_of,
    reason_to_leave,
    selector,
)

# Of ConvNorm in a model: near the cost of a plain convolution, and with room for its scale.
START = {"affine": True, "grid": "native"}
IMAGES_AT_ONCE = 32  # of a tensor of images to calibrate on


def convert(
    model: nn.Module,
    kind: str | Normalizer = "convnorm",
    *,
    select: Selector | str | Iterable[str] | None = None,
    skip: Collection[str] = tuple(SKIPS),
    example: Any = None,
    calibrate: str | Iterable[Any] | None = None,
    inplace: bool = False,
    **options,
) -> tuple[nn.Module, ConversionReport]:
    """Normalize the convolutions of a model; return it with a report that prints as a table.

    Each convolution is replaced by its normalized layer, which has its very parameters, and nothing
    else is touched. BatchNorms stay where they are, behind the new layer, so with ConvNorm all
    names of the state dict stay and `NAME.affine.weight` and `NAME.affine.bias` are new: load
    pretrained weights before. What the model computes changes; see `calibrate`.

    model: any module, also a lone convolution. Modules that are used twice are replaced everywhere;
        hooks, attributes, the modes and `requires_grad` of convolutions go over to their layers,
        and what is new in a layer requires gradients as its weight does.
    kind: of the catalogue, or a Normalizer with its options. Kinds that normalize a map, such as
        "batch", and "none" are refused. Those in the weight rename it, which the report says.
    select: patterns of names as a shell has them ("layer2.*"), or a predicate (name, convolution).
        All by default.
    skip: which of the selected are left all the same. "unused": not run by the example. "grouped":
        depthwise or in groups, whose gain varies most over the frequencies. "pooled": with maps of
        1x1, as in squeeze and excitation, which have no spectrum; without an example, what a class
        of such a name holds. "image": the layer that sees the image, which an affine fits worst: of
        up to 4 input channels, and with an example only if nothing mixes channels before it.
    example: an input: one argument, a tuple of positional or a dict of keyword arguments, of the
        size that the model is made for. It is run in evaluation mode before and after, and leaves
        no trace. Kinds that are fitted to the size of the maps need it.
    calibrate: start ConvNorm's affines near the convolutions, so that BatchNorms keep their
        statistics. An initialization to fine-tune from and not an equivalence: a few percent of
        error a layer add up. The report has both. "weights": in closed form, without data. An
        iterable of inputs as `example`, or a tensor (N, C, H, W): least squares on what the
        convolutions of the original see (convnorm.calibration). Its first item is the example
        unless there is one. Of a loader of (images, labels) give `(x for x, _ in loader)`.
    inplace: change the model itself. A copy by default. A model that is itself a convolution cannot
        be changed: use what is returned.
    options: of the Normalizer, with its checks. Those of a name start from affine=True, affine_init
        "dirac", grid="native", which costs little more than the convolution; the published method
        is grid="full".

    A 1x1 kernel has a flat spectrum: ConvNorm is weight normalization there. It gets an affine,
    which holds its scale exactly, only if it is calibrated or its output goes elsewhere than into
    a BatchNorm, as the example shows; without one, if it has a bias. The bias of a convolution
    stays, behind the gain and before the affine. Nothing is moved or merged.

    Raises ValueError, and leaves the model as it was, if no convolution is converted, for a pattern
    that matches none, and for options that do not fit; RuntimeError if the model cannot be copied,
    or holds a convolution where it cannot be replaced.
    """
    normalizer = _normalizer(kind, options)
    for name in skip:
        if name not in SKIPS:
            raise ValueError(f"skip: {name!r} is none of {', '.join(SKIPS)}")
    calibrate, example = _inputs(calibrate, example)
    if example is None and normalizer.definition.fit is not None:
        raise ValueError(f"kind {normalizer.kind!r} is fitted to the maps: give an example")
    model = model if inplace else _copied(model)
    run = None
    if example is not None:
        _refuse_lazy(model)
        run = observe(model, example)

    found = candidates(model, None if run is None else run.uses)
    selects = selector(select, [name for candidate in found for name in candidate.names])
    why = {c.module: reason_to_leave(c, normalizer, selects, skip) for c in found}
    if None not in why.values():
        raise ValueError(_nothing_converted(why.values()))
    with random_state_kept(model):
        layers = {
            c.module: normalized_layer(c, normalizer, calibrate is not None)
            for c in found
            if why[c.module] is None
        }
    errors, images = _calibrate(model, layers, calibrate)
    rows = tuple(_row(c, why[c.module], layers.get(c.module), errors.get(c.module)) for c in found)
    converted = replaced(model, layers)
    output_error = None
    if run is not None:
        try:
            output_error = _output_error(converted, layers, example, run.output)
        except BaseException:
            replaced(converted, {layer: conv for conv, layer in layers.items()})
            raise
    return converted, ConversionReport(rows, normalizer, images, output_error)


def revert(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Return a model with plain convolutions in place of what `convert` made, with their weights.

    The state dict of `revert(convert(model)[0])` is that of `model`, bit for bit. It goes back to
    the weights, not to what the model computes: the gain goes, and so does all that a plain
    convolution of the same size has no room for, an affine or a multiplier among it, also where it
    was trained. A copy unless `inplace`; a model that is itself such a layer is returned anew.

    Raises ValueError for a layer that a plain convolution cannot stand for: a ConvNorm2d with a
    BatchNorm of its own, a subclass of it, one whose weight is parametrized, and the layers of
    kinds that are in `convert` refused.
    """
    model = model if inplace else _copied(model)
    plain: dict[nn.Module, nn.Module] = {}
    for candidate in candidates(model, None):
        layer = candidate.module
        if kind_of(layer) is not None:
            try:
                plain[layer] = plain_layer(layer)
            except ValueError as error:
                raise ValueError(f"{candidate.names[0] or 'the model'}: {error}") from None
    return replaced(model, plain)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # of tensors that pruning and the old weight norm compute
        raise RuntimeError(
            f"the model cannot be copied, but be changed itself (inplace=True): {error}"
        ) from error


def _takes(kind: Kind) -> bool:
    return kind.normalizes_convolution and not kind.normalizes_map


def _normalizer(kind: str | Normalizer, options: Mapping[str, Any]) -> Normalizer:
    if isinstance(kind, Normalizer):
        if options:
            raise ValueError(f"{', '.join(options)}: set the options of the Normalizer itself")
        normalizer = kind
    else:
        normalizer = Normalizer(kind, **{**START, **options})
    if not _takes(normalizer.definition):
        raise ValueError(
            f"kind {normalizer.kind!r} is no normalizer of a convolution by itself; convert takes "
            f"{', '.join(name for name, other in CATALOGUE.items() if _takes(other))}"
        )
    if normalizer.adds_batch_norm:
        raise ValueError("batch_norm=True: convert leaves BatchNorms to the model")
    return normalizer


def _inputs(calibrate: str | Iterable[Any] | None, example: Any) -> tuple[Any, Any]:
    """What to calibrate on (None, "weights" or an iterator), and the example, by default its first.

    A tensor of images is taken in parts.
    """
    if calibrate is None or isinstance(calibrate, str):
        if calibrate not in (None, "weights"):
            raise ValueError(f"calibrate: {calibrate!r} is not 'weights'")
        return calibrate, example
    if isinstance(calibrate, torch.Tensor):
        calibrate = calibrate.split(IMAGES_AT_ONCE)
    if isinstance(calibrate, Mapping) or not isinstance(calibrate, Iterable):
        raise TypeError(f"calibrate: {type(calibrate).__name__} is no iterable of inputs")
    inputs = iter(calibrate)
    first = next(inputs, None)
    if first is None:
        raise ValueError("calibrate: no inputs")
    return chain([first], inputs), first if example is None else example


def _refuse_lazy(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name} is lazy: run the model once, then convert")


def _nothing_converted(reasons: Collection[str]) -> str:
    if not reasons:
        return "the model has no convolution"
    counts = ", ".join(f"{n} x {reason}" for reason, n in Counter(reasons).most_common())
    return f"no convolution was converted: {counts} (`select` and `skip` choose)"


def _calibrate(
    model: nn.Module, layers: Mapping[nn.Module, nn.Module], inputs: str | Iterator[Any] | None
) -> tuple[dict[nn.Module, float | None], int | None]:
    """Start the affines; return the error of each layer, and the number of images if there are."""
    if inputs is None:
        return {}, None
    fitted = {
        conv: layer
        for conv, layer in layers.items()
        if isinstance(layer, ConvNorm2d) and layer.affine is not None
    }
    if not fitted:
        raise ValueError("calibrate: none of the layers is a ConvNorm2d with an affine to start")
    if inputs == "weights":
        return {conv: calibrate_on_weights(layer) for conv, layer in fitted.items()}, None
    fits = {conv: LeastSquares(layer) for conv, layer in fitted.items()}

    def add(conv: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        fits[conv].add(next(tensors_in((args, kwargs))), output)

    images = 0
    with undisturbed(model), hooked(fits, add):
        for one in inputs:
            call(model, one)
            images += 1 if (first := next(tensors_in(one))).dim() == 3 else len(first)
    names = {module: name for name, module in model.named_modules()}
    errors = {}
    for conv, fit in fits.items():
        try:
            errors[conv] = fit.solve()
        except ValueError as error:
            raise ValueError(f"calibrate: {names[conv] or 'the model'}: {error}") from None
    return errors, images


def _output_error(
    model: nn.Module, layers: Mapping[nn.Module, nn.Module], example: Any, expected: Any
) -> float | None:
    """`relative_error` of what the converted model returns.

    Raises RuntimeError if the model still calls a convolution that was replaced.
    """
    if any(tensor.is_meta for tensor in tensors_in(expected)):
        return None

    def refuse(module: nn.Module, args: tuple) -> None:
        if module in layers:  # the layers of some kinds have the hooks of their convolutions
            raise RuntimeError(
                f"the model calls a convolution that was replaced ({module}): it holds it "
                "elsewhere than among its modules. Nothing was converted"
            )

    hooks = [conv.register_forward_pre_hook(refuse) for conv in layers]
    try:
        with undisturbed(model):
            output = call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return relative_error(output, expected)


def _row(
    found: Candidate, why: str | None, layer: nn.Module | None, error: float | None
) -> Conversion:
    notes = [] if why is None else [why]
    if isinstance(layer, ConvNorm2d):
        if layer.affine is not None:
            notes.append("affine {}x{}".format(*layer.affine.kernel_size))
        else:
            notes.append("weight normalization" if layer.kernel_size == (1, 1) else "no affine")
    if len(found.names) > 1:
        notes.append(f"also {', '.join(found.names[1:])}")
    lost = new = ()
    if layer is not None:
        before, after = list(found.module.state_dict()), list(layer.state_dict())
        lost = tuple(name for name in before if name not in after)
        new = tuple(name for name in after if name not in before)
    return Conversion(found.names[0], layer is not None, ", ".join(notes), error, lost, new)
