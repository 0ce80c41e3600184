"""What a step of a GAN draws, and what of it the networks and losses get."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from runs import ALONE, differing, tiny

from convnorm import CATALOGUE
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.loop import take_step
from gan.losses import LOSSES
from gan.trainer import Trainer


def make_trainer(changes: dict | None = None) -> Trainer:
    config = tiny({"train.ema_decay": 0.9, **(changes or {})})
    return Trainer(config, load_images(config.data), ALONE)


def test_each_update_has_draws_of_its_own():
    """Two updates on the same images or latents would learn less than they cost."""
    trainer = make_trainer({"loss.gradient_penalty": 10.0, "train.n_dis": 3})
    steps = [trainer.draw(step) for step in range(2)]
    updates = [update for draws in steps for update in draws.discriminator]
    latents = [update.latents for update in updates]
    latents += [draws.generator.latents for draws in steps]
    for drawn in (
        [update.real.images for update in updates],
        [update.mix for update in updates],
        [each.z for each in latents],
        [each.labels for each in latents],
    ):
        pairs = combinations(drawn, 2)
        assert not any(torch.equal(one, other) for one, other in pairs)


def test_labels_travel_with_real_images_and_with_latents(monkeypatch):
    """The networks of today ignore them; a conditional one gets them in every call."""
    trainer = make_trainer()
    seen = []
    for network in (trainer.generator, trainer.discriminator):
        network.register_forward_pre_hook(lambda module, inputs: seen.append((module, *inputs)))
    draws = trainer.draw(0)
    trainer.update(draws)
    g, d = trainer.generator, trainer.discriminator
    expected = []
    for draw in draws.discriminator:
        expected += [(g, draw.latents.labels), (d, draw.real.labels), (d, draw.latents.labels)]
    labels = draws.generator.latents.labels
    expected += [(g, labels), (d, labels)]
    assert [(module, id(given)) for module, _, given in seen] == [
        (module, id(given)) for module, given in expected
    ]
    images = load_images(trainer.config.data)
    for draw in draws.discriminator:  # a real image's label is its own
        for image, label in zip(draw.real.images, draw.real.labels, strict=True):
            pixels = ((image + 1) * 128).floor().to(torch.uint8)
            same = (images.images == pixels).flatten(1).all(1)
            assert label in images.labels[same]
    labels = torch.cat([trainer.draw(step).generator.latents.labels for step in range(40)])
    assert labels.unique().tolist() == list(range(10))
    assert trainer.state.state_dict()["num_classes"] == 10


def test_a_generators_loss_may_see_the_discriminator_on_real_images(monkeypatch):
    """Pairs of a real and a fake image, as relativistic losses need them."""
    seen = []

    def relativistic(fake, real):
        seen.append((fake, real))
        return torch.nn.functional.softplus(real - fake).mean()

    loss = replace(LOSSES["hinge"], generator=relativistic, compares=True)
    monkeypatch.setitem(LOSSES, "hinge", loss)
    trainer = make_trainer({"train.generator_batch_size": 6})
    draws = trainer.draw(0)
    assert draws.generator.real.images.shape == (6, 1, 16, 16)
    assert not torch.equal(draws.generator.real.images, draws.discriminator[0].real.images[:6])
    assert not torch.equal(draws.generator.real.images, trainer.draw(1).generator.real.images)
    trainer.update(draws)
    ((fake, real),) = seen
    trainer.discriminator.requires_grad_(False)
    assert fake.shape == real.shape == (6,)
    assert trainer.state.step == 0  # counting is the loop's


ONE_PASS = {
    "convnorm": {"normalizer.kind": "convnorm", "train.diffaugment": "color,translation,cutout"},
    "relativistic": {
        "normalizer.kind": "layer",
        "loss.name": "relativistic",
        "train.generator_batch_size": 6,
        "loss.r1": 1.0,
    },
    "bfloat16": {"normalizer.kind": "none", "train.precision": "bfloat16"},
}


@pytest.mark.parametrize("changes", ONE_PASS.values(), ids=ONE_PASS)
def test_one_pass_learns_what_two_do(changes):
    """Logits that are split at another place, or images with another's augmentation, would not."""
    two, one = (make_trainer({**changes, "train.one_pass": one}) for one in (False, True))
    draws = two.draw(0)
    near = {"rtol": 2e-2, "atol": 2e-2} if "train.precision" in changes else {}
    for trainer in (two, one):
        (trainer.passes, network) = [], trainer.discriminator
        network.register_forward_hook(lambda *_, passes=trainer.passes: passes.append(1))
    found = [
        (
            trainer.discriminator_loss(draws.discriminator[0]),
            trainer.generator_loss(draws.generator),
        )
        for trainer in (two, one)
    ]
    torch.testing.assert_close(found[1], found[0], **near)
    saved = len(two.passes) - len(one.passes)
    assert saved == 1 + (draws.generator.real is not None)
    for trainer, ((loss, _, _), _) in zip((two, one), found, strict=True):
        loss.backward()
        trainer.gradients = [p.grad for p in trainer.discriminator.parameters()]
    torch.testing.assert_close(one.gradients, two.gradients, **near)


