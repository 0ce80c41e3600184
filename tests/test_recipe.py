"""The recipe of docs/extending.md, and nothing else, makes a normalizer that the suite knows."""

import copy
import re
from dataclasses import replace

import pytest
import reference
import torch
from runs import ROOT, classifier_run, run, tiny
from torch import nn

from convnorm import CATALOGUE, Normalizer
from convnorm.experiment.config import parse
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.averaging import averaged, follow, running_statistics
from convnorm.spectrum import layer_norms
from gan.config import GanConfig
from gan.networks import build_discriminator
from gan.normalizer import GanNormalizer


@pytest.fixture(autouse=True)
def rms():
    """The kind as the page registers it, for one test."""
    section = (ROOT / "docs/extending.md").read_text().split("## A normalizer")[1]
    (recipe,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    known = dict(CATALOGUE)
    exec(recipe, {})
    assert CATALOGUE.keys() - known.keys() == {"rms"}
    yield
    CATALOGUE.clear()
    CATALOGUE.update(known)


def discriminator(**options):
    torch.manual_seed(0)
    normalize = Normalizer("rms", **options)
    return build_discriminator(
        "dcgan", normalize, image_size=16, channels=1, options={"discriminator_width": 4}
    )


def test_it_normalizes_every_convolution():
    D = discriminator()
    assert len([m for m in D.modules() if type(m).__name__ == "RMSNorm"]) == 2
    x = torch.randn(3, 1, 16, 16) * 100
    torch.testing.assert_close(D[0](x).square().mean((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(D(x)[:1], D(x[:1]))


def test_it_has_a_scale():
    """Which it says nothing of: the map is multiplied, and so is the head."""
    x = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(discriminator(scale=3.0)[0](x), 3 * discriminator()[0](x))
    torch.testing.assert_close(
        discriminator(scale=3.0)(x), 9 * discriminator()(x), rtol=0.01, atol=1e-6
    )


def test_spectra_are_those_of_the_convolution_alone():
    D = discriminator()
    sizes = {"0": (1, 16, 16), "2": (4, 8, 8)}
    norms = layer_norms(D, torch.Size((1, 16, 16)))
    assert norms.keys() == sizes.keys()
    for name, size in sizes.items():
        conv = D.get_submodule(name)[0]
        expected = reference.sigma_max(conv, size)
        assert norms[name].operator_norm == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("tracking", [False, True])
def test_averages_are_right(tracking):
    if tracking:
        CATALOGUE["rms"] = replace(
            CATALOGUE["rms"],
            output=lambda channels, options: nn.InstanceNorm2d(channels, track_running_stats=True),
            is_affine=True,
        )
    D = discriminator()
    average, before = averaged(D, 0.9), copy.deepcopy(D)
    with torch.no_grad():
        for parameter in D.parameters():
            parameter += 1
    D(torch.randn(4, 1, 16, 16))
    follow(average, D, 0.75)
    assert len(running_statistics(D)) == (4 if tracking else 0)
    for name, value in average.state_dict().items():
        old, new = before.state_dict()[name], D.state_dict()[name]
        expected = old.lerp(new, 0.25) if value.is_floating_point() else new
        assert torch.equal(value, expected)
        assert name.endswith("num_batches_tracked") or not torch.equal(old, new)


def test_configs_check_it():
    """It does not mix the images of a batch, and leaves the head's weights to a clip."""
    argv = ["--normalizer.kind", "rms", "--loss.gradient_penalty", "10"]
    config, _ = parse(GanConfig, "gan", "sngan_none", argv)
    assert config.normalizer == GanNormalizer("rms")
    tiny({"normalizer.kind": "rms", "loss.weight_clip": 0.1})
    assert Normalizer("rms").ignores_scale
    with pytest.raises(InputError, match=r"^normalizer\.kind: 'rmz' .* affine, rms$"):
        tiny({"normalizer.kind": "rmz"})


@pytest.mark.parametrize(
    ("runner", "changes"), [(run, {"loss.r1": 1.0}), (classifier_run, {"train.ema_decay": 0.5})]
)
def test_it_trains_in_both_pipelines(runner, changes, tmp_path):
    summary = runner(tmp_path, {"normalizer.kind": "rms", **changes})
    assert summary
    assert (tmp_path / "last.pt").exists()
