"""Attacks on a classifier: FGSM, PGD and SimBA, which change images within a budget.

Everywhere `model` maps x: (N, C, H, W) in [0, 1] to logits (N, classes), y: (N,) holds the true
labels, and the attacked images have x's shape and dtype, lie in [0, 1], and differ from x by at
most eps: in every value ("linf"), or in the Euclidean norm of an image ("l2"). The model is
attacked in evaluation mode and left as it was found. Except for rounding, the result for an image
does not depend on the batch that it is in: random numbers follow from the seed and from the image's
number in `indices`, its position in the data set (default: in the batch).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.experiment.streams import generator
from convnorm.fixed import fixed_weights

Norm = Literal["linf", "l2"]
Basis = Literal["pixel", "dct"]
ORDERS = {"linf": math.inf, "l2": 2}
TOLERANCE = 1e-6  # of a budget, for rounding in float32


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in evaluation mode and its weights do not change.

    No parameter asks for a gradient, and what depends on the weights alone, such as the gains of
    ConvNorm, is computed once (`fixed_weights`). When the context ends, also by an exception,
    every submodule has the mode it had and every parameter its requires_grad. Inside
    torch.inference_mode the context leaves that mode, because an attack needs gradients; whether
    gradients are recorded stays as it was.
    """
    modes = [(module, module.training) for module in model.modules()]
    asking = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    grad_mode = torch.is_grad_enabled()
    try:
        model.eval()
        model.requires_grad_(False)
        with torch.inference_mode(False), torch.set_grad_enabled(grad_mode), fixed_weights():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in asking:
            parameter.requires_grad = requires_grad


