"""Costs against textbook numbers, and a network left as it was found."""

import subprocess
import sys

import pytest
import torch
from runs import CLASSIFIER_KINDS, ROOT, classifier_run, run, tiny, tiny_classifier
from torch import nn

from classification.models import build as build_classifier
from classification.networks import build_network
from convnorm import CATALOGUE, ConvNorm2d, Normalizer
from convnorm.experiment.run.cost import macs
from gan.models import build
from gan.networks import ARCHITECTURES, build_discriminator

every_kind = pytest.mark.parametrize("kind", CATALOGUE)
ON_THE_WEIGHT = (
    "spectral",
    "bidirectional",
    "operator",
    "convnorm",
    "spectral_convnorm",
    "oni",
    "own",
    "aol",
    "chain",
)


def discriminator(kind, arch="sngan_cnn", **options):
    torch.manual_seed(0)
    normalize = Normalizer(kind, **options)
    return build_discriminator(
        arch, normalize, image_size=32, channels=3, options={"discriminator_width": 16}
    )


def images(num, size=32, channels=3):
    return torch.zeros(num, channels, size, size)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 8 * 3 * 9 * 16 * 16),
        (nn.Conv2d(3, 8, 4, stride=2, padding=1), 8 * 3 * 16 * 8 * 8),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 6 * 1 * 9 * 16 * 16),
        (nn.ConvTranspose2d(3, 8, 4, stride=2, padding=1), 3 * 8 * 16 * 16 * 16),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), 7680),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), 0),
    ],
)
def test_plain_layers_have_their_textbook_number(layer, expected):
    """Catches flops in the place of multiply-adds, and a sum over the batch."""
    assert macs(layer, images(4, 16)) == expected


class Transform(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (torch.fft.rfft2, 2.5 * 3 * 256 * 8),
        (lambda x: torch.fft.irfft2(x[..., :9] + 0j, s=(16, 16)), 2.5 * 3 * 256 * 8),
        (lambda x: torch.fft.fft2(x + 0j), 5 * 3 * 256 * 8),
        (torch.fft.rfft, 2.5 * 3 * 256 * 4),
        (lambda x: torch.mv(x[0, 0], x[0, 1, 0]), 2 * 256 / 4),
        (lambda x: torch.linalg.eigh(x), 9 * 3 * 16**3),
        (lambda x: torch.linalg.solve(x + torch.eye(16), x), 3 * (2 / 3 + 2) * 16**3),
    ],
)
def test_what_normalizes_has_a_formula(function, flops):
    """Without one, an FFT, a power iteration or an orthogonalization would look free."""
    assert macs(Transform(function), images(4, 16)) == round(flops / 2)


@every_kind
def test_the_batch_shares_what_depends_on_the_weight_alone(kind):
    """Catches a number of the whole batch, and one that leaves out gains or power iterations."""
    network, plain = discriminator(kind), macs(discriminator("none"), images(8))
    eight, sixteen = (macs(network, images(num)) for num in (8, 16))
    if kind in ON_THE_WEIGHT:
        assert eight > sixteen > plain
    else:
        assert eight == sixteen >= plain


def test_resnet18_has_its_published_number_and_native_convnorm_little_more():
    options = {"channels": 3, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def resnet(kind, **other):
        network = build_network("resnet18", Normalizer(kind, **other), num_classes=10, **options)
        return macs(network, images(16))

    plain, full, native = (
        resnet("none"),
        resnet("convnorm", affine=True, batch_norm=True),
        resnet("convnorm", affine=True, batch_norm=True, grid="native"),
    )
    assert plain == pytest.approx(0.56e9, rel=0.01)
    assert 1.8 < full / plain < 2.1
    assert 1.02 < native / plain < 1.1


def test_native_is_cheaper_where_layers_are_strided():
    full, native = (macs(discriminator("convnorm", grid=g), images(8)) for g in ("full", "native"))
    assert macs(discriminator("none"), images(8)) < native < full / 2


@every_kind
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_discriminator_is_counted_without_a_trace(kind, arch):
    """Catches power iterations moved on, batch statistics and random numbers drawn by the count."""
    normalize = Normalizer(kind, affine=True, batch_norm=True, multiplier=True)
    D = build_discriminator(
        arch, normalize, image_size=16, channels=1, options={"discriminator_width": 4}
    ).eval()
    next(iter(D.modules())).training = True
    modes = [module.training for module in D.modules()]
    before = {name: value.clone() for name, value in D.state_dict().items()}
    state = torch.get_rng_state()
    assert macs(D, images(4, 16, 1)) > 10_000
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in D.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in D.state_dict().items())
    assert all(p.grad is None for p in D.parameters())


@pytest.mark.parametrize("kind", CLASSIFIER_KINDS)
def test_every_classifier_is_counted(kind):
    config = tiny_classifier({"normalizer.kind": kind})
    assert macs(build_classifier(config, 10, (0.5,), (0.5,)), images(4, 8, 1)) > 1000


def test_dropout_leaves_the_random_state():
    state = torch.get_rng_state()
    macs(nn.Dropout(), images(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_image_more_costs_what_filters_it():
    """A filter of its own: 3 x 3 circular maps of 8 channels, each FFT there and back."""
    layer = ConvNorm2d(8, 8, 3, padding=1, padding_mode="circular", affine=False, batch_norm=False)
    conv, ffts = 8 * 8 * 9 * 16 * 16, 2 * 8 * 2.5 * 256 * 8 / 2
    few, many = (macs(layer, images(num, 16, 8)) * num for num in (10, 20))
    assert (many - few) / 10 == pytest.approx(conv + ffts, rel=1e-3)


def test_summaries_say_what_an_image_costs(tmp_path):
    """At the batch sizes of the run: of another, the shared part would be another."""
    changes = {"normalizer.kind": "spectral", "train.generator_batch_size": 12}
    generator, discriminator = build(tiny(changes), 1)
    summary = run(tmp_path / "gan", changes)
    assert summary["device_memory"] is None  # it is a GPU's
    assert summary["macs"] == {
        "generator": macs(generator, torch.zeros(12, 8)),
        "discriminator": macs(discriminator, images(8, 16, 1)),
    }
    network = build_classifier(tiny_classifier(), 10, (0.5,), (0.5,))
    expected = macs(network, images(40, 8, 1))
    assert classifier_run(tmp_path / "classifier")["macs"] == expected


def test_peak_memory_is_this_process_s_alone():
    """On Linux, getrusage gives a process the peak of the one that started it: here 1 GiB."""
    code = (
        "import torch; from convnorm.experiment.run.cost import peak_memory as peak; "
        "cpu = torch.device('cpu'); print(peak(cpu)); x = torch.ones(2**26); print(peak(cpu))"
    )
    held = bytearray(b"x") * 2**30
    del held
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert 2**26 < before < 2**30
    assert after - before == pytest.approx(2**28, rel=0.1)
