"""An upper bound of a network's Lipschitz constant, from the norms of its layers.

The network is traced (torch.fx) and run once on an example, and each tensor in it gets a bound of
how fast it can change with the input: a layer multiplies by its norm, a sum adds, a concatenation
takes the root of the sum of squares. So a chain has the product of its layers and a residual block
L(branch) + L(skip). Operations that are not known here are refused by name, as no honest number
follows from them.

Such a bound is loose, by factors of a hundred and more for a few layers: it takes each layer at its
worst image at once. Never show it without a measured value from below (`convnorm.jacobian`).
"""

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from convnorm.batch_norm import BATCH_NORMS, batch_norm_factor
from convnorm.chain import Chain
from convnorm.composite import NoSymbol, composite_of
from convnorm.gram import norm_bound
from convnorm.maps import in_evaluation
from convnorm.placement import placed_convolutions
from convnorm.scale import Factor


class NoBound(ValueError):
    """No bound of a network is known; the message says which part has none."""


def network_bound(
    network: nn.Module, example: torch.Tensor, norms: Mapping[str, float] | None = None
) -> float:
    """Return a bound of the Lipschitz constant of a network in evaluation mode.

    It is for inputs of the size of `example`, (1, C, H, W), in the Euclidean norm, and all other
    arguments of the network left out. norms: bounds that are known already, of a convolution by
    its name with what `composite_of` takes it with. Raises NoBound for what has none.
    """
    placed = placed_convolutions(network, example)
    leaves = {place.layer for place in placed.values()}
    with in_evaluation(network), torch.no_grad():
        try:
            graph = _Tracer(leaves).trace(network, _left_out(network))
        except Exception as error:  # what the tracer raises depends on what it meets
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NoBound(f"{type(network).__name__} cannot be traced ({reason})") from None
        bounds = _Bounds(fx.GraphModule(network, graph), placed, dict(norms or {}))
        bounds.run(example, *[None] * (len(graph.find_nodes(op="placeholder")) - 1))
    (output,) = graph.find_nodes(op="output")
    if not isinstance(output.args[0], fx.Node):
        raise NoBound(f"{type(network).__name__} returns more than one tensor")
    return bounds.of[output.args[0].name]


def _left_out(network: nn.Module) -> dict[str, Any]:
    """The arguments of a network's forward beside the first: their defaults."""
    parameters = list(inspect.signature(network.forward).parameters.values())[1:]
    return {it.name: it.default for it in parameters if it.default is not it.empty}


class _Tracer(fx.Tracer):
    def __init__(self, leaves: set[nn.Module]):
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = m in self.leaves or isinstance(m, tuple(MODULES))
        return known or super().is_leaf_module(m, module_qualified_name)


def _one(*_: Any) -> float:
    return 1.0


def _linear(module: nn.Linear, x: torch.Tensor) -> float:
    weight = module.weight.double()
    if not weight.isfinite().all():
        return math.nan
    rounding = 1 + max(weight.shape) * torch.finfo(weight.dtype).eps
    return torch.linalg.matrix_norm(weight, ord=2).item() * rounding


def _batch_norm(module: nn.Module, x: torch.Tensor) -> float:
    if module.running_var is None:
        raise NoBound(f"{type(module).__name__} without running statistics has no bound")
    return batch_norm_factor(module, torch.float64).abs().max().item()


def _overlap(module: nn.Module) -> float:
    """In how many windows a pixel can lie."""
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    return math.prod(math.ceil(k / s) for k, s in zip(kernel, stride, strict=True))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _max_pool(module: nn.MaxPool2d, x: torch.Tensor) -> float:
    if _pair(module.dilation) != (1, 1):
        raise NoBound("MaxPool2d with a dilation has no bound here")
    return math.sqrt(_overlap(module))


def _average_pool(module: nn.AvgPool2d, x: torch.Tensor) -> float:
    # At a border a window may hold fewer pixels than it divides by, or divide by as few as one.
    whole = not module.ceil_mode and (module.count_include_pad or not any(_pair(module.padding)))
    pixels = math.prod(_pair(module.kernel_size))
    if module.divisor_override is not None:  # a mean times pixels / divisor_override
        return math.sqrt(_overlap(module) * pixels) / abs(module.divisor_override)
    return math.sqrt(_overlap(module) / (pixels if whole else 1))


def _adaptive_pool(module: nn.AdaptiveAvgPool2d, x: torch.Tensor) -> float:
    outputs = [
        n if o is None else o for n, o in zip(x.shape[2:], _pair(module.output_size), strict=True)
    ]
    if any(n % o for n, o in zip(x.shape[2:], outputs, strict=True)):
        raise NoBound(f"AdaptiveAvgPool2d from {tuple(x.shape[2:])} to {tuple(outputs)} overlaps")
    return math.sqrt(math.prod(outputs) / math.prod(x.shape[2:]))


def _chain(module: Chain, x: torch.Tensor) -> float:
    return module(torch.ones_like(x[:1])).max().item()


