"""Make a trained model deployable: its ConvNorm layers as plain modules on maps of one size."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from convnorm.columns import aligned
from convnorm.execution import Use, call, observe, relative_error, undisturbed
from convnorm.folding import Folding
from convnorm.layer import ConvNorm2d
from convnorm.maps import in_evaluation, random_signs
from convnorm.operator_norm import UnitOperatorNorm
from convnorm.replacement import replaced
from convnorm.tables import Pair
from convnorm.transposed import ConvNormTranspose2d

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
IMAGES = 4  # of random signs, on which a form is measured


@dataclass(frozen=True)
class Fold:
    """What became of one layer.

    layer: its first name in the model. form: see convnorm.folding; "" if it was left as it is.
    reason: why. error: |y' - y| / |y| on random signs, whole maps. macs: multiply-adds of the form
    over those of the plain convolution.
    """

    layer: str
    form: str = ""
    reason: str = ""
    error: float = 0.0
    macs: float = 1.0


@dataclass(frozen=True)
class FoldReport:
    """What `fold` did with each layer of a model; prints as a table.

    output_error: |y' - y| / |y| of what the model returns on the example; None where that has no
        such number.
    """

    rows: tuple[Fold, ...]
    output_error: float | None

    @property
    def folded(self) -> tuple[str, ...]:
        """The names of the layers that became plain modules."""
        return tuple(row.layer for row in self.rows if row.form)

    @property
    def left(self) -> dict[str, str]:
        """layer -> why it was left as it is."""
        return {row.layer: row.reason for row in self.rows if not row.form}

    def __str__(self) -> str:
        cells = [
            (row.layer or "(the model)", row.form, f"{row.error:.2g}", f"{row.macs:.2f}")
            if row.form
            else (row.layer or "(the model)", "left", "", "", row.reason)
            for row in self.rows
        ]
        table = aligned([("layer", "form", "error", "macs", "reason"), *cells])
        if self.output_error is None:
            return table
        return f"{table}\n\nError of the model's output on the example: {self.output_error:.2g}."


def fold(
    model: nn.Module, example: Any, *, tolerance: float = 0.01
) -> tuple[nn.Module, FoldReport]:
    """Return a copy of a model whose ConvNorm layers are plain modules, and a report.

    The copy computes what `model` does in evaluation mode, on maps of the example's size and in
    batches of any; it has no gain, no FFT and no parametrization, so it exports where those do not.
    Within PyTorch it is not faster: `fixed_weights` computes each gain once already.

    example: an input as that of `convert`: one argument, a tuple or a dict of keyword arguments.
    tolerance: of the forms whose |y' - y| / |y| on random signs is at most that, each layer gets
        the one with the fewest multiply-adds; 0 takes exact forms alone. Whole maps count, with
        their borders, which a merged kernel takes for zeros and the full grid closes to a ring.
        The errors of layers add up: the report has that of the output.

    Affines are never merged; BatchNorms of the layers are, and so is the division of
    `spectral_convnorm`. Weights of other kinds (spectral norm, ONI, ...) are kept as they are
    computed. A layer that the example does not run, or runs at several sizes, is left as it is, and
    so is one with hooks, or a transposed one.

    Raises ValueError for a tolerance below 0 and for a model without such a layer or weight.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, not {tolerance}")
    run = observe(model, example)
    folded = copy.deepcopy(model).eval()
    uses = dict(zip(_layers(folded), (run.uses.get(c) for c in _layers(model)), strict=True))
    rows, new = [], {}
    for name, module in _outermost(folded):
        layer = module.layer if isinstance(module, UnitOperatorNorm) else module
        reason = _reason_to_leave(module, layer, uses[layer])
        if reason:
            rows.append(Fold(name, reason=reason))
            continue
        (size,) = uses[layer].inputs
        new[module], row = _folded(name, module, layer, size, tolerance)
        rows.append(row)
    modules = folded.named_modules()
    transposed = [name for name, each in modules if isinstance(each, ConvNormTranspose2d)]
    rows += [
        Fold(name, reason="transposed, of which there is no plain form") for name in transposed
    ]
    weights = _keep_weights(folded, new)
    if not rows and not weights:
        raise ValueError("the model has no ConvNorm2d and no parametrized weight to fold")
    folded = replaced(folded, new)
    with undisturbed(folded):
        error = relative_error(call(folded, example), run.output)
    return folded, FoldReport(tuple(rows), error)


def _layers(model: nn.Module) -> list[ConvNorm2d]:
    return [module for module in model.modules() if isinstance(module, ConvNorm2d)]


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """ConvNorm2d layers by name, or the modules that divide them by their operator norms."""
    inside = set()
    for name, module in model.named_modules():
        if isinstance(module, UnitOperatorNorm) or (
            isinstance(module, ConvNorm2d) and module not in inside
        ):
            inside.update(module.modules())
            yield name, module


def _reason_to_leave(module: nn.Module, layer: ConvNorm2d, use: Use | None) -> str:
    if use is None:
        return "not run by the example"
    if sizes := use.several_sizes:
        return f"runs on maps of several sizes: {sizes}"
    norm = layer.batch_norm
    if norm is not None and norm.running_mean is None:
        return "its BatchNorm takes the statistics of the batch"
    if any(vars(each)[name] for each in module.modules() for name in HOOKS):
        return "has hooks, which may change what it computes"
    return ""


def _folded(
    name: str, module: nn.Module, layer: ConvNorm2d, size: Pair, tolerance: float
) -> tuple[nn.Module, Fold]:
    """Choose the form of a layer; return what takes the place of `module`, and what to say."""
    with in_evaluation(module), torch.no_grad():
        factor = 1.0
        if module is not layer:
            factor = module.scale / max(module.operator_norm().item(), 1e-12)
        folding = Folding(layer, size, factor)
        like = layer.weight
        signs = random_signs((IMAGES, layer.in_channels, *size), like.device, like.dtype)
        expected, constant = module(signs), module(torch.zeros_like(signs[:1]))
        power = (expected - constant).norm().item()  # constants are exact in every form
        for form in sorted(folding.forms(), key=lambda form: form.macs):
            if form.error > tolerance:
                continue
            built = form.build().to(like.device, like.dtype)
            error = (built(signs) - expected).norm().item() / max(power, 1e-30)
            if form.is_exact or error <= tolerance:
                break
    plain = layer.weight.numel() * math.prod(folding.outputs)
    return built, Fold(name, form.name, error=error, macs=form.macs / plain)


def _keep_weights(model: nn.Module, new: dict[nn.Module, nn.Module]) -> int:
    """Store what parametrizations compute in evaluation mode; return how many there were."""
    count = 0
    for module in list(model.modules()):
        if parametrize.is_parametrized(module) and module not in new:
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                count += 1
    return count
