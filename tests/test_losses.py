"""The losses against their formulas and known optima, the penalties against closed forms."""

import copy
import math
from itertools import combinations

import pytest
import torch
from runs import ALONE, tiny

from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.normalizers import CATALOGUE
from gan.losses import LOSSES, Batch, Discriminate, gradient_penalty, r1, r2
from gan.models import build
from gan.trainer import Trainer

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
    "relativistic": (log1p_exp(-2.5) + log1p_exp(-2.75)) / 2,
}
GENERATOR = {
    "hinge": -(-2 + 0.25) / 2,
    "non_saturating": (log1p_exp(2) + log1p_exp(-0.25)) / 2,
    "least_squares": (9 + 0.5625) / 2 / 2,
    "wasserstein": -(-2 + 0.25) / 2,
    "relativistic": (log1p_exp(2.5) + log1p_exp(2.75)) / 2,
}


def of_generator(name: str, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return LOSSES[name].generator(fake, real if LOSSES[name].compares else None)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_formulas(name):
    """A swapped sign or a forgotten half."""
    assert LOSSES[name].discriminator(REAL, FAKE).item() == pytest.approx(DISCRIMINATOR[name])
    assert of_generator(name, FAKE, REAL).item() == pytest.approx(GENERATOR[name])


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
    (of_g,) = torch.autograd.grad(of_generator(name, fake, torch.zeros(1)), fake)
    assert of_d.item() >= 0 > of_g.item()


# The relativistic loss


def test_the_relativistic_losses_are_each_others_mirror_and_log_2_where_all_images_are_equal():
    loss = LOSSES["relativistic"]
    real, fake = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loss.discriminator(real, fake), loss.generator(real, fake))
    assert torch.equal(loss.generator(fake, real), loss.discriminator(fake, real))
    for constant in (-7.0, 0.0, 3.0):
        same = torch.full((6,), constant)
        assert loss.discriminator(same, same).item() == pytest.approx(math.log(2))
        assert loss.generator(same, same).item() == pytest.approx(math.log(2))


def test_the_relativistic_losses_are_of_pairs():
    """Against the mean of the others (RaGAN), the order of a batch would not matter."""
    loss = LOSSES["relativistic"]
    real, fake = torch.tensor([0.0, 5.0]), torch.tensor([0.0, 5.0])
    assert loss.discriminator(real, fake).item() == pytest.approx(math.log(2))
    swapped = (log1p_exp(5) + log1p_exp(-5)) / 2
    assert loss.discriminator(real, fake.flip(0)).item() == pytest.approx(swapped)


def relativistic_trainer(changes: dict | None = None) -> Trainer:
    named = {"loss.name": "relativistic", "loss.r1": 0.5, "loss.r2": 0.5}
    config = tiny(
        {"model.arch": "sngan_cnn", "normalizer.kind": "none", **named, **(changes or {})}
    )
    return Trainer(config, load_images(config.data), ALONE)


