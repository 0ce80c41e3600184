"""Certified accuracy: exact where the network is linear, and out of reach of every attack."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from linear import DIGITS, Rounded, as_of_a_run, evaluated, run, text
from torch import Tensor, nn

from classification.attacks import pgd
from classification.certificate import (
    RADII,
    certified_radii,
    is_certified,
    lipschitz_bound,
)
from classification.evaluation_files import load, save
from classification.evaluation_report import table
from classification.networks import build_network
from classification.networks.layers import Standardize
from convnorm import Normalizer
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.network_bound import network_bound

STD = 0.25


def linear_network(rows: Tensor) -> nn.Sequential:
    """Logits of images (N, 1, 4, 4) in [0, 1] that are standardized first."""
    head = nn.Linear(16, len(rows))
    head.weight.data = rows
    return nn.Sequential(Standardize([0.5], [STD]), nn.Flatten(), head).eval()


def images(n: int = 12, size: int = 4) -> Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(2))


def distances(network: nn.Sequential, x: Tensor) -> Tensor:
    """To the nearest decision boundary, by hand: margins over the norms of differences of rows."""
    logits, W = network(x).double(), network[2].weight.double() / STD
    top = logits.argmax(1)
    margins = logits.gather(1, top[:, None]) - logits
    norms = (W[top][:, None] - W).norm(dim=2)
    return (margins / norms).nan_to_num(math.inf).amin(1)


@torch.no_grad()
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_it_is_the_distance_to_the_boundary_where_rows_are_orthonormal(factor):
    """A lost 1 / std, a lost root of 2, or a margin to the wrong class is a wrong distance."""
    rows = torch.linalg.qr(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)))[0].T
    network, x = linear_network(factor * rows), images()
    bound, proof = lipschitz_bound(network, x[:1])
    assert bound == pytest.approx(factor / STD, rel=1e-5)
    assert "norms multiplied" in proof
    radii = certified_radii(network(x), bound)
    assert torch.allclose(radii, distances(network, x), rtol=1e-4)


@torch.no_grad()
def test_it_is_never_more_than_that_distance():
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    network, x = linear_network(rows), images(100)
    radii = certified_radii(network(x), lipschitz_bound(network, x[:1])[0])
    assert (radii < distances(network, x)).all()


def test_an_image_on_the_border_of_its_certificate_has_none():
    """At a distance of the radius the two classes are level; the radii are the published ones."""
    assert RADII == (36 / 255, 72 / 255, 108 / 255, 255 / 255)
    radii = torch.tensor(RADII, dtype=torch.float64)
    assert is_certified({"radius": radii}, RADII[1]).tolist() == [False, False, True, True]


def cnn(kind: str, arch: str = "simple_cnn") -> nn.Module:
    torch.manual_seed(0)
    size, data = {"image_size": 8, "channels": 1}, {"mean": [0.5], "std": [0.3]}
    return build_network(
        arch, Normalizer(kind), num_classes=4, **size, **data, options={"width": 4}
    ).eval()


@pytest.mark.parametrize("arch", ["simple_cnn", "resnet18"])
def test_no_attack_fools_an_image_within_its_certificate(arch):
    """`aol` certifies images of a network with ReLUs, strides, pooling, and of one with sums."""
    network, x = cnn("aol", arch), images(16, size=8)
    with torch.no_grad():
        logits, bound = network(x), lipschitz_bound(network, x[:1])[0]
    radii, y = certified_radii(logits, bound), logits.argmax(1)
    assert (radii > 0).all()
    eps = radii.median().item()
    settings = {"norm": "l2", "step_size": eps / 4, "steps": 20, "restarts": 2}
    found = pgd(network, x, y, eps=eps, **settings)
    with torch.no_grad():
        safe = network(found).argmax(1) == y
    assert safe[radii > eps].all()
    assert (radii > eps).any()


def test_aol_certifies_what_the_norms_of_convnorm_do_not():
    """At 1/4 of a grey level; layers of norm 1 and less against norms that multiply and add up."""
    x, certified = images(16, size=8), {}
    for kind, arch in (("aol", "simple_cnn"), ("convnorm", "resnet18"), ("batch", "simple_cnn")):
        network = cnn(kind, arch)
        with torch.no_grad():
            bound = lipschitz_bound(network, x[:1])[0]
            certified[kind] = certified_radii(network(x), bound) > 1e-3
        assert math.isfinite(bound)  # BatchNorm in evaluation is an affine map
    assert certified["aol"].any()
    assert not certified["convnorm"].any()


def test_orthogoniums_convolutions_are_proven_to_have_a_norm_of_1():
    """With strides and zeros around the map; QR makes them orthogonal up to rounding."""
    layers = pytest.importorskip("orthogonium.layers")
    made = pytest.importorskip("orthogonium.reparametrizers")
    exact = made.OrthoParams(made.BatchedIdentity, made.BatchedQROrthogonalization)
    for size in ((3, 8, 3, 1, 1), (8, 16, 3, 2, 1), (8, 4, 4, 2, 1)):
        conv = layers.AdaptiveOrthoConv2d(*size, padding_mode="zeros", ortho_params=exact)
        bound, how = lipschitz_bound(nn.Sequential(conv), torch.zeros(1, size[0], 8, 8))
        assert 1 - 1e-5 < bound < 1.01, (size, how)


# -------------------------------------------------------------------------------- in evaluations


@pytest.fixture
def loaded(tmp_path):
    """The classifier of `linear`, its logits less their mean: that halves the bound at least."""
    found = as_of_a_run(tmp_path)
    head = found.network[1]
    for values in (head.weight.data, head.bias.data):
        values -= values.mean(0)
    return found


def test_its_accuracies_count_images_that_are_right_and_far_from_a_boundary(loaded):
    record, right = evaluated(loaded, "certified", num=None)
    test, network = load_images(DIGITS, "test"), loaded.network
    x = test.images.float() / 255
    bound = network_bound(network, x[:1])
    assert record.certified.lipschitz == bound
    with torch.no_grad():
        logits = network(x).double()
    top, second = logits.topk(2).values.unbind(1)
    radii = (top - second) / (bound * 2**0.5)
    wrong = logits.argmax(1) != test.labels
    counts = [int(((radii > r) & ~wrong).sum()) for r in RADII]
    assert [point.accuracy.correct for point in record.certified.points] == counts
    assert record.clean.top1.correct > counts[0] > counts[1]
    assert torch.equal(right["certified"], (radii > 36 / 255) & ~wrong)
    (line,) = (line for line in table(record).splitlines() if "l2 36/255" in line)
    assert line.startswith("certified ")
    assert f"{100 * counts[0] / 360:.2f} %" in line


def test_it_goes_on_from_what_was_measured_and_stays_in_the_record(loaded, monkeypatch):
    """The bound of a large network takes minutes."""
    first = run(loaded, "certified")

    def again(*_):
        raise AssertionError("was bounded again")

    monkeypatch.setattr("classification.certificate.network_bound", again)
    assert text(run(loaded, "certified")) == text(first) == text(run(loaded))


def test_a_network_without_a_bound_has_no_image_certified_and_is_said_to(loaded):
    record = run(replace(loaded, network=Rounded(loaded.network)), "certified")
    assert record.certified.lipschitz is None
    assert [point.accuracy.correct for point in record.certified.points] == [0] * 4
    lines = [line for line in table(record).splitlines() if line.startswith("certified ")]
    assert len(lines) == 4
    assert all("no bound: " in line and "has no bound here" in line for line in lines)


def test_a_network_that_is_always_wrong_has_none_certified(loaded):
    wrong = replace(loaded, network=nn.Sequential(*loaded.network, Negative()))
    record = run(wrong, "certified", num=5)
    assert record.clean.top1.correct == 0
    assert record.certified.points[0].accuracy.correct == 0


class Negative(nn.Linear):
    """The logits turned around, as a layer that has a bound."""

    def __init__(self):
        super().__init__(10, 10, bias=False)
        self.weight.data = -torch.eye(10)


def test_a_record_is_read_with_its_certificate(loaded):
    """And refused with flags of other images than it counts."""
    loaded.file.write_bytes(b"weights")
    loaded = replace(loaded, sha256=hashlib.sha256(b"weights").hexdigest())
    record, right = evaluated(loaded, "certified")
    file = loaded.file.parent / "evaluation" / "best.json"
    save(record, right, file)
    assert load(loaded.file, file)[0].certified == record.certified
    save(record, right | {"certified": ~right["certified"]}, file)
    with pytest.raises(InputError, match=r"best.npz: certified: right about \d+ of 60 images"):
        load(loaded.file, file)
