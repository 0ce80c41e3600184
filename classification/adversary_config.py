"""The configuration of adversarial training."""

from dataclasses import dataclass
from typing import Literal

from classification.radii import Length, grey_levels, step_levels
from convnorm.experiment.config.fields import bounded, check_ranges, choosing, since


@dataclass(frozen=True)
class AdversaryConfig:
    """Which images the network is trained on; sources are in classification.adversarial_training.

    Args:
        kind: standard: the clean ones. free: one gradient for weights and perturbation, m
            `repeats` of each minibatch. fast: FGSM from a random start. pgd: `steps` of it.
            trades: clean ones, and the KL divergence of PGD's from them with weight `beta`.
        eps: of an l_inf perturbation, in grey levels of 255: 8 or 8/255, from 0.5; kept as the
            number of levels. A network is evaluated with this eps by default, also after clean
            training. The 0.031 of TRADES' code is 7.905.
        step_size: in the same unit; null is the published fraction of eps: 1 for free, 1.25 for
            fast, 1/4 for pgd, 7/31 for trades. One of more than 2 eps would leave the ball.
        steps: of the attack on an image.
        repeats: updates on each minibatch.
        reset_perturbation: each minibatch begins at zero, as in ConvNorm's code, and not where the
            last one ended.
        beta: weight of the divergence.
        as_published: of fast, the authors' code: the gradient is taken in training mode, so that
            running statistics and power iterations also move in the attack; else in evaluation
            mode. Of trades, the authors' code: the attack, in evaluation mode in both forms, begins
            at x + 0.001 * N(0, 1), which may lie outside [0, 1]; and a step runs the network in
            training mode on the clean, the attacked and again the clean images, each of which
            moves running statistics and power iterations. Else the start is clipped to [0, 1] and
            the divergence is from the clean predictions of the first pass: the same loss, to
            rounding, unless a power iteration lies between.
        awp: adversarial weight perturbation: how far each weight tensor moves, relative to its
            norm, before the gradient is taken that updates it; 0 does without. Published are 0.01
            for pgd and 0.005 for trades (Wu et al., 2020). See classification.weight_perturbation.
        awp_warmup: epochs at the beginning that do without it: 0, published for pgd; for trades
            9 are, which is --awp-warmup 10 where epochs are counted from 1.
    """

    kind: Literal["standard", "free", "fast", "pgd", "trades"] = choosing(
        "standard",
        {
            "standard": (),
            "free": ("step_size", "repeats", "reset_perturbation"),
            "fast": ("step_size", "as_published"),
            "pgd": ("step_size", "steps", "awp", "awp_warmup"),
            "trades": ("step_size", "steps", "beta", "as_published", "awp", "awp_warmup"),
        },
    )
    eps: Length = 8.0
    step_size: Length | None = None
    steps: int = bounded(10, least=1, most=1000)
    repeats: int = bounded(4, least=1, most=1000)
    reset_perturbation: bool = False
    beta: float = bounded(6.0, least=0, most=10**6)
    # Runs of before this option were of the other form.
    as_published: bool = since(
        True, before=lambda adversary: adversary.get("kind") not in ("fast", "trades")
    )
    awp: float = bounded(0.0, least=0, most=1)
    awp_warmup: int = bounded(0, least=0, most=10**6)

    def __post_init__(self):
        eps = grey_levels(self.eps, "adversary.eps")
        step_size = step_levels(self.step_size, "adversary.step_size", eps)
        # One form for all that is written alike, so that 8 and 8/255 are the same run.
        object.__setattr__(self, "eps", eps)
        object.__setattr__(self, "step_size", step_size)
        check_ranges(self, "adversary")
