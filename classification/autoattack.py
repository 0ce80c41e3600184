"""AutoAttack (Croce & Hein, ICML 2020) on a batch, or its first stages, by pyautoattack.

The package is used without its traps: by itself it attacks a model in whatever mode it is in,
reseeds the global random numbers, replaces the process's trace function, fails on channels_last
images, and returns only the images.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from classification.attacks import Norm, check_budget, frozen
from convnorm.experiment.errors import InputError

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")  # of the standard version, in its order
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Images after the stages.

    x_adv: (N, C, H, W) float32 in [0, 1], within the budget; an image is unchanged if no stage
        fooled the model with it.
    fooled_by: for each image the stage that fooled the model, "clean" where it was wrong before,
        None where it withstood all. The robust accuracy is the fraction of None.
    """

    x_adv: torch.Tensor
    fooled_by: list[str | None]


def check_classes(name: str, num_classes: int) -> None:
    """Raise InputError where there are too few classes for the targeted loss of attack `name`."""
    if num_classes < 4:
        raise InputError(f"{name}: needs at least 4 classes, the model has {num_classes}")


def check_tiles(name: str, height: int, width: int) -> None:
    """Raise InputError for images that Square's start under l2, in the package, cannot be laid on.

    It is a grid of tiles of a fifth of the height, which goes beyond the border at some sizes.
    """
    tile = height // 5
    start = (height - 5 * tile) // 2
    # A tile of one pixel beyond the border is left out.
    beyond = tile > 1 and any(start + n // tile * tile > n for n in (height, width))
    if tile == 0 or beyond:
        raise InputError(
            f"{name}: Square's tiles do not fit images of {height}x{width}; expected another size, "
            "or apgd_ce_t_l2, which does without it"
        )


def autoattack(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    norm: Norm,
    eps: float,
    seed: int,
    stages: Sequence[str] = STAGES,
) -> Outcome:
    """Run the standard version on x: (N, C, H, W) float32 in [0, 1] with labels y: (N,).

    APGD on the cross-entropy, then targeted APGD and targeted FAB (each 9 targets, or all other
    classes if fewer), of 100 steps each, then Square with 5,000 queries. Each stage gets the images
    that are left as one batch, as in the package with a batch size of N. Its random numbers belong
    to the batch and not to the image, so the batch size is part of the protocol. The model
    and the global random states are left as they were found.

    stages: those of STAGES that are run, in this order. Each draws from the seed anew, so that the
        first ones find what they find in the whole.

    Raises `InputError` if the package is missing or the model has fewer than 4 classes, which the
    targeted loss needs.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        raise InputError("autoattack: the package pyautoattack is not installed") from None
    if len(x) == 0:
        return Outcome(x, [])
    x = x.detach().clone(memory_format=torch.contiguous_format)
    every_gpu = range(torch.cuda.device_count())  # the package seeds them all
    with frozen(model), torch.no_grad(), torch.random.fork_rng(every_gpu):
        scores = model(x)
        num_classes = scores.shape[1]
        check_classes("apgd-t", num_classes)

        def forward(x: torch.Tensor) -> torch.Tensor:
            # Square may ask for the logits of no image, for which there is no FFT.
            return model(x) if len(x) else x.new_empty(0, num_classes)

        attack = AutoAttack(forward, norm=norm.capitalize(), eps=eps, seed=seed, device=x.device)
        attack.fab.targeted = True
        for targeted in (attack.apgd_targeted, attack.fab):
            targeted.n_target_classes = min(9, num_classes - 1)
        # Its warning of a zero gradient would go to standard error.
        attack.apgd_targeted.logger = SimpleNamespace(warning=log.debug)

        all_stages = (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
        by_name = dict(zip(STAGES, all_stages, strict=True))
        x_adv = x.clone()
        fooled_by = [None if right else "clean" for right in (scores.argmax(1) == y).tolist()]
        for name in stages:
            robust = [i for i, by in enumerate(fooled_by) if by is None]
            if not robust:
                break
            point = by_name[name].perturb(x[robust], y[robust])
            wrong = model(point).argmax(1) != y[robust]
            for k in wrong.nonzero().flatten().tolist():
                x_adv[robust[k]], fooled_by[robust[k]] = point[k], name
    return Outcome(check_budget(x_adv, x, norm, eps), fooled_by)
