"""CHAIN: channels of a discriminator's maps drawn towards the smallest, as far as D overfits."""

from collections import deque
from typing import Any

import torch
from torch import nn

EPS = 1e-5  # added to a mean square
DECAY = 0.9  # of the running statistics, and of the running sign of D(real)
TARGET = 0.5  # of that sign: above it, D is taken to overfit
STEP = 1e-3  # of p, in one update of the discriminator
PENALTY = 20.0  # weight of the squared means, times p


class Chain(nn.Module):
    """Lipschitz-continuity constrained normalization (Ni & Koniusz, CVPR 2024, arXiv 2404.00521).

    In training, with psi_c the root mean square of channel c over the maps of a pass, and M 1 with
    probability p and else 0, drawn for each image and channel from the global random state,

        y = (1 - M) x + M x psi_min / psi_c,    psi_min the smallest psi, a constant,

    so that channels are only ever made smaller; they are not centred. Instead their means become
    small by a penalty, see `penalty`. p is 0 at first and adapts, see `observe`.

    Maps of real images and of fakes have to come in passes of their own, (N, C, H, W) each. With
    several processes, psi is that of a process's own images. The layer goes behind a convolution
    with spectral norm, before the activation, but neither behind the one that sees the image nor
    behind the head.

    Taken from the published code (MaxwellYaoNi/CHAIN, FastGANDBig) and not from the paper: the
    batch form in its order, eps inside the root, weight 20, p by the sign of D(real) as ADA's
    (Karras et al., 2020). Not taken: its default, which replaces the statistics by running ones
    and the gradient through them likewise, and changes buffers in backward passes; the wait of
    5000 steps before p moves; no normalization of the last block; an evaluation that draws M and
    moves statistics. Here an evaluation is a function of each image alone: M is its mean p, and
    psi that of the running mean squares of real images and fakes together. A pass changes no
    buffer at all; `observe` does.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("running_sign", torch.zeros(()))
        self.register_buffer("running_square", torch.ones(channels))
        # Of the last two passes in training, in an update of D those of real images and fakes:
        # means (C,) with their graph, mean squares (C,) without.
        self.passes: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            factor = 1 - self.p + self.p * _ratio(self.running_square)
            return x * factor[:, None, None].to(x.dtype)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        square = wide.square().mean((0, 2, 3))
        if torch.is_grad_enabled():
            self.passes.append((wide.mean((0, 2, 3)), square.detach()))
        M = torch.bernoulli(self.p.expand(len(x), x.shape[1]))
        factor = 1 - M + M * _ratio(square)
        return x * factor[:, :, None, None].to(x.dtype)

    def penalty(self) -> torch.Tensor:
        """20 p times the squared means of all channels, of the last two passes: a scalar."""
        return PENALTY * self.p * sum(mean.square().sum() for mean, _ in self.passes)

    @torch.no_grad()
    def observe(self, sign: torch.Tensor) -> None:
        """After an update of D: move p by 0.001, up where real images are too easy to tell.

        sign: the mean sign of D(real) in that update, a scalar; p rises where its running mean is
        above 0.5. The statistics of the two passes enter the running ones.
        """
        self.running_sign.lerp_(sign.to(self.p), 1 - DECAY)
        self.p.add_(STEP * (self.running_sign - TARGET).sign()).clamp_(0, 1)
        for _, square in self.passes:
            self.running_square.lerp_(square, (1 - DECAY) / len(self.passes))
        self.passes.clear()

    def __getstate__(self) -> dict[str, Any]:
        # A copy begins without passes: a graph belongs to the layer that it came from.
        return {**super().__getstate__(), "passes": deque(maxlen=2)}


def chains_penalty(network: nn.Module) -> torch.Tensor:
    """The sum of `Chain.penalty` over a network: a scalar."""
    return sum((chain.penalty() for chain in _chains(network)), torch.zeros(()))


def observe(network: nn.Module, logits: torch.Tensor) -> None:
    """Let every Chain of a discriminator see its logits of real images, (N,), after an update."""
    sign = logits.detach().sign().mean()
    for chain in _chains(network):
        chain.observe(sign)


def _chains(network: nn.Module) -> list[Chain]:
    return [module for module in network.modules() if isinstance(module, Chain)]


def _ratio(square: torch.Tensor) -> torch.Tensor:
    """psi_min / psi of mean squares (C,)."""
    psi = (square + EPS).sqrt()
    return psi.min().detach() / psi
