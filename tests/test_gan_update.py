"""The update of a GAN is a function of its draws and of tensors: nothing else goes in."""

import copy
from dataclasses import replace

import pytest
import torch
from runs import ALONE, differing, tiny
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
)

from convnorm.experiment.data import load_images
from convnorm.experiment.run.loop import take_step
from gan.losses import LOSSES
from gan.trainer import Trainer


def make_trainer(changes: dict | None = None) -> Trainer:
    config = tiny({"train.ema_decay": 0.9, **(changes or {})})
    return Trainer(config, load_images(config.data), ALONE)


def update_without_values(trainer: Trainer) -> Trainer:
    """Update twice on tensors that have no values: whoever asks for one raises."""
    mode, drawn = FakeTensorMode(), [trainer.draw(step) for step in range(2)]
    with FakeCopyMode(mode):
        trainer, drawn = copy.deepcopy((trainer, drawn))
    with mode:
        for draws in drawn:
            trainer.update(draws)
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
    trainer = update_without_values(make_trainer(changes))
    networks = (trainer.generator, trainer.discriminator, trainer.state.ema)
    weights = [weight for network in networks for weight in network.parameters()]
    assert all(isinstance(weight, FakeTensor) for weight in weights)


def test_an_update_that_asks_for_a_value_is_caught(monkeypatch):
    original = Trainer.discriminator_loss

    def asking(self, draw):
        loss, terms = original(self, draw)
        return loss * (2 if loss.item() > 0 else 1), terms

    monkeypatch.setattr(Trainer, "discriminator_loss", asking)
    with pytest.raises(DataDependentOutputException):
        update_without_values(make_trainer())


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
