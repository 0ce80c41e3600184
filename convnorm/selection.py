"""Which convolutions of a model `convert` takes, and why it leaves the others."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from convnorm.execution import Use
from convnorm.layer import ConvNorm2d
from convnorm.normalizers import Normalizer
from convnorm.plain import own_method

Selector = Callable[[str, nn.Conv2d], bool]
Converter = Callable[[nn.Conv2d, Normalizer], nn.Module]

# Subclass of nn.Conv2d -> what makes a normalized layer of one; for you to fill. A subclass may
# compute anything, so without an entry it is left as it is. The function gets a shallow copy of the
# convolution, with its very parameters, and returns a layer that takes the same inputs.
CONVERTERS: dict[type[nn.Conv2d], Converter] = {}

IMAGE_CHANNELS = 4  # at most, from grey to RGBA
SQUEEZE = re.compile(r"squeeze.?(and)?.?excit|^(effective)?se(module|layer)$", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """A convolution of a model, or a layer that was normalized before.

    names: all that it has in the model. parent: the name of the class that holds it. ran: whether
    the model ran. use: what the convolution did then, None if it was not called.
    """

    module: nn.Module
    names: tuple[str, ...]
    parent: str
    ran: bool
    use: Use | None


def candidates(model: nn.Module, uses: dict[nn.Module, Use] | None) -> list[Candidate]:
    """The convolutions of a model in its order; one that several names share stands once.

    uses: of a pass over it, see convnorm.execution; None if it did not run.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    parents = {
        child: type(parent).__name__ for parent in model.modules() for child in parent.children()
    }
    found, inside = [], set()
    for module in names:
        if module in inside or not (isinstance(module, _ConvNd) or kind_of(module)):
            continue
        inside.update(module.modules())
        use = None if uses is None else uses.get(module)
        parent = parents.get(module, "")
        found.append(Candidate(module, tuple(names[module]), parent, uses is not None, use))
    return found


def kind_of(module: nn.Module) -> str | None:
    """The kind that normalized the convolution which a module is or holds, if one did."""
    normalizer = getattr(module, "normalized_by", None)
    if isinstance(normalizer, Normalizer) and normalizer.definition.normalizes_convolution:
        return normalizer.kind
    return "convnorm" if isinstance(module, ConvNorm2d) else None


def obstacle(found: Candidate, normalizer: Normalizer) -> str | None:
    """Why a convolution cannot be converted."""
    conv = found.module
    plain = parametrize.type_before_parametrizations(conv)
    if kind := kind_of(conv):
        return f"normalized before, by {kind}"
    if not isinstance(conv, nn.Conv2d):
        return f"{plain.__name__}, not a 2-D convolution"
    if parametrize.is_parametrized(conv):
        return "parametrized: normalize first, then parametrize"
    if any(map(is_lazy, conv.parameters())):
        return "lazy: run the model once, then convert"
    if {"forward", "_conv_forward"} & set(vars(conv)):
        return "its forward was replaced"
    if plain is not nn.Conv2d and plain not in CONVERTERS:
        own = " with a forward of its own" if own_method(plain) else ""
        return f"{plain.__name__}, a subclass{own} (see CONVERTERS)"
    # Pruning and the old weight and spectral norm make the weight from what they keep there.
    own = (*conv.named_parameters(), *conv.named_buffers(), *conv.named_children())
    extra = {name for name, _ in own} - {"weight", "bias"}
    if extra and plain is nn.Conv2d:
        return f"holds more than a weight and a bias: {', '.join(sorted(extra))}"
    if normalizer.definition.fit is not None:
        if found.use is None:
            return f"not run by the example, and {normalizer.kind} is fitted to the maps"
        if sizes := found.use.several_sizes:
            return f"runs on maps of several sizes ({sizes}); {normalizer.kind} is fitted to one"
    return None


def _image(found: Candidate) -> str | None:
    channels = found.module.in_channels
    sees_image = channels <= IMAGE_CHANNELS and (found.use is None or found.use.sees_input)
    return f"sees the image ({channels} channels)" if sees_image else None


def _grouped(found: Candidate) -> str | None:
    groups = found.module.groups
    if groups == 1:
        return None
    return "depthwise" if groups == found.module.in_channels else f"{groups} groups"


def _pooled(found: Candidate) -> str | None:
    if found.use is not None:
        return "map of 1x1" if found.use.outputs == {(1, 1)} else None
    return "of squeeze and excitation" if SQUEEZE.search(found.parent) else None


def _unused(found: Candidate) -> str | None:
    return "not run by the example" if found.ran and found.use is None else None


# What is left by default, name -> a function that says why a convolution is such a one.
SKIPS: dict[str, Callable[[Candidate], str | None]] = {
    "unused": _unused,
    "grouped": _grouped,
    "pooled": _pooled,
    "image": _image,
}


def selector(select: Selector | str | Iterable[str] | None, names: Collection[str]) -> Selector:
    """The predicate that `select` of `convert` stands for; names: of all convolutions.

    Raises ValueError for a pattern that matches none of them, TypeError for what is no pattern.
    """
    if select is None:
        return lambda name, conv: True
    if callable(select):
        return select
    patterns = [select] if isinstance(select, str) else list(select)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"select: {pattern!r} is no pattern of names")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"select: {pattern!r} matches the name of no convolution of the model")
    return lambda name, conv: any(fnmatchcase(name, pattern) for pattern in patterns)


def reason_to_leave(
    found: Candidate, normalizer: Normalizer, selects: Selector, skip: Collection[str]
) -> str | None:
    """Why a convolution stays as it is; None for one that is to be converted."""
    reason = obstacle(found, normalizer)
    if reason is None and not any(selects(name, found.module) for name in found.names):
        reason = "not selected"
    if reason is None:
        reason = next(
            (why for name, leave in SKIPS.items() if name in skip and (why := leave(found))), None
        )
    return reason