def test_an_offset_of_the_discriminator_changes_nothing_and_is_never_learned():
    """The gradient of the last bias is 0 to the last bit, not to rounding."""
    trainer = relativistic_trainer()
    draw, head = trainer.draw(0).discriminator[0], trainer.discriminator[-2]
    losses, gradients = [], []
    for offset in (0.0, 4.0):
        torch.nn.init.constant_(head.bias, offset)
        trainer.discriminator.zero_grad()
        loss, *_ = trainer.discriminator_loss(draw)
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in trainer.discriminator.parameters()])
        assert head.bias.grad.tolist() == [0.0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert any(gradient.abs().max() > 1e-6 for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    torch.nn.init.zeros_(head.bias)
    trainer.update(trainer.draw(0))
    assert head.bias.tolist() == [0.0]


def test_the_generator_is_compared_with_images_of_its_own():
    """With those of the discriminator's update, it would be told what D has just learned."""
    trainer = relativistic_trainer({"train.n_dis": 1})
    draws = trainer.draw(0)
    own, others = draws.generator.real.images, draws.discriminator[0].real.images
    assert own.shape == others.shape
    assert not torch.equal(own, others)
    trainer.discriminator.requires_grad_(False)
    loss, _ = trainer.generator_loss(draws.generator)
    fake = trainer.generate(draws.generator.latents, augmentation={})
    expected = trainer.discriminate(draws.generator.real) - trainer.discriminate(fake)
    torch.testing.assert_close(loss, torch.nn.functional.softplus(expected).mean())


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


@pytest.mark.parametrize("penalty", [r1, r2])
def test_r1_and_r2_of_a_linear_discriminator(penalty):
    """|w|^2 / 2 at every image, with gradient w."""
    weight = torch.tensor([1.0, 2.0, 0.0, 2.0], requires_grad=True)
    real, fake = batch(torch.randn(5, 1, 2, 2)), batch(torch.randn(5, 1, 2, 2))
    value = penalty(linear(weight), real, fake, None)
    assert value.item() == pytest.approx(4.5)
    value.backward()
    torch.testing.assert_close(weight.grad, weight.detach())


def test_r1_is_taken_at_real_and_r2_at_generated_images():
    """For D(x) = |x|^2 / 2 the gradient is the image itself; the order of a batch is no matter."""

    def square(batch: Batch) -> torch.Tensor:
        return batch.images.square().flatten(1).sum(1) / 2

    real = batch(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    fake = batch(torch.tensor([2.0, 4.0]).view(2, 1, 1, 1))
    assert r1(square, real, fake, None).item() == pytest.approx((1 + 9) / 2 / 2)
    assert r2(square, real, fake, None).item() == pytest.approx((4 + 16) / 2 / 2)
    assert r2(square, real, batch(fake.images.flip(0)), None) == r2(square, real, fake, None)


def test_r2_reaches_the_discriminator_and_not_the_generator():
    trainer = relativistic_trainer({"loss.r1": 0.0})
    draw = trainer.draw(0).discriminator[0]
    loss, terms, _ = trainer.discriminator_loss(draw)
    assert list(terms) == ["loss_d", "d_real", "d_fake", "r2"]
    torch.testing.assert_close(loss, terms["loss_d"] + 0.5 * terms["r2"])
    terms["r2"].backward()
    assert all(p.grad is None for p in trainer.generator.parameters())
    assert any(p.grad is not None and p.grad.any() for p in trainer.discriminator.parameters())


@pytest.mark.parametrize(
    ("one", "other"), [*combinations(["gradient_penalty", "r1", "r2", "weight_clip"], 2)]
)
def test_penalties_exclude_each_other_but_r1_and_r2(one, other):
    changes = {f"loss.{one}": 1.0, f"loss.{other}": 1.0, "normalizer.kind": "none"}
    if (one, other) == ("r1", "r2"):
        assert [penalty.name for penalty in tiny(changes).loss.penalties] == ["r1", "r2"]
        changes["loss.weight_clip"] = 0.1
        one, other = "r1", "weight_clip"
    with pytest.raises(InputError, match=f"loss.{one} and loss.{other}"):
        tiny(changes)


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


@pytest.mark.parametrize("penalty", ["gradient_penalty", "r1", "r2"])
@pytest.mark.parametrize(
    "normalizer",
    [
        {"normalizer.kind": "batch"},
        {"normalizer.kind": "affine"},
        {"normalizer.kind": "chain"},
        {"normalizer.kind": "convnorm", "normalizer.batch_norm": True},
    ],
)
def test_a_gradient_per_image_needs_images_apart(penalty, normalizer):
    """With batch statistics in D the penalty is of the batch, which no paper means."""
    with pytest.raises(InputError, match=f"loss.{penalty}: .*normalizer.kind"):
        tiny({f"loss.{penalty}": 1.0, **normalizer})
    tiny(normalizer)
