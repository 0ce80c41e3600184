"""The gain of a discriminator: measured right, by its closed form, and without a trace."""

import math
import time
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from runs import ALONE, Crash, crash_before, differing, log_of, run, state_of, tiny
from torch import nn

from convnorm import CATALOGUE, Normalizer
from convnorm.experiment import streams
from convnorm.experiment.data import load_images
from convnorm.experiment.run.loop import take_step
from convnorm.experiment.run.tracking import read_lines
from gan import gain
from gan.gain import input_gain, probe_of
from gan.losses import Batch
from gan.networks import build_discriminator
from gan.trainer import Trainer

every_kind = pytest.mark.parametrize("kind", CATALOGUE)


def batch(num: int, *shape: int, seed: int = 0) -> Batch:
    noise = torch.Generator().manual_seed(seed)
    images = torch.rand(num, *shape, generator=noise) * 2 - 1
    return Batch(images, torch.zeros(num, dtype=torch.long))


class Quadric(nn.Module):
    """D(x) = w |x|^2 / 2, whose gradient is w x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(3.0))

    def forward(self, x, labels):
        return self.w * x.square().flatten(1).sum(1) / 2


def test_gain_is_the_median_norm_of_each_images_gradient():
    """Catches a mean, a norm over the batch, a lower median, and real and fake exchanged."""
    real, fake = batch(100, 1, 4, 4), batch(7, 1, 4, 4, seed=1)
    found = input_gain(Quadric(), real, fake)
    norms = [3 * it.images.flatten(1).norm(dim=1) for it in (real, fake)]
    assert found.real == pytest.approx(norms[0].sort().values[49:51].mean().item())
    assert found.fake == pytest.approx(norms[1].sort().values[3].item())
    margin = (norms[0].square().mean() - norms[1].square().mean()).item() / 6
    assert found.margin == pytest.approx(margin)
    assert found.mean == pytest.approx((found.real * found.fake) ** 0.5)


def test_gain_does_not_depend_on_the_chunks(monkeypatch):
    torch.manual_seed(0)
    D = build_discriminator("dcgan", Normalizer("batch"), image_size=16, channels=1)
    real, fake = batch(10, 1, 16, 16), batch(10, 1, 16, 16, seed=1)
    whole = input_gain(D, real, fake)
    monkeypatch.setattr(gain, "CHUNK", 3)
    parts = input_gain(D, real, fake)
    assert vars(parts) == pytest.approx(vars(whole), rel=1e-5)


class Normalized(nn.Module):
    """f / (|grad f| + |f|), which needs autograd inside of its forward pass (Wu et al., 2021)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x, labels):
        x = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():
            f = self.network(x, labels)
            (slope,) = torch.autograd.grad(f.sum(), x, create_graph=True)
        return f / (slope.flatten(1).norm(dim=1) + f.abs())


def test_gain_of_a_network_that_normalizes_its_own_gradient():
    """Its gain is at most 1, and is that of the quotient: f's own gradient is 3 |x|."""
    D = Normalized(Quadric())
    real = batch(9, 1, 4, 4)
    r = real.images.flatten(1).norm(dim=1)
    slopes = 2 / (2 + r).square()  # of (3 r^2 / 2) / (3 r + 3 r^2 / 2) = r / (2 + r)
    with torch.no_grad():
        assert input_gain(D, real, real).real == pytest.approx(slopes.median().item())


