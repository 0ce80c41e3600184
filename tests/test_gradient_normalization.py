"""The discriminator that is normalized by its own gradient, against what is known of it."""

import copy

import pytest
import torch
from runs import ALONE, Crash, crash_before, differing, run, state_of, tiny
from torch import nn

from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.cost import macs
from convnorm.normalizers import CATALOGUE
from convnorm.spectrum import layer_norms
from gan.gradient_normalization import GradientNormalized, normalized
from gan.models import build
from gan.trainer import Trainer

NORMALIZED = {"model.gradient_normalization": True, "normalizer.kind": "none"}
MIXING = [kind for kind, definition in CATALOGUE.items() if definition.mixes_batch]


def images(num: int = 4, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(num, 1, 16, 16, generator=random, dtype=torch.float64)


def networks(**changes) -> tuple[nn.Module, nn.Module]:
    """The plain discriminator and the normalized one, of equal weights, in float64."""
    configs = tiny({"normalizer.kind": "none", **changes}), tiny({**NORMALIZED, **changes})
    plain, wrapped = (build(config, channels=1)[1].double() for config in configs)
    for network in (plain, wrapped):  # the published initialization leaves biases out
        random = torch.Generator().manual_seed(1)
        for name, parameter in network.named_parameters():
            scale = 0.1 if name.endswith("bias") else 5.0 * parameter.detach().std()
            parameter.data = torch.randn(parameter.shape, generator=random).double() * scale
    return plain, wrapped


def gradient_norms(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    return gradient.flatten(1).norm(dim=1)


def test_the_closed_form_of_a_linear_discriminator():
    linear = nn.Linear(256, 1).double()
    network, x = GradientNormalized(nn.Flatten(), linear, nn.Flatten(0)), images()
    logits, norm = linear(x.flatten(1)).flatten(), linear.weight.norm()
    torch.testing.assert_close(network(x), logits / (norm + logits.abs()))


@pytest.mark.parametrize("arch", ["dcgan", "sngan_cnn", "sngan_resnet"])
def test_it_is_the_function_over_its_gradient_and_itself(arch):
    """In (-1, 1), with a gradient of norm (n / (n + |f|))^2 where f is piecewise linear."""
    plain, wrapped = networks(**{"model.arch": arch})
    x = images()
    f, n = plain(x).detach(), gradient_norms(plain, x)
    torch.testing.assert_close(wrapped(x).detach(), f / (n + f.abs()))
    assert 1e-3 < wrapped(x).abs().max() < 1
    torch.testing.assert_close(gradient_norms(wrapped, x), (n / (n + f.abs())).square())


def test_a_factor_on_the_function_changes_nothing():
    _, wrapped = networks()
    x, head = images(), wrapped[-2]
    assert isinstance(head, nn.Conv2d | nn.Linear)
    before = wrapped(x)
    for parameter in head.parameters():
        parameter.data *= 1000
    torch.testing.assert_close(wrapped(x), before, rtol=1e-12, atol=1e-12)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    _, wrapped = networks()
    x, y = images(), images(seed=1)
    y[2] = x[2]
    torch.testing.assert_close(wrapped(y)[2], wrapped(x)[2], rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(wrapped(x.requires_grad_())[2], x)
    assert [bool(each.any()) for each in gradient] == [False, False, True, False]


def test_a_dead_discriminator_is_zero_and_has_finite_gradients():
    """The published 0 / 0 would end the run."""
    config = tiny(NORMALIZED)
    trainer = Trainer(config, load_images(config.data), ALONE)
    for parameter in trainer.discriminator.parameters():
        nn.init.zeros_(parameter)
    for step in range(2):
        draws = trainer.draw(step)
        _, terms, _ = trainer.discriminator_loss(draws.discriminator[0])
        if step == 0:
            assert terms["d_real"] == terms["d_fake"] == 0
        trainer.update(draws)
        networks = (trainer.generator, trainer.discriminator)
        weights = [p for network in networks for p in network.parameters()]
        assert all(p.isfinite().all() and p.grad.isfinite().all() for p in weights)


def test_values_do_not_depend_on_what_is_differentiated():
    """Under no_grad, with weights frozen, or with images that belong to a generator."""
    _, wrapped = networks()
    x = images()
    expected = wrapped(x)
    assert expected.requires_grad
    with torch.no_grad():
        quiet = wrapped(x), wrapped(images().requires_grad_())
    of_generator = wrapped(images().requires_grad_())
    wrapped.requires_grad_(False)
    frozen = wrapped(x)
    assert of_generator.requires_grad
    assert not any(each.requires_grad for each in (*quiet, frozen))
    for each in (*quiet, of_generator, frozen):
        assert torch.equal(each, expected)
    assert (x.requires_grad, x.grad) == (False, None)  # the caller's images are left alone
    assert all(p.grad is None for p in wrapped.parameters())


@pytest.mark.parametrize("of", ["weights", "images"])
def test_the_gradient_goes_through_the_norm(of):
    """Against finite differences: with the norm as a constant, both networks would learn else."""
    _, wrapped = networks()
    x = images()
    value = wrapped[0].weight if of == "weights" else x.requires_grad_()
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(3)).double()
    (gradient,) = torch.autograd.grad(wrapped(x).sum(), value)
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            value += sign * 1e-6 * direction
            ends.append(wrapped(x.detach()).sum())
            value -= sign * 1e-6 * direction
    expected = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-8)


def test_labels_reach_the_function():
    """A conditional discriminator binds them."""
    x, labels = images(), torch.tensor([0.0, 1.0, 2.0, 3.0]).double()
    found = normalized(lambda batch: batch.flatten(1).sum(1) + labels, x, attached=False)
    f = x.flatten(1).sum(1) + labels
    torch.testing.assert_close(found, f / (16 + f.abs()))
    network = GradientNormalized(nn.Flatten(), nn.Linear(256, 1).double(), nn.Flatten(0))
    assert torch.equal(network(x, labels), network(x))


def test_the_division_is_in_float32_under_bfloat16():
    config = tiny({**NORMALIZED, "train.precision": "bfloat16"})
    _, network = build(config, channels=1)
    x = images().float()
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.01)


