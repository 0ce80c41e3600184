"""Latents on the way from one to another."""

import torch
from torch import Tensor

from gan.models import Latents, Prior

STEPS = 8  # latents in a row, with both ends
PARALLEL = 1e-4  # the sine of an angle below which there is no one great circle


def great_circle(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Return (N, steps, D): from `start` to `end`, both (N, D), by equal angles (slerp).

    Latents from N(0, 1) lie near a sphere, and the middle of a chord is far inside of it: an input
    that the generator has never seen (White 2016). Lengths change in equal steps. Where the two are
    parallel or opposite, as they are for D = 1, the way is straight.
    """
    t = torch.linspace(0, 1, steps)[:, None]
    a, b = start[:, None], end[:, None]
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    straight, length = torch.lerp(a, b, t), torch.lerp(*lengths, t)
    a, b = a / lengths[0], b / lengths[1]
    angle = (a * b).sum(dim=-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    curved = length * (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / sine
    return torch.where(sine > PARALLEL, curved, straight)


def interpolated(prior: Prior, rows: int, seed: int) -> Latents:
    """Return `rows` times `STEPS` latents, row by row, between pairs that the prior draws.

    All latents of a row have the class of its first one.
    """
    pairs = prior.draw(2 * rows, seed, "interpolation")
    z = great_circle(pairs.z[::2], pairs.z[1::2], STEPS)
    return Latents(z.flatten(0, 1), pairs.labels[::2].repeat_interleave(STEPS))