@pytest.mark.parametrize("kind", ["none", "spectral", "convnorm"])
def test_channels_last_learns_the_same(kind):
    """Maps that go the other way, and a network that falls back to the usual one."""
    usual, other = (
        make_trainer({"normalizer.kind": kind, "train.channels_last": last})
        for last in (False, True)
    )
    formats = []
    for module in other.discriminator.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            module.register_forward_hook(
                lambda *call: formats.append(
                    call[-1].is_contiguous(memory_format=torch.channels_last)
                )
            )
    for trainer in (usual, other):
        trainer.update(trainer.draw(0))
    assert formats
    assert all(formats) == (kind != "convnorm")
    for ours, theirs in zip(
        usual.discriminator.parameters(), other.discriminator.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_in_one_pass_a_power_iteration_takes_one_step():
    two, one = (
        make_trainer({"normalizer.kind": "spectral", "train.one_pass": one})
        for one in (False, True)
    )
    draw = two.draw(0).discriminator[0]
    one.discriminator_loss(draw)
    one.discriminate(draw.real)
    two.discriminator_loss(draw)
    buffers = [dict(trainer.discriminator.named_buffers()) for trainer in (two, one)]
    assert len(buffers[0]) > 0
    assert differing(*buffers) == []


@pytest.mark.parametrize(
    "changes",
    [
        *({"kind": kind} for kind, known in CATALOGUE.items() if known.mixes_batch),
        {"kind": "convnorm", "batch_norm": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_kinds_that_mix_a_batch_need_two_passes(changes):
    """Statistics of real and generated images together would be of neither."""
    with pytest.raises(InputError, match=r"^train\.one_pass: .* expected false, or another kind$"):
        tiny(
            {f"normalizer.{key}": value for key, value in changes.items()}
            | {"train.one_pass": True}
        )


def test_a_fused_adam_differs_by_its_rounding():
    """By 1e-7 of the weights in a step; a wrong option would be a factor of its own."""
    plain, fused = (
        make_trainer({"normalizer.kind": "none", "optim.fused": fused, "optim.beta1": 0.5})
        for fused in (False, True)
    )
    for step in range(5):
        gradients = [torch.randn_like(p) for p in plain.discriminator.parameters()]
        for trainer in (plain, fused):
            trainer.state.set_rates(trainer.draw(step).rates)
            for p, gradient in zip(trainer.discriminator.parameters(), gradients, strict=True):
                p.grad = gradient.clone()
            trainer.state.optim_d.step()
    pairs = zip(plain.discriminator.parameters(), fused.discriminator.parameters(), strict=True)
    for one, other in pairs:
        assert (one - other).abs().max() <= 5 * 1.2e-7 * one.abs().max()
    assert fused.state.optim_d.param_groups[0]["fused"]
    take_step(fused)
