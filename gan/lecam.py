"""LeCam regularization (Tseng et al., 2021): D is held back where it is surer than it was before.

The form is that of both published code bases. The paper's equation has no relu.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnorm.experiment.run.averaging import share
from convnorm.experiment.run.distributed import Process

DECAY = 0.9  # of the anchors, in an update of the discriminator; as published for CIFAR


def lecam(real: Tensor, fake: Tensor, anchors: Tensor) -> Tensor:
    """Mean of relu(D(r) - a_F)^2 + relu(a_R - D(f))^2.

    real, fake: logits (N,). anchors: (2,), averages of D(r) and D(f), without a gradient.
    """
    anchor_real, anchor_fake = anchors
    of_real, of_fake = F.relu(real - anchor_fake), F.relu(anchor_real - fake)
    return of_real.square().mean() + of_fake.square().mean()


@torch.no_grad()
def move(
    anchors: Tensor, real: Tensor, fake: Tensor, decay: float | Tensor, process: Process
) -> None:
    """Move the anchors (2,) to the means of the logits over all processes, by 1 - `decay`."""
    means = torch.stack([real.mean(), fake.mean()])
    process.average_([means])
    anchors.lerp_(means, share(decay))