# The input is what a rule may ask for the size of.
MODULES: dict[type, Callable[[Any, torch.Tensor], float]] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Identity, nn.Flatten), _one),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d), _one),  # in evaluation mode
    nn.LeakyReLU: lambda module, x: max(1.0, abs(module.negative_slope)),
    nn.Linear: _linear,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    Chain: _chain,
    Factor: lambda module, x: abs(module.factor),
}

# Operations of one tensor that move its numbers and change none, or each by a ReLU.
MOVES = {torch.flatten, F.relu, torch.relu, "flatten", "view", "reshape", "contiguous", "relu"}
SUMS = {operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "sub"}
QUOTIENTS = {operator.truediv, torch.div, "div"}
REDUCTIONS = {torch.sum: False, torch.mean: True, "sum": False, "mean": True}


class _Bounds(fx.Interpreter):
    """Runs a traced network and keeps, for each node, how fast it can change with the input."""

    def __init__(self, traced: fx.GraphModule, placed: dict, norms: dict[str, float]):
        super().__init__(traced)
        self.extra_traceback = False  # an error of ours is one line
        self.placed, self.norms = placed, norms
        self.name_of = {place.layer: name for name, place in placed.items()}
        self.of: dict[str, float] = {}
        self.is_input = True

    def run_node(self, n: fx.Node) -> Any:
        args, _ = self.fetch_args_kwargs_from_env(n)
        # Of the values before an operation, which may write into its input.
        shapes = [a.shape if isinstance(a, torch.Tensor) else a for a in args]
        value = super().run_node(n)
        if n.op == "placeholder":
            self.of[n.name] = 1.0 if self.is_input else 0.0
            self.is_input = False
        elif n.op != "output":
            moving = [it for it in n.all_input_nodes if self.of[it.name] != 0]
            is_constant = not moving or not isinstance(value, torch.Tensor)
            self.of[n.name] = 0.0 if is_constant else self._bound(n, args, shapes, value, moving)
        return value

    def _bound(
        self, n: fx.Node, args: tuple, shapes: list, value: torch.Tensor, moving: list[fx.Node]
    ) -> float:
        bounds = [self.of[it.name] for it in moving]
        if n.op == "call_module":
            return self._of_module(n, args[0], moving[0])
        if n.target in (torch.cat, torch.concat) and n.args:
            return math.hypot(*(self.of[it.name] for it in n.args[0]))
        first = bool(n.args) and n.args[0] is moving[0]
        if n.target in MOVES and first and len(moving) == 1:
            return bounds[0]
        if n.target in REDUCTIONS and first and len(moving) == 1:
            times = math.prod(shapes[0]) / value.numel()
            return bounds[0] / math.sqrt(times) if REDUCTIONS[n.target] else bounds[0] * times**0.5
        # Of two tensors, number by number: one that moves must not be repeated to fit the other.
        repeated = [
            a for a, s in zip(n.args, shapes, strict=True) if a in moving and s != value.shape
        ]
        if not repeated and not n.kwargs:
            if n.target in SUMS:
                return sum(self.of[it.name] for it in n.args if isinstance(it, fx.Node))
            if n.target is torch.maximum:
                return math.hypot(*bounds)
            if n.target in QUOTIENTS and first and len(moving) == 1:
                return bounds[0] / torch.as_tensor(args[1]).abs().min().item()
        name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", n.target)
        raise NoBound(f"{name} has no bound here")

    def _of_module(self, n: fx.Node, x: torch.Tensor, before: fx.Node) -> float:
        module = self._module(n)
        if module in self.name_of:
            return self._of_convolution(n, before)
        if (name := self.name_of.get(self._module(before))) and self.placed[name].behind is module:
            # Together they have a smaller norm than one times the other.
            (before,) = before.all_input_nodes
            return self.of[before.name] * self._norm(name, with_behind=True)
        for kind, rule in MODULES.items():
            if isinstance(module, kind) and type(module).forward is kind.forward:
                return self.of[before.name] * rule(module, x)
        raise NoBound(f"{n.target}: {type(module).__name__} has no bound here")

    def _module(self, n: fx.Node) -> nn.Module | None:
        return self.fetch_attr(n.target) if n.op == "call_module" else None

    def _of_convolution(self, n: fx.Node, before: fx.Node) -> float:
        name = self.name_of[self._module(n)]
        behind = self.placed[name].behind
        if behind is not None and [self._module(it) for it in n.users] == [behind]:
            return self.of[before.name]  # what comes next has the norm of both
        return self.of[before.name] * self._norm(name, with_behind=False)

    def _norm(self, name: str, with_behind: bool) -> float:
        place = self.placed[name]
        if place.sizes != 1:
            raise NoBound(f"{name}: runs on maps of {place.sizes} sizes")
        behind = place.behind if with_behind else None
        if name in self.norms and behind is place.behind:
            return self.norms[name]
        try:
            composite = composite_of(place.layer, behind, torch.float64)
            return norm_bound(composite, tuple(place.input_size[1:]))
        except NoSymbol as error:
            raise NoBound(f"{name}: {error}") from None
