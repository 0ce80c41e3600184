"""The scores of the same images, files in folders, by torch-fidelity's command and by pytorch-fid.

Inception has random weights, the same file for all. Of its 2,048 features the first 128 count: an
eigendecomposition of all takes the others half a minute.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity.fidelity
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity import feature_extractor_inceptionv3 as peer
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from gan import fidelity
from gan.distances import FeatureSet, frechet_distance
from gan.extractors import Extractor, load_extractor
from gan.protocols import Protocol
from gan.records import ScoreRecord
from gan.reference import reference_of
from gan.scoring import score
from gan.sources import read_source

NUM, WIDTH, SPLITS = 8, 128, 2


class Narrow(peer.FeatureExtractorInceptionV3):
    """Inception without most of its features."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = zip(self.features_list, super().forward(x), strict=True)
        return tuple(part[:, :WIDTH] if name == "2048" else part for name, part in found)


@dataclass(frozen=True)
class Peers:
    """What ours make of images, and where others find the same.

    weights: a file of Inception's. fake, real: folders of PNG files. record: our scores.
    features: ours, (NUM, WIDTH) of either side.
    """

    weights: Path
    fake: Path
    real: Path
    record: ScoreRecord
    features: dict[str, Tensor]

    def ours(self, name: str) -> float:
        return (self.record.scores | self.record.spreads)[f"{name} (unverified inception)"]


def pictures(seed: int, contrast: float) -> Tensor:
    """Smooth random colour images, (NUM, 3, 32, 32) uint8."""
    rng = torch.Generator().manual_seed(seed)
    coarse = 0.5 + contrast * (torch.rand(NUM, 3, 6, 6, generator=rng) - 0.5)
    smooth = functional.interpolate(coarse, (32, 32), mode="bicubic")
    return (255 * smooth).round().clamp(0, 255).to(torch.uint8)


def random_inception(images: Tensor) -> dict[str, Tensor]:
    """Weights of a network that tells images apart: BatchNorm has seen some, classes differ."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(peer, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(peer.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        network = peer.FeatureExtractorInceptionV3("random", ["2048"])
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    network.fc.weight *= 10
    with torch.no_grad():
        network.train()(images)
    return network.state_dict()


@pytest.fixture(scope="module")
def peers(tmp_path_factory) -> Peers:
    folder = tmp_path_factory.mktemp("peers")
    images = {"fake": pictures(0, 1.0), "real": pictures(1, 1.6)}
    for side, of_side in images.items():
        (folder / side).mkdir()
        for place, image in enumerate(of_side):
            array = image.permute(1, 2, 0).numpy()
            Image.fromarray(array).save(folder / side / f"{place}.png")
    weights = folder / "weights.pth"
    torch.save(random_inception(images["real"][:2]), weights)
    whole = load_extractor("inception", "cpu", weights=weights, allow_unverified=True)
    features = {}

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        found, logits = whole.forward(images)
        side = "fake" if features else "real"  # the reference comes first
        features[side] = found[:, :WIDTH]
        return features[side], logits

    extractor: Extractor = replace(whole, forward=forward)
    fake, real = (
        read_source(str(folder / side), side, "train", torch.device("cpu"), "") for side in images
    )
    protocol = Protocol("peers", "inception", None, NUM, NUM, is_splits=SPLITS)
    reference = reference_of(
        real.images, protocol, extractor, origin=real.origin, cache_dir=folder / "cache"
    )
    record = score(fake.images, reference, extractor, seed=0, origin=fake.origin)
    return Peers(weights, folder / "fake", folder / "real", record, features)


def test_scores_of_folders_are_those_of_torch_fidelitys_command(peers, monkeypatch, capsys):
    """Catches another resize, scaling, order or layer, swapped sides, and biased logits."""
    options = {
        "--input1": peers.fake,
        "--input2": peers.real,
        "--feature-extractor": "narrow",
        "--feature-extractor-weights-path": peers.weights,
        "--feature-layer-isc": "logits_unbiased",
        **dict.fromkeys(("--feature-layer-fid", "--feature-layer-kid"), "2048"),
        "--feature-layer-prc": "2048",
        "--isc-splits": SPLITS,
        "--kid-subsets": 1,
        "--kid-subset-size": NUM,
    }
    flags = ["--cpu", "--isc", "--fid", "--kid", "--prc", "--json", "--no-cache", "--silent"]
    flags.append("--save-cpu-ram")  # without other processes
    words = [str(word) for option in options.items() for word in option]
    monkeypatch.setattr(sys, "argv", ["fidelity", *words, *flags])
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "narrow", Narrow)
    torch_fidelity.fidelity.main()
    theirs = json.loads(capsys.readouterr().out)
    for name, key in {
        "FD": "frechet_inception_distance",
        "KID": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
        "CS": "inception_score_mean",
        "CS std": "inception_score_std",
    }.items():
        assert peers.ours(name) == pytest.approx(theirs[key], rel=1e-4), name


@pytest.mark.parametrize("splits", [1, 7])
@pytest.mark.parametrize("num", [40, 41])
def test_inception_score_of_the_same_logits_is_theirs(num, splits):
    """Catches splits in order, where files come sorted by class, and probabilities for logits."""
    logits = 3 * torch.randn(num, 9, generator=torch.Generator().manual_seed(0))
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=2020)
    mean, std = fidelity.classifier_score(logits, splits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    if splits > 1:
        assert std == pytest.approx(theirs["inception_score_std"], rel=1e-9)
        in_order = isc_features_to_metric(logits, splits=splits, shuffle=False)
        assert mean != pytest.approx(in_order["inception_score_mean"], rel=1e-6)


def test_network_is_that_of_pytorch_fid(peers, monkeypatch):
    """On images that torch-fidelity has resized and scaled, as TensorFlow does: pytorch-fid's own
    way moves the FD of these by a fifth.
    """
    inception = pytest.importorskip("pytorch_fid.inception")
    state = torch.load(peers.weights, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    network = inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    files = sorted(peers.fake.glob("*.png"))[:2]
    images = torch.stack([torch.tensor(np.asarray(Image.open(file))) for file in files])
    resized = peer.interpolate_bilinear_2d_like_tensorflow1x(
        images.permute(0, 3, 1, 2).float(), size=(299, 299), align_corners=False
    )
    (found,) = network((resized - 128) / 128)
    torch.testing.assert_close(
        found[:, :WIDTH, 0, 0], peers.features["fake"][:2], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("enough", [False, True])
def test_frechet_distance_is_that_of_pytorch_fid(peers, monkeypatch, enough):
    """Of few images, whose covariance has no full rank, it is good to its rounding alone."""
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    original = fid_score.linalg.sqrtm  # whose `disp` newer versions of SciPy do not have
    monkeypatch.setattr(fid_score.linalg, "sqrtm", lambda product, disp: (original(product), 0))
    sides = list(peers.features.values())
    if enough:
        sides = [side[:, :6] for side in sides]
    fake, real = (FeatureSet(side) for side in sides)
    statistics = [(side.mean(0), np.cov(side, rowvar=False)) for side in (s.numpy() for s in sides)]
    theirs = fid_score.calculate_frechet_distance(*statistics[0], *statistics[1])
    assert frechet_distance(fake, real) == pytest.approx(theirs, rel=1e-5 if enough else 1e-3)
