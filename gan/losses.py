"""GAN losses and penalties, on logits of shape (N,)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W) in [-1, 1], real or fake, and the classes (N,) that they belong to.

    augmentation: what happens to the images before the discriminator sees them, see
        `gan.augmentation.augmented`.
    """

    images: Tensor
    labels: Tensor
    augmentation: Mapping[str, Tensor] = field(default_factory=dict)


def joined(one: Batch, other: Batch) -> Batch:
    """The images of two batches, of the same policy of augmentation, one after another."""
    return Batch(
        torch.cat([one.images, other.images]),
        torch.cat([one.labels, other.labels]),
        {
            name: torch.cat([one.augmentation[name], other.augmentation[name]])
            for name in one.augmentation
        },
    )


# The discriminator's logits (N,) of a batch, see `gan.trainer.Trainer.discriminate`.
Discriminate = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Loss:
    """What the two networks minimize.

    discriminator: (logits of real images, logits of fakes) -> a scalar.
    generator: (logits of fakes, logits of real images) -> a scalar; the latter are None unless
        `compares`, which asks for as many real images as fakes.
    splits_at_zero: D takes an image for real where its logit is above 0, so that the sign of a
        logit says something.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    compares: bool = False
    splits_at_zero: bool = False


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _least_squares(real: Tensor, fake: Tensor) -> Tensor:
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def _critic(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def _above(upper: Tensor, lower: Tensor) -> Tensor:
    return F.softplus(lower - upper).mean()


LOSSES = {
    # Lim & Ye (2017); Miyato et al. (2018), equations 16 and 17.
    "hinge": Loss(_hinge, lambda fake, real: -fake.mean(), splits_at_zero=True),
    # Goodfellow et al. (2014): cross entropy with real = 1, fake = 0; G's with fake = 1.
    "non_saturating": Loss(
        _cross_entropy, lambda fake, real: F.softplus(-fake).mean(), splits_at_zero=True
    ),
    # Mao et al. (2017) with targets 1 and 0.
    "least_squares": Loss(_least_squares, lambda fake, real: (fake - 1).square().mean() / 2),
    # Arjovsky et al. (2017): the critic's difference, which both networks move.
    "wasserstein": Loss(_critic, lambda fake, real: -fake.mean()),
    # RpGAN (Jolicoeur-Martineau, 2018) as in R3GAN (Huang et al., 2024): each network wants the
    # i-th of its own images above the i-th of the other's, so logits count up to a constant.
    "relativistic": Loss(_above, _above, compares=True),
}


# What model.conditional acgan adds to both losses: the cross entropy of the classifier, of D on
# real images and of G on its own. The weights are those of Gulrajani et al. (2017, in the released
# gan_cifar_resnet.py); Odena et al. (2017) have 1 for both, and D's on generated images too.
AUXILIARY_D, AUXILIARY_G = 1.0, 0.1


@dataclass(frozen=True)
class Penalty:
    """A term that is added to the discriminator's loss.

    name: of the term in the log, where it stands without its weight.
    function: (discriminate, real batch, fake batch, mix) -> a scalar.
    mixes: whether it needs `mix`, (N, 1, 1, 1) uniform in [0, 1); None is passed else.
    decays: whether its weight goes to loss.final_penalty_factor of itself.
    """

    name: str
    weight: float
    function: Callable[[Discriminate, Batch, Batch, Tensor | None], Tensor]
    mixes: bool = False
    decays: bool = False


def gradient_penalty(
    discriminate: Discriminate, real: Batch, fake: Batch, mix: Tensor | None
) -> Tensor:
    """Mean of (|grad D(x)| - 1)^2 at x = real + mix * (fake - real) (Gulrajani et al., 2017)."""
    between = real.images + mix * (fake.images.float() - real.images)
    gradient = _input_gradient(discriminate, replace(real, images=between))
    # The norm's own gradient is not finite at zero, where a dead discriminator would be.
    return ((gradient.square().sum(1) + 1e-12).sqrt() - 1).square().mean()


def r1(discriminate: Discriminate, real: Batch, fake: Batch, mix: Tensor | None) -> Tensor:
    """Mean of |grad D(x)|^2 / 2 on real images (Mescheder et al., 2018)."""
    return _input_gradient(discriminate, real).square().sum(1).mean() / 2


def r2(discriminate: Discriminate, real: Batch, fake: Batch, mix: Tensor | None) -> Tensor:
    """Mean of |grad D(x)|^2 / 2 on generated images (Mescheder et al., 2018)."""
    fakes = replace(fake, images=fake.images.float())  # under autocast they are bfloat16
    return _input_gradient(discriminate, fakes).square().sum(1).mean() / 2


def _input_gradient(discriminate: Discriminate, batch: Batch) -> Tensor:
    """d D(x) / d x for each image, flattened to (N, C * H * W), differentiable once more.

    With an augmentation T it is d D(T(x)) / d x, by the image that T is applied to, as in R3GAN
    (Huang et al., 2024).
    """
    images = batch.images.detach().requires_grad_()
    logits = discriminate(replace(batch, images=images))
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.flatten(1).float()
