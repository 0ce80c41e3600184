"""Attacks on a classifier: FGSM and PGD, and what every attack within a budget is made of.

Everywhere `model` maps x: (N, C, H, W) in [0, 1] to logits (N, classes), y: (N,) holds the true
labels, and the attacked images have x's shape and dtype, lie in [0, 1], and differ from x by at
most eps: in every value ("linf"), or in the Euclidean norm of an image ("l2"). The model is
attacked in evaluation mode and left as it was found. Except for rounding, the result for an image
does not depend on the batch that it is in: random numbers follow from the seed and from the image's
number in `indices`, its position in the data set (default: in the batch).

Images that are fooled stay in the batch, unchanged, until it pays to go on without them (`Looks`):
between two looks at which they are, nothing makes the host wait for the device.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.experiment.streams import generator
from convnorm.fixed import fixed_weights

Norm = Literal["linf", "l2"]
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


@dataclass(frozen=True)
class Looks:
    """When an attack drops the images that it is done with from its batch.

    every: steps from one look at the images to the next. share: of the batch that must be done
    for the rest to go on alone, 0 to 1; 0 drops every image that is done.
    """

    every: int
    share: float


def looks_on(device: torch.device) -> Looks:
    """Return how often an attack looks; the results are the same, except for rounding.

    On a CPU a look costs nothing, and a batch of another size little beside a step. Elsewhere a
    look waits for all steps before it, and another size brings new memory and kernels.
    """
    return Looks(1, 0.0) if device.type == "cpu" else Looks(4, 0.25)


def going_on(left: torch.Tensor, done: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the places of the images to take the next step with, (M,) int64.

    left: the places so far. done: (N,) bool, by place. steps: taken so far. Nothing is left if all
    images are done at a look.
    """
    looks = looks_on(left.device)
    if steps % looks.every:
        return left
    rest = left[~done[left]]
    return rest if len(rest) <= (1 - looks.share) * len(left) else left


def fgsm(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, eps: float) -> torch.Tensor:
    """FGSM (Goodfellow et al., 2015): one step of eps along the gradient's sign, linf."""
    if len(x) == 0:
        return x
    with frozen(model):
        # Copies, because tensors made in inference mode have no gradients.
        _, gradient = _gradient(model, x.clone(), y.clone())
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
    if steps == 0 or eps == 0 or len(x) == 0:
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
            clean, label = x.detach()[robust], y[robust]
            if start is None:
                remaining = [numbers[i] for i in robust.tolist()]
                point = _random_start(clean, norm, eps, seed, restart, remaining)
            else:
                point = project(start, clean, norm, eps)
            point, fooled = _climb(model, clean, label, point, steps, step)
            if restarts == 1:  # there is nothing to compare the last points with: no look at them
                x_adv = point
                break
            loss = torch.full_like(highest[robust], math.inf)
            last = (~fooled).nonzero().flatten()
            if len(last) > 0:
                loss[last], fooled[last] = log_odds(model, point[last], label[last])
            better = fooled | (loss > highest[robust])
            x_adv[robust[better]] = point[better]
            highest[robust[better]] = loss[better]
            robust = robust[~fooled]
            if len(robust) == 0:
                break
    return check_budget(x_adv, x, norm, eps)


def log_odds(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which images are wrong, (N,) bool, and the gradient (N, C, H, W) of the log odds."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        loss, wrong = log_odds(model, point, y)
        # The sum, so that no image's gradient depends on how many there are.
        (gradient,) = torch.autograd.grad(loss.sum(), point)
    return wrong, gradient


def _climb(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    start: torch.Tensor,
    steps: int,
    step: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take steps from `start` until fooled; return each image's last point and whether the model
    is known to be wrong about it: it was not asked about the end of the last step."""
    end = start.clone()
    fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    left = torch.arange(len(x), device=x.device)
    for taken in range(1, steps + 1):
        point = end[left]
        wrong, gradient = _gradient(model, point, y[left])
        stays = fooled[left] | wrong
        further = step(point, gradient, x[left])
        end[left] = torch.where(stays.view(-1, 1, 1, 1), point, further)
        fooled[left] = stays
        left = going_on(left, fooled, taken)
        if len(left) == 0:
            break
    return end, fooled


def _random_start(
    x: torch.Tensor, norm: Norm, eps: float, seed: int, restart: int, indices: list[int]
) -> torch.Tensor:
    """Return a point, uniform in the ball around each image, then clipped to [0, 1].

    Drawn on the CPU, so that every device starts from the same points.
    """
    drawn = torch.empty(x.shape, dtype=torch.float32)
    for delta, index in zip(drawn, indices, strict=True):
        stream = generator("cpu", seed, "pgd", restart, index)
        if norm == "linf":
            delta.uniform_(generator=stream)
        else:
            delta.normal_(generator=stream)
            delta *= torch.rand(1, generator=stream) ** (1 / delta.numel()) / delta.norm()
    if norm == "linf":
        drawn.mul_(2).sub_(1)
    return (x + eps * drawn.to(x)).clamp(0, 1)
