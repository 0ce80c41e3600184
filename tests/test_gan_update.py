"""What a step of a GAN draws, and what of it the networks and losses get."""

from dataclasses import replace
from itertools import combinations

import torch
from runs import ALONE, tiny

from convnorm.experiment.data import load_images
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
