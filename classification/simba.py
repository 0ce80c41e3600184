"""SimBA, an attack that sees a classifier's outputs only; its arguments are those of `attacks`."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from classification.attacks import check_budget, frozen, going_on, log_odds, project
from convnorm.experiment.streams import generator

Basis = Literal["pixel", "dct"]


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
    """SimBA (Guo et al., 2019, algorithm 1) under linf: a search along single directions.

    For each image, the directions of a basis are tried once each, in a random order: a step of
    -eps, or else one of +eps, is taken if it lowers the probability of the true class. Directions
    are scaled to a largest entry of 1 and steps are projected, so that the change stays within
    eps (in the basis of pixels it would without projection):
    "pixel": one value of one channel. "dct": one cosine of one channel, octave by octave from
    low to high frequencies, in a random order within an octave.

    Returns the images and the number of queries for each, (N,) int64, which counts every image
    that the search needs to show to the model, the unchanged one too. The search ends for an image
    when it is misclassified, at max_queries (1 or more) or when no direction is left.
    """
    if len(x) == 0:
        return x, torch.zeros_like(y)
    numbers = range(len(x)) if indices is None else indices
    orders = torch.stack([_order(x.shape[1:], basis, seed, int(i)) for i in numbers]).to(x.device)
    axes = torch.eye(x.shape[1]).to(x), *(_axis(basis, size).to(x) for size in x.shape[2:])
    with frozen(model), torch.no_grad():
        x, x_adv = x.detach(), x.detach().clone()
        loss, done = log_odds(model, x, y)
        queries = torch.ones_like(y)
        # Of each image's next step: 2 k goes along direction k by -eps, 2 k + 1 by +eps. Images are
        # at steps of their own, so that one query is one batch of all that still search.
        number = torch.zeros_like(y)
        left = torch.arange(len(x), device=x.device)
        for asked in range(1, max_queries):
            left = going_on(left, done, asked)
            if len(left) == 0:
                break
            clean, before, at = x[left], x_adv[left], number[left]
            direction = orders[left, (at // 2).clamp(max=orders.shape[1] - 1)]
            step = _steps(direction, eps, *axes)
            sign = (2 * (at % 2) - 1).view(-1, 1, 1, 1)
            point = project(before + sign * step, clean, "linf", eps)
            point_loss, fooled = log_odds(model, point, y[left])
            searched = ~done[left]
            taken = searched & (fooled | (point_loss > loss[left]))
            x_adv[left] = torch.where(taken.view(-1, 1, 1, 1), point, before)
            loss[left] = torch.where(taken, point_loss, loss[left])
            queries[left] += searched
            number[left] = at = torch.where(taken, at // 2 * 2 + 2, at + 1)
            done[left] = ~searched | fooled | (at >= 2 * orders.shape[1])
    return check_budget(x_adv, x, "linf", eps), queries


def _steps(
    numbers: torch.Tensor,
    eps: float,
    channels: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    """Return eps times the directions of these numbers, (N, C, H, W), from the axes of a basis."""
    pixel = numbers % (len(rows) * len(columns))
    c, i, j = numbers // (len(rows) * len(columns)), pixel // len(columns), pixel % len(columns)
    plane = rows[i, None, :, None] * columns[j, None, None, :]
    return eps * channels[c, :, None, None] * plane


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
