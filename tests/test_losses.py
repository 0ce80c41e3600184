"""The losses against their formulas and known optima, the penalties against closed forms."""

import copy
import math

import pytest
import torch
from runs import tiny

from convnorm.experiment.errors import InputError
from convnorm.normalizers import CATALOGUE
from gan.losses import LOSSES, Batch, Discriminate, gradient_penalty, r1
from gan.models import build

REAL, FAKE = torch.tensor([0.5, 3.0]), torch.tensor([-2.0, 0.25])


def log1p_exp(x: float) -> float:
    return math.log1p(math.exp(x))


# The mean over two images, written out.
DISCRIMINATOR = {
    "hinge": (0.5 + 0) / 2 + (0 + 1.25) / 2,
    "non_saturating": (
        (log1p_exp(-0.5) + log1p_exp(-3)) / 2 + (log1p_exp(-2) + log1p_exp(0.25)) / 2
    ),
    "least_squares": ((0.25 + 4) / 2 + (4 + 0.0625) / 2) / 2,
    "wasserstein": (-2 + 0.25) / 2 - (0.5 + 3) / 2,
}
GENERATOR = {
    "hinge": -(-2 + 0.25) / 2,
    "non_saturating": (log1p_exp(2) + log1p_exp(-0.25)) / 2,
    "least_squares": (9 + 0.5625) / 2 / 2,
    "wasserstein": -(-2 + 0.25) / 2,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_formulas(name):
    """A swapped sign or a forgotten half."""
    assert LOSSES[name].discriminator(REAL, FAKE).item() == pytest.approx(DISCRIMINATOR[name])
    assert LOSSES[name].generator(FAKE, None).item() == pytest.approx(GENERATOR[name])


@pytest.mark.parametrize(
    ("name", "logit", "value"),
    # Real and fake alike: the best constant logit, and the loss there.
    [("non_saturating", 0.0, 2 * math.log(2)), ("least_squares", 0.5, 0.25), ("hinge", 0.0, 2.0)],
)
def test_equal_images_have_the_known_optimum(name, logit, value):
    def at(x):
        return LOSSES[name].discriminator(torch.tensor([x]), torch.tensor([x])).item()

    assert at(logit) == pytest.approx(value)
    assert at(logit) <= min(at(logit - 0.1), at(logit + 0.1)) + 1e-7


@pytest.mark.parametrize("name", LOSSES)
def test_the_two_losses_pull_in_opposite_directions(name):
    fake = torch.zeros(1, requires_grad=True)
    (of_d,) = torch.autograd.grad(LOSSES[name].discriminator(torch.zeros(1), fake), fake)
    (of_g,) = torch.autograd.grad(LOSSES[name].generator(fake, None), fake)
    assert of_d.item() >= 0 > of_g.item()


def batch(images: torch.Tensor) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.int64))


def linear(weight: torch.Tensor) -> Discriminate:
    """D(x) = <weight, x> for images of (1, 2, 2)."""
    return lambda batch: batch.images.flatten(1) @ weight


def test_the_gradient_penalty_of_a_linear_discriminator():
    """(|w| - 1)^2 at every image, with gradient 2 (|w| - 1) w / |w|."""
    weight = torch.tensor([1.0, 2.0, 0.0, 2.0], requires_grad=True)  # norm 3
    real, fake = batch(torch.randn(5, 1, 2, 2)), batch(torch.randn(5, 1, 2, 2))
    penalty = gradient_penalty(linear(weight), real, fake, torch.rand(5, 1, 1, 1))
    assert penalty.item() == pytest.approx(4)
    penalty.backward()
    torch.testing.assert_close(weight.grad, 4 * weight.detach() / 3)


def test_the_gradient_penalty_is_taken_between_real_and_fake():
    """For D(x) = |x|^2 / 2 the gradient is the image itself, so its place can be read."""

    def square(batch: Batch) -> torch.Tensor:
        return batch.images.square().flatten(1).sum(1) / 2

    real, fake = batch(torch.zeros(2, 1, 1, 1)), batch(torch.full((2, 1, 1, 1), 4.0))
    mix = torch.tensor([0.25, 0.5]).view(2, 1, 1, 1)  # at 1 and 2
    assert gradient_penalty(square, real, fake, mix).item() == pytest.approx((0 + 1) / 2)


def test_the_gradient_penalty_of_a_dead_discriminator_is_finite():
    weight = torch.zeros(4, requires_grad=True)
    images, mix = batch(torch.randn(3, 1, 2, 2)), torch.rand(3, 1, 1, 1)
    penalty = gradient_penalty(linear(weight), images, images, mix)
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-5)
    assert weight.grad.isfinite().all()


def test_r1_of_a_linear_discriminator():
    """|w|^2 / 2 at every image, with gradient w."""
    weight = torch.tensor([1.0, 2.0, 0.0, 2.0], requires_grad=True)
    images = batch(torch.randn(5, 1, 2, 2))
    penalty = r1(linear(weight), images, images, None)
    assert penalty.item() == pytest.approx(4.5)
    penalty.backward()
    torch.testing.assert_close(weight.grad, weight.detach())


@pytest.mark.parametrize(
    ("one", "other"),
    [("gradient_penalty", "r1"), ("gradient_penalty", "weight_clip"), ("r1", "weight_clip")],
)
def test_penalties_exclude_each_other(one, other):
    with pytest.raises(InputError, match=f"loss.{one} and loss.{other}"):
        tiny({f"loss.{one}": 1.0, f"loss.{other}": 1.0})


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("kind", CATALOGUE)
def test_a_clip_of_weights_is_refused_where_it_bounds_nothing(kind, multiplier, batch_norm):
    """That is where a factor on all weights of the discriminator, head included, changes nothing.

    ConvNorm leaves the head alone, so the clip bounds D by that, as it bounds an affine of its own.
    """
    options = {"kind": kind, "multiplier": multiplier, "batch_norm": batch_norm}
    changes = {f"normalizer.{name}": value for name, value in options.items()}
    _, discriminator = build(tiny(changes), channels=1)
    twice = copy.deepcopy(discriminator)
    for name, parameter in twice.named_parameters():
        parameter.data.mul_(1 if name.endswith("bias") else 2)
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    bounds_nothing = torch.allclose(twice(images), discriminator(images), rtol=1e-3, atol=1e-5)
    clipped = {**changes, "loss.weight_clip": 0.01}
    if bounds_nothing:
        with pytest.raises(InputError, match=r"^loss\.weight_clip: bounds nothing"):
            tiny(clipped)
    else:
        tiny(clipped)


@pytest.mark.parametrize("penalty", ["gradient_penalty", "r1"])
@pytest.mark.parametrize(
    "normalizer",
    [
        {"normalizer.kind": "batch"},
        {"normalizer.kind": "affine"},
        {"normalizer.kind": "convnorm", "normalizer.batch_norm": True},
    ],
)
def test_a_gradient_per_image_needs_images_apart(penalty, normalizer):
    """With batch statistics in D the penalty is of the batch, which no paper means."""
    with pytest.raises(InputError, match=f"loss.{penalty}: .*normalizer.kind"):
        tiny({f"loss.{penalty}": 1.0, **normalizer})
    tiny(normalizer)