# In the suite


def test_names_and_weights_are_those_of_the_plain_discriminator():
    """So layers of both stand under one name in logs, and checkpoints load into either."""
    plain, wrapped = (
        build(tiny({"model.gradient_normalization": it, "normalizer.kind": "spectral"}), 1)[1]
        for it in (False, True)
    )
    assert differing(dict(plain.state_dict()), dict(wrapped.state_dict())) == []
    norms = [layer_norms(network, torch.Size((1, 16, 16))) for network in (plain, wrapped)]
    assert norms[0] == norms[1]
    assert type(copy.deepcopy(wrapped)) is GradientNormalized


def test_it_costs_a_forward_pass_and_a_gradient_of_the_images():
    plain, wrapped = (network.float() for network in networks())
    batch = images(8).float()
    forward, both = macs(plain, batch), macs(wrapped, batch)
    assert 1.5 * forward < both <= 2 * forward


@pytest.mark.parametrize("kind", [kind for kind in CATALOGUE if kind not in MIXING])
def test_every_kind_that_leaves_images_apart_can_be_normalized_so(kind):
    config = tiny({**NORMALIZED, "normalizer.kind": kind, "train.n_dis": 1})
    trainer = Trainer(config, load_images(config.data), ALONE)
    trainer.update(trainer.draw(0))
    networks = (trainer.generator, trainer.discriminator)
    gradients = [p.grad for network in networks for p in network.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    assert any(p.grad.any() for p in trainer.generator.parameters())


@pytest.mark.parametrize(
    ("kind", "batch_norm"), [*((kind, False) for kind in MIXING), ("convnorm", True)]
)
def test_a_kind_that_mixes_a_batch_is_refused(kind, batch_norm):
    with pytest.raises(
        InputError, match=rf"^model\.gradient_normalization: .*normalizer\.kind '{kind}' mixes"
    ):
        tiny({**NORMALIZED, "normalizer.kind": kind, "normalizer.batch_norm": batch_norm})


@pytest.mark.parametrize("name", ["gradient_penalty", "r1", "r2", "weight_clip"])
def test_what_it_leaves_nothing_to_is_refused(name):
    with pytest.raises(
        InputError, match=rf"^model\.gradient_normalization: .* loss\.{name}; expected"
    ):
        tiny({**NORMALIZED, f"loss.{name}": 0.1})


@pytest.mark.parametrize("loss", ["non_saturating", "relativistic"])
def test_a_killed_run_goes_on_to_the_same_bits(loss, tmp_path, monkeypatch):
    changes = {**NORMALIZED, "loss.name": loss, "train.ema_decay": 0.9}
    run(tmp_path / "whole", changes)
    with monkeypatch.context() as patch:
        crash_before(3, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path / "cut", changes, checkpoint_every=2)
    run(tmp_path / "cut", changes)
    assert differing(*(state_of(tmp_path / name) for name in ("cut", "whole"))) == []