def test_products_are_not_rounded(monkeypatch):
    """Under bfloat16's autocast, and where a GPU rounds to TF32: there float64 is taken."""
    D = build_discriminator("dcgan", Normalizer("none"), image_size=16, channels=1)
    real, fake = batch(4, 1, 16, 16), batch(4, 1, 16, 16, seed=1)
    plain = input_gain(D, real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        assert input_gain(D, real, fake) == plain
    exact = input_gain(deepcopy(D).double(), real, fake)
    assert exact != plain
    monkeypatch.setattr(gain, "convolutions_are_rounded", lambda device_type: True)
    assert input_gain(D, real, fake) == exact


def make_trainer(changes: dict) -> Trainer:
    config = tiny(changes)
    return Trainer(config, load_images(config.data), ALONE)


@every_kind
def test_a_probe_leaves_no_trace(kind):
    """Statistics, power iterations, modes, gradients or random numbers that a look has moved."""
    trainer = make_trainer({"normalizer.kind": kind})
    take_step(trainer)
    networks = trainer.generator, trainer.discriminator
    first = next(trainer.discriminator.parameters()).requires_grad_(False)
    trainer.generator.eval()
    next(m for m in trainer.discriminator.modules() if isinstance(m, nn.LeakyReLU)).eval()

    def everything():
        return deepcopy(
            [
                trainer.state.state_dict(),
                streams.global_state(torch.device("cpu")),
                [[(p.requires_grad, p.grad) for p in network.parameters()] for network in networks],
                [module.training for network in networks for module in network.modules()],
            ]
        )

    probe = probe_of(trainer.config, trainer.config.data, load_images(trainer.config.data), "cpu")
    before = everything()
    found = probe(trainer.discriminator, trainer.generator)
    assert differing(before, everything()) == []
    assert not first.requires_grad
    assert all(math.isfinite(it) and it > 0 for it in (found.real, found.fake))
    assert probe(trainer.discriminator, trainer.generator) == found


def test_a_probe_sees_held_out_images_and_the_live_generator(monkeypatch):
    """Not the average that is scored, no noise, no flip, floats and not their 256 levels."""
    trainer = make_trainer({"train.ema_decay": 0.9, "train.dequantize": True, "train.flip": True})
    take_step(trainer)
    seen = []
    monkeypatch.setattr(gain, "input_gain", lambda D, real, fake: seen.extend((D, real, fake)))
    data = trainer.config.data
    probe = probe_of(trainer.config, data, load_images(data), "cpu")
    probe(trainer.discriminator, trainer.generator)
    D, real, fake = seen
    assert D is trainer.discriminator
    assert probe.held_out
    test = load_images(data, "test")
    known = {image.numpy().tobytes() for image in test.images}
    levels = (real.images + 1) * 127.5
    assert torch.equal(levels.round() / 127.5 - 1, real.images)
    assert len({it.numpy().tobytes() for it in levels.round().byte()} & known) >= 250
    assert len(real.images) == len(fake.images) == 256
    trainer.generator.eval()
    with torch.no_grad():
        expected = trainer.generator(probe.latents.z, probe.latents.labels)
    torch.testing.assert_close(fake.images, expected)
    # Other latents than those of the samples, and the same at every step.
    again = probe_of(trainer.config, data, load_images(data), "cpu")
    assert torch.equal(again.latents.z, probe.latents.z)


@pytest.mark.parametrize("case", ["no split", "colour"])
def test_without_held_out_images_of_the_kind_training_images_are_taken(case, monkeypatch):
    config = tiny()
    training, test = load_images(config.data), load_images(config.data, "test")
    if case == "no split":
        monkeypatch.setattr(gain, "has_split", lambda data, split: False)
    else:
        coloured = replace(test, images=test.images.expand(-1, 3, -1, -1))
        monkeypatch.setattr(gain, "load_images", lambda data, split: coloured)
    probe = probe_of(config, config.data, training, "cpu")
    assert not probe.held_out
    known = {image.numpy().tobytes() for image in training.images}
    levels = ((probe.real.images + 1) * 127.5).round().byte()
    assert {it.numpy().tobytes() for it in levels} <= known
    assert len({*probe.real.labels.tolist()}) == 10


def test_few_images_are_all_of_the_probe():
    config = tiny()
    training = load_images(config.data)
    few = replace(training, images=training.images[:5], labels=training.labels[:5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gain, "has_split", lambda data, split: False)
        assert len(probe_of(config, config.data, few, "cpu").real.images) == 5


# In a run


KEYS = {"gain/real", "gain/fake", "margin"}


def test_gains_are_logged_before_the_first_step_and_at_their_interval(tmp_path, capsys):
    run(tmp_path, {"steps": 5, "log.every": 3, "log.gain_every": 2, "log.norms_every": 5})
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [0, 2, 3, 4, 5]
    assert [line["step"] for line in lines if line.keys() & KEYS] == [0, 2, 4, 5]
    assert lines[0].keys() == {"step", *KEYS}
    told = capsys.readouterr().err
    assert "step 0/5 margin" in told
    assert "gain: measured on" not in told


def test_probes_do_not_change_the_training(tmp_path):
    changes = {"normalizer.kind": "spectral", "log.every": 4}
    run(tmp_path / "often", {**changes, "log.gain_every": 1})
    run(tmp_path / "seldom", {**changes, "log.gain_every": 100})
    states = [state_of(tmp_path / name) for name in ("often", "seldom")]
    for state in states:
        del state["config"]
    assert differing(*states) == []


def test_a_run_without_held_out_images_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gain, "has_split", lambda data, split: False)
    run(tmp_path, {"log.gain_every": 1})
    assert capsys.readouterr().err.count("gain: measured on training images") == 1


def test_a_run_that_was_killed_before_its_first_checkpoint_has_one_first_line(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        crash_before(2, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path)
    run(tmp_path)
    assert [line["step"] for line in log_of(tmp_path)] == [0, 4]


def test_time_of_probes_is_not_training(tmp_path, monkeypatch):
    """A slow probe: neither the seconds nor the speed of the training know of it."""
    original = gain.input_gain

    def slow(*args):
        time.sleep(0.5)
        return original(*args)

    monkeypatch.setattr(gain, "input_gain", slow)
    run(tmp_path, {"steps": 2, "log.gain_every": 1})
    first, *_, last = read_lines(tmp_path / "log.jsonl")
    assert first["seconds"] < 0.25
    assert "steps_per_second" not in first
    assert 0 < last["seconds"] < 0.5


# The closed form: g^2 = |w_head|^2 prod over layers of a r b, with a = (1 + slope^2) / 2 of the
# activation, b the share of a kernel's taps inside the map and r the energy of a weight's row.

SIGMA, SLOPE, SIZE, WIDTH = 0.02, 0.1, 32, 16


def predicted(D: nn.Module, kind: str) -> float:
    convs = [m for m in D.modules() if isinstance(m, nn.Conv2d)]
    (head,) = (m for m in D.modules() if isinstance(m, nn.Linear))
    energy = {"none": head.in_features * SIGMA**2, "convnorm": head.in_features * SIGMA**2}
    squared, size = energy.get(kind, 1.0), SIZE
    for conv in convs:
        n, outputs, stride = conv.weight[0].numel(), conv.out_channels, conv.stride[0]
        rows = {
            "none": n * SIGMA**2,
            "weight": 1.0,
            "convnorm": 1.0,
            "spectral": n / (outputs**0.5 + n**0.5) ** 2,
        }[kind]
        inside = 1 - 2 / (3 * size) if stride == 1 else 1 - 1 / size
        squared *= (1 + SLOPE**2) / 2 * rows * inside**2
        size //= stride
    return math.sqrt(squared)


@pytest.mark.parametrize("kind", ["none", "weight", "spectral", "convnorm"])
def test_gain_of_sngans_cnn_at_its_start_is_that_of_the_closed_form(kind):
    """Within 1.6 times: a factor lost in a normalizer, an initialization or the probe is larger."""
    torch.manual_seed(0)
    options = {"discriminator_width": WIDTH}
    D = build_discriminator(
        "sngan_cnn", Normalizer(kind), image_size=SIZE, channels=3, options=options
    )
    for _ in range(15 if kind == "spectral" else 0):  # power iterations
        D(batch(2, 3, SIZE, SIZE).images, None)
    found = input_gain(D, batch(8, 3, SIZE, SIZE), batch(8, 3, SIZE, SIZE, seed=1))
    for side in (found.real, found.fake):
        assert 1 / 1.6 < side / predicted(D, kind) < 1.6
