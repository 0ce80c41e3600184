"""The update of a GAN is a function of its draws and of tensors: nothing else goes in."""

from dataclasses import replace

import pytest
import torch
from fakes import fake_attributes, fake_networks, fake_optimizer, faked
from runs import ALONE, differing, tiny
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from convnorm.experiment.data import load_images
from convnorm.experiment.run.loop import take_step
from gan.losses import LOSSES
from gan.trainer import Trainer


def make_trainer(changes: dict | None = None) -> Trainer:
    config = tiny({"train.ema_decay": 0.9, **(changes or {})})
    return Trainer(config, load_images(config.data), ALONE)


def without_values(trainer: Trainer, mode: FakeTensorMode) -> Trainer:
    state = trainer.state
    fake_networks(mode, trainer.generator, trainer.discriminator, state.ema)
    fake_optimizer(state.optim_g, trainer.generator)
    fake_optimizer(state.optim_d, trainer.discriminator)
    fake_attributes(mode, state.meter)
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer.kind": "none", "loss.weight_clip": 0.1, "loss.name": "wasserstein"},
        {"normalizer.kind": "batch", "train.precision": "bfloat16"},
        {"normalizer.kind": "spectral", "loss.r1": 1.0},
        {"normalizer.kind": "ocnn"},
        {"normalizer.kind": "convnorm", "loss.gradient_penalty": 10.0},
        {"normalizer.kind": "convnorm", "normalizer.grid": "native"},
    ],
    ids=str,
)
def test_an_update_needs_no_value_of_a_tensor(changes):
    """What asks for one waits for the device, and cannot be captured as a graph."""
    trainer, mode = make_trainer(changes), FakeTensorMode()
    draws = [faked(mode, trainer.draw(step)) for step in range(2)]
    without_values(trainer, mode)
    with mode:
        for drawn in draws:
            trainer.update(drawn)


def test_an_update_that_asks_for_a_value_is_caught(monkeypatch):
    trainer, mode = make_trainer(), FakeTensorMode()
    original = trainer.discriminator_loss

    def asking(draw):
        loss, terms = original(draw)
        return loss * (2 if loss.item() > 0 else 1), terms

    monkeypatch.setattr(trainer, "discriminator_loss", asking)
    draws = faked(mode, trainer.draw(0))
    without_values(trainer, mode)
    with mode, pytest.raises(DataDependentOutputException):
        trainer.update(draws)


# Dynamo's own way to trace an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["none", "spectral", "convnorm"])
def test_each_loss_compiles_as_one_graph_for_the_whole_run(kind):
    """Forward and backward; a graph break raises, and so does a step that compiles again."""
    changes = {"normalizer.kind": kind, "train.n_dis": 1, "steps": 30}
    eager, compiled = make_trainer(changes), make_trainer(changes)
    torch.compiler.reset()
    for name in ("discriminator_loss", "generator_loss"):
        loss = torch.compile(getattr(compiled, name), backend="aot_eager", fullgraph=True)
        setattr(compiled, name, loss)
    take_step(compiled)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(20):
            take_step(compiled)
    for _ in range(21):
        take_step(eager)
    states = [trainer.state.state_dict() for trainer in (eager, compiled)]
    for name in ("generator", "discriminator", "ema"):
        torch.testing.assert_close(states[1][name], states[0][name])


def test_equal_draws_give_equal_updates():
    """A number that an update drew by itself would come from what was drawn before it."""
    first, second = make_trainer(), make_trainer()
    draws = first.draw(3)
    for trainer in (first, second):
        torch.manual_seed(id(trainer))
        trainer.draw(7)
        trainer.update(draws)
    for name in ("generator", "discriminator", "ema", "meter"):
        states = (trainer.state.state_dict()[name] for trainer in (first, second))
        assert differing(*states) == [], name


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