def logits(model: nn.Module, x: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Return the logits (N, classes) of x in evaluation mode, without gradients."""
    with frozen(model), torch.no_grad():
        return torch.cat([model(batch) for batch in x.split(batch_size)])


def distance(x_adv: torch.Tensor, x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Return the norm of each image's change, (N,)."""
    return torch.linalg.vector_norm((x_adv - x).flatten(1), ORDERS[norm], dim=1)


def project(x_adv: torch.Tensor, x: torch.Tensor, norm: Norm, eps: float) -> torch.Tensor:
    """Bring x_adv into the ball of radius eps around x (l2: along the radius), then into [0, 1]."""
    delta = x_adv - x
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        delta = delta * (eps / distance(x_adv, x, norm).clamp(min=eps)).view(-1, 1, 1, 1)
    return (x + delta).clamp(0, 1)


def check_budget(x_adv: torch.Tensor, x: torch.Tensor, norm: Norm, eps: float) -> torch.Tensor:
    """Return x_adv; raise RuntimeError if an image left [0, 1] or its budget, or is not a number.

    Every attack ends with this check, because one that cheats makes every model look weak.
    """
    far = distance(x_adv, x, norm)
    if not (far <= eps + TOLERANCE * max(1, eps)).all():
        raise RuntimeError(f"an attack left its budget: {norm} {far.max():.8g}, not {eps:.8g}")
    if not ((x_adv >= 0) & (x_adv <= 1)).all():
        raise RuntimeError("an attack left the images' range [0, 1]")
    return x_adv


def fgsm(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, eps: float) -> torch.Tensor:
    """FGSM (Goodfellow et al., 2015): one step of eps along the gradient's sign, linf."""
    if len(x) == 0:
        return x
    with frozen(model):
        _, _, gradient = _gradient(model, x, y)
        x_adv = project(x + eps * gradient.sign(), x, "linf", eps)
    return check_budget(x_adv, x, "linf", eps)


def pgd(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    norm: Norm,
    eps: float,
    step_size: float,
    steps: int,
    restarts: int = 1,
    seed: int = 0,
    indices: Iterable[int] | None = None,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """PGD (Madry et al., 2018): projected steps up the cross-entropy, from random starts.

    A step has length step_size, along the gradient's sign (linf) or the gradient (l2). A start
    is uniform in the ball around x, then clipped to [0, 1]; `start`, as x, replaces it and
    allows one restart. With steps=0 or eps=0 x itself is returned.

    An image stops at the first point that is misclassified, which can be the start, and that
    point is returned; libraries that only test the last point fool slightly fewer images. For an
    image that no restart fools, the last point of the restart with the highest loss is returned.
    """
    if steps == 0 or eps == 0:
        return x
    if start is not None and restarts != 1:
        raise ValueError(f"one given start allows one restart, not {restarts}")
    numbers = list(range(len(x))) if indices is None else [int(i) for i in indices]

    def step(point: torch.Tensor, gradient: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        direction = gradient.sign() if norm == "linf" else F.normalize(gradient, dim=(1, 2, 3))
        return project(point + step_size * direction, clean, norm, eps)

    with frozen(model):
        x_adv = x.detach().clone()
        highest = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        robust = torch.arange(len(x), device=x.device)
        for restart in range(restarts):
            if len(robust) == 0:
                break
            clean = x.detach()[robust]
            if start is None:
                remaining = [numbers[i] for i in robust.tolist()]
                point = _random_start(clean, norm, eps, seed, restart, remaining)
            else:
                point = project(start, clean, norm, eps)
            point, loss, fooled = _climb(model, clean, y[robust], point, steps, step)
            better = fooled | (loss > highest[robust])
            x_adv[robust[better]] = point[better]
            highest[robust[better]] = loss[better]
            robust = robust[~fooled]
    return check_budget(x_adv, x, norm, eps)


def simba(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    basis: Basis,
    max_queries: int,
    seed: int = 0,
    indices: Iterable[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SimBA (Guo et al., 2019, algorithm 1) under linf: a search that sees outputs only.

    For each image, the directions of a basis are tried once each, in a random order: a step of
    -eps, or else one of +eps, is taken if it lowers the probability of the true class. Directions
    are scaled to a largest entry of 1 and steps are projected, so that the change stays within
    eps (in the basis of pixels it would without projection):
    "pixel": one value of one channel. "dct": one cosine of one channel, octave by octave from
    low to high frequencies, in a random order within an octave.

    Returns the images and the number of queries for each, (N,) int64, which counts every image
    shown to the model, the unchanged one too. The search ends for an image when it is
    misclassified, at max_queries (1 or more) or when no direction is left.
    """
    if len(x) == 0:
        return x, torch.zeros_like(y)
    numbers = range(len(x)) if indices is None else indices
    orders = torch.stack([_order(x.shape[1:], basis, seed, int(i)) for i in numbers]).to(x.device)
    channels = torch.eye(x.shape[1]).to(x)
    rows, columns = (_axis(basis, size).to(x) for size in x.shape[2:])
    with frozen(model), torch.no_grad():
        x, x_adv = x.detach(), x.detach().clone()
        loss, fooled = _forward(model, x, y)
        queries = torch.ones_like(y)
        for turn in range(orders.shape[1]):
            active = (~fooled & (queries < max_queries)).nonzero().flatten()
            if len(active) == 0:
                break
            c, i, j = torch.unravel_index(orders[active, turn], x.shape[1:])
            plane = rows[i, None, :, None] * columns[j, None, None, :]
            step = eps * channels[c, :, None, None] * plane
            for sign in (-1, 1):
                if len(active) == 0:
                    break
                point = project(x_adv[active] + sign * step, x[active], "linf", eps)
                point_loss, fooled[active] = _forward(model, point, y[active])
                queries[active] += 1
                taken = fooled[active] | (point_loss > loss[active])
                x_adv[active[taken]], loss[active[taken]] = point[taken], point_loss[taken]
                again = ~taken & (queries[active] < max_queries)
                active, step = active[again], step[again]
    return check_budget(x_adv, x, "linf", eps), queries


def _forward(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log odds against each true class, (N,) float64, and which are wrong, (N,) bool.

    With p the probability of the true class: log((1 - p) / p), which rises with the cross-entropy
    -log p, so that its gradient has the same direction. Unlike the cross-entropy's, it does not
    vanish for a confident model, whose p rounds to 1.
    """
    scores = model(x).double()
    true = scores.gather(1, y[:, None]).squeeze(1)
    others = scores.scatter(1, y[:, None], -math.inf).logsumexp(1)
    return others - true, scores.argmax(1) != y


def _gradient(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `_forward` does, and the gradient (N, C, H, W) of each image's log odds."""
    with torch.enable_grad():
        # Copies, because tensors made in inference mode have no gradients.
        point = x.detach().clone().requires_grad_()
        loss, wrong = _forward(model, point, y.clone())
        # The sum, so that no image's gradient depends on how many there are.
        (gradient,) = torch.autograd.grad(loss.sum(), point)
    return loss.detach(), wrong, gradient


def _climb(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    point: torch.Tensor,
    steps: int,
    step: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take steps from `point` until fooled; return each image's last point, its loss and whether
    it is fooled."""
    end = point.clone()
    losses = torch.empty(len(x), dtype=torch.float64, device=x.device)
    fooled = torch.empty(len(x), dtype=torch.bool, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for _ in range(steps):
        loss, wrong, gradient = _gradient(model, point, y[active])
        end[active], losses[active], fooled[active] = point, loss, wrong
        if wrong.all():
            return end, losses, fooled
        active = active[~wrong]
        point = step(point[~wrong], gradient[~wrong], x[active])
    end[active] = point
    losses[active], fooled[active] = _forward(model, point, y[active])
    return end, losses, fooled


def _random_start(
    x: torch.Tensor, norm: Norm, eps: float, seed: int, restart: int, indices: list[int]
) -> torch.Tensor:
    """Return a point, uniform in the ball around each image, then clipped to [0, 1].

    Drawn on the CPU, so that every device starts from the same points.
    """
    deltas = []
    for index in indices:
        stream = generator("cpu", seed, "pgd", restart, index)
        if norm == "linf":
            delta = 2 * torch.rand(x.shape[1:], generator=stream, dtype=torch.float32) - 1
        else:
            delta = torch.randn(x.shape[1:], generator=stream, dtype=torch.float32)
            delta *= torch.rand(1, generator=stream) ** (1 / delta.numel()) / delta.norm()
        deltas.append(delta)
    return (x + eps * torch.stack(deltas).to(x)).clamp(0, 1)


def _axis(basis: Basis, size: int) -> torch.Tensor:
    """Return one axis of a basis, (size, size): a vector with largest entry 1 in every row."""
    if basis == "pixel":
        return torch.eye(size)
    i = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (i + 0.5) * i[:, None])
    return rows / rows.abs().amax(1, keepdim=True)


def _order(shape: torch.Size, basis: Basis, seed: int, index: int) -> torch.Tensor:
    """Return the numbers of all directions, (C H W,), in the order of image `index`."""
    order = torch.randperm(shape.numel(), generator=generator("cpu", seed, "simba", index))
    if basis == "pixel":
        return order
    _, *frequencies = torch.unravel_index(order, shape)
    octave = torch.frexp(torch.maximum(*frequencies).double()).exponent  # 0, 1, 2-3, 4-7, ...
    return order[octave.argsort(stable=True)]
