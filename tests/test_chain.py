"""CHAIN against its formulas, and in the training of a GAN."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import ALONE, Crash, crash_before, differing, run, state_of, tiny, tiny_classifier
from torch import nn
from torch.nn.utils import parametrize

from convnorm import Normalizer, chain
from convnorm.chain import PENALTY, STEP, Chain, chains_penalty
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.loop import take_step
from gan.losses import LOSSES
from gan.networks import ARCHITECTURES, build_discriminator
from gan.trainer import Trainer

CHAIN = {"normalizer.kind": "chain"}


def layer(p, channels=5):
    made = Chain(channels).double()
    made.p.fill_(p)
    return made


def maps(batch_size=6, channels=5, seed=0):
    """Channels of different sizes and means."""
    torch.manual_seed(seed)
    x = torch.randn(batch_size, channels, 4, 4, dtype=torch.float64)
    return (x + 0.5) * torch.arange(1.0, channels + 1, dtype=torch.float64)[:, None, None]


def size(x):
    return x.square().mean((0, 2, 3)).sqrt()


def chains(network):
    return [module for module in network.modules() if isinstance(module, Chain)]


def make_trainer(changes=None):
    config = tiny({**CHAIN, **(changes or {})})
    return Trainer(config, load_images(config.data), ALONE)


# The layer


def test_all_channels_get_the_size_of_the_smallest():
    """And keep their signs and means: they are not centred."""
    x = maps()
    y = layer(1.0)(x)
    torch.testing.assert_close(size(y), size(x).min().expand(5), rtol=1e-4, atol=0)
    torch.testing.assert_close(y / size(y)[:, None, None], x / size(x)[:, None, None])


def test_nothing_changes_at_first():
    x = maps()
    assert torch.equal(Chain(5)(x), x)


def test_each_image_and_channel_is_drawn_by_itself_from_the_global_state():
    x = maps(batch_size=400)
    ratio = size(x).min() / size(x)
    torch.manual_seed(3)
    y = layer(0.3)(x)
    torch.manual_seed(3)
    assert torch.equal(layer(0.3)(x), y)
    changed = (y != x).all((2, 3))
    assert torch.equal(changed, (y != x).any((2, 3)))
    expected = torch.where(changed, ratio, torch.ones(1).double())
    torch.testing.assert_close(y, x * expected[:, :, None, None], rtol=1e-4, atol=0)
    torch.testing.assert_close(changed.float().mean(0)[1:], torch.full((4,), 0.3), atol=0.1, rtol=0)
    assert changed[:, 1:].unique(dim=0).shape[0] == 16


def test_a_factor_on_the_maps_passes_through():
    torch.testing.assert_close(layer(1.0)(3 * maps()), 3 * layer(1.0)(maps()), rtol=1e-4, atol=0)


def test_no_direction_grows():
    """With the smallest size as a constant: through it, others would grow with that channel."""
    x = maps(batch_size=2, channels=3)
    jacobian = torch.autograd.functional.jacobian(layer(1.0, 3), x).reshape(96, 96)
    assert 0.9 < torch.linalg.matrix_norm(jacobian, 2) <= 1 + 1e-9
    smallest = jacobian.view(2, 3, 16, 2, 3, 16)[:, 1:, :, :, 0]
    assert not smallest.any()


def test_real_images_and_fakes_do_not_see_each_other():
    made = layer(1.0)
    alone = made(maps(seed=1))
    made(100 * maps())
    assert torch.equal(made(maps(seed=1)), alone)


def test_a_dead_channel_is_finite():
    x = maps()
    x[:, 2] = 0
    x.requires_grad_()
    y = layer(1.0)(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert all(each.isfinite().all() for each in (y, grad, x.grad))


def test_gradients_are_those_of_finite_differences():
    """Of the larger channels: the smallest stays as it is, so that it counts as a constant."""
    smallest = maps(2, 1)[..., :2, :2] / 10

    def larger(x):
        return layer(1.0, 3)(torch.cat([smallest, x], 1))[:, 1:]

    x = maps(2, 2, seed=1)[..., :2, :2].requires_grad_()
    assert torch.autograd.gradcheck(larger, x)
    assert torch.autograd.gradgradcheck(larger, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_in_full_precision(dtype):
    """A mean of 10^5 squares in half precision is off by percents, or infinite."""
    x = (300 + torch.randn(64, 2, 32, 32)).to(dtype)
    made = Chain(2)
    made.p.fill_(1)
    y = made(x)
    assert y.dtype == dtype
    assert torch.equal(y, x)
    mean, square = made.passes[-1]
    assert mean.dtype == square.dtype == torch.float32
    torch.testing.assert_close(square, x.double().square().mean((0, 2, 3)).float())


# The penalty


def test_the_penalty_is_of_the_means_of_both_passes():
    """Squares of the means of channels, summed over passes and layers, times 20 p."""
    network = nn.Sequential(layer(0.5), nn.LeakyReLU(), layer(0.25))
    inputs = [[], []]
    for index, seen in zip((0, 2), inputs, strict=True):
        network[index].register_forward_hook(lambda m, x, y, seen=seen: seen.append(x[0]))
    for seed in (0, 1, 2):
        network(maps(seed=seed))
    squares = [sum(x.mean((0, 2, 3)).square().sum() for x in seen[1:]) for seen in inputs]
    expected = PENALTY * (0.5 * squares[0] + 0.25 * squares[1])
    torch.testing.assert_close(chains_penalty(network), expected)


def test_the_penalty_pulls_means_to_zero_in_both_passes():
    made, passes = layer(0.5), [maps(seed=seed).requires_grad_() for seed in (0, 1)]
    for x in passes:
        made(x)
    for x, grad in zip(passes, torch.autograd.grad(made.penalty(), passes), strict=True):
        mean = x.mean((0, 2, 3))
        expected = (PENALTY * 0.5 * 2 * mean / (6 * 16))[:, None, None].expand_as(x)
        torch.testing.assert_close(grad, expected)


def test_no_passes_no_penalty():
    made = layer(0.5)
    assert made.penalty() == 0
    with torch.no_grad():
        made(maps())
    made.eval()(maps())
    assert made.penalty() == 0


# What adapts


def test_p_follows_the_sign_of_real_logits():
    """Down is no way at 0, and 1 is the end."""
    made, r, p = Chain(3), 0.0, 0.0
    random = torch.Generator().manual_seed(0)
    for step in range(300):
        logits = torch.randn(8, generator=random) + (2 if step < 200 else -2)
        r = 0.9 * r + 0.1 * logits.sign().mean().item()
        p = min(max(p + (STEP if r > 0.5 else -STEP), 0.0), 1.0)
        chain.observe(made, logits)
        assert made.p.item() == pytest.approx(p, abs=1e-5)
        assert made.running_sign.item() == pytest.approx(r, abs=1e-5)
    assert 0.05 < p < 0.15
    made.p.fill_(1)
    chain.observe(made, torch.ones(8))
    assert made.p < 1
    made.running_sign.fill_(1)
    for _ in range(3):
        chain.observe(made, torch.ones(8))
    assert made.p == 1


def test_passes_change_nothing_and_updates_the_running_statistics():
    """By real images and fakes alike; a pass that nobody observes was no update of D."""
    made = layer(0.5)
    before = copy.deepcopy(made.state_dict())
    x = [maps(seed=seed) for seed in (0, 1, 2)]
    for each in x:
        made(each)
    assert differing(made.state_dict(), before) == []
    made.observe(torch.tensor(1.0))
    expected = torch.ones(5).double()
    for each in x[1:]:
        expected = expected.lerp(each.square().mean((0, 2, 3)), 0.05)
    torch.testing.assert_close(made.running_square, expected)
    made.observe(torch.tensor(1.0))
    torch.testing.assert_close(made.running_square, expected)


def test_evaluation_is_of_each_image_alone_and_draws_nothing():
    made = layer(0.25)
    made.running_square.copy_(torch.tensor([4.0, 9, 1, 16, 4]))
    x, state = maps(), copy.deepcopy(made.state_dict())
    random = torch.get_rng_state()
    y = made.eval()(x)
    ratio = torch.tensor([1 / 2, 1 / 3, 1, 1 / 4, 1 / 2]).double()
    torch.testing.assert_close(y, x * (0.75 + 0.25 * ratio)[:, None, None], rtol=1e-4, atol=0)
    assert torch.equal(made(x[:1]), y[:1])
    assert torch.equal(torch.get_rng_state(), random)
    assert differing(made.state_dict(), state) == []


def test_a_copy_has_the_state_and_no_passes():
    """A graph cannot be copied."""
    made = layer(0.5)
    made(maps().requires_grad_())
    twin = copy.deepcopy(made)
    assert differing(twin.state_dict(), made.state_dict()) == []
    assert (len(twin.passes), len(made.passes)) == (0, 1)
    twin(maps().requires_grad_())
    assert len(made.passes) == 1


# Where it stands


@pytest.mark.parametrize(("arch", "count"), [("dcgan", 1), ("sngan_cnn", 6), ("sngan_resnet", 8)])
def test_it_is_behind_convolutions_with_spectral_norm_but_not_at_the_image_or_the_head(arch, count):
    assert arch in ARCHITECTURES
    network = build_discriminator(
        arch,
        Normalizer("chain"),
        image_size=16,
        channels=1,
        options={"discriminator_width": 4},
    )
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(parametrize.is_parametrized(each, "weight") for each in layers)
    assert (
        len(chains(network))
        == count
        == len([m for m in layers if m.weight.ndim == 4]) - (2 if arch == "sngan_resnet" else 1)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_losses_whose_logits_have_no_border_at_zero_are_refused(name):
    """p would follow a sign that says nothing, and rise to 1 or stay at 0 for no reason."""
    if name in ("hinge", "non_saturating"):
        tiny({**CHAIN, "loss.name": name})
        return
    message = rf"^loss\.name: '{name}' is not allowed, as normalizer\.kind 'chain' .* hinge, non_sa"
    with pytest.raises(InputError, match=message):
        tiny({**CHAIN, "loss.name": name})


def test_a_classifier_is_refused():
    message = r"^normalizer\.kind: 'chain' is not allowed; expected .* logits of a discriminator$"
    with pytest.raises(InputError, match=message):
        tiny_classifier(CHAIN)


# In training


def test_the_trainer_adds_the_penalty_of_its_own_passes_alone():
    """Those of the generator's update before it are no part of it, nor of the generator's loss."""
    trainer = make_trainer({"loss.name": "hinge"})
    take_step(trainer)
    for each in chains(trainer.discriminator):
        each.p.fill_(0.5)
    seen = []
    for each in chains(trainer.discriminator):
        each.register_forward_hook(lambda m, x, y: seen.append(x[0]))
    loss, terms, _ = trainer.discriminator_loss(trainer.draw(1).discriminator[0])
    assert len(seen) == 2
    expected = PENALTY * 0.5 * sum(x.mean((0, 2, 3)).square().sum() for x in seen)
    torch.testing.assert_close(terms["weight_penalty"], expected)
    torch.testing.assert_close(loss, terms["loss_d"] + expected)
    loss, terms = trainer.generator_loss(trainer.draw(1).generator)
    assert terms.keys() == {"loss_g"}


def test_p_sees_every_update_of_the_discriminator_and_the_images_of_all_processes():
    trainer = make_trainer({"train.n_dis": 3})
    gathered = []

    def gather(part):
        gathered.append(part)
        return torch.cat([part, torch.full((8,), 5.0)])

    trainer.process = SimpleNamespace(**vars(ALONE), gather=gather, average_=ALONE.average_)
    trainer.update(trainer.draw(0))
    assert [tuple(part.shape) for part in gathered] == [(8,)] * 3
    assert not any(part.requires_grad for part in gathered)
    expected = torch.zeros(())
    for part in gathered:
        expected = expected.lerp((part.sign().sum() + 8) / 16, 0.1)
    (made,) = chains(trainer.discriminator)
    torch.testing.assert_close(made.running_sign, expected)
    assert not torch.equal(made.running_square, torch.ones(8))


def test_a_kind_that_does_not_adapt_costs_no_message():
    trainer = make_trainer({"normalizer.kind": "spectral"})
    process, gathered = replace(ALONE), []
    object.__setattr__(process, "gather", gathered.append)
    trainer.process = process
    trainer.update(trainer.draw(0))
    assert not gathered


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch):
    """With p above 0, so that masks are drawn; measured in between, which changes nothing."""
    monkeypatch.setattr(chain, "TARGET", -2.0)
    monkeypatch.setattr(chain, "STEP", 0.1)
    often = {"log.every": 1, "log.samples_every": 1, "log.norms_every": 1}
    run(tmp_path / "whole", CHAIN)
    with monkeypatch.context() as patch:
        crash_before(3, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path / "cut", {**CHAIN, **often}, checkpoint_every=2)
    run(tmp_path / "cut", {**CHAIN, **often})
    whole, cut = (state_of(tmp_path / name) for name in ("whole", "cut"))
    assert whole["discriminator"]["2.1.p"].item() == pytest.approx(0.8)
    for name in ("generator", "discriminator", "optim_g", "optim_d", "rng"):
        assert differing(cut[name], whole[name]) == []
