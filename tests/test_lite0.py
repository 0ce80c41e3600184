"""EfficientNet-Lite0: the published weights in the published network, and what its scores see."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from convnorm.experiment.errors import InputError
from gan import extractors, lite0_network
from gan.distances import FeatureSet, kernel_distance
from gan.extractor import Extractor
from gan.extractors import EXTRACTORS, load_extractor
from gan.lite0_network import LITE0_WEIGHTS, Lite0, lite0_input
from gan.protocols import PROTOCOLS


def pictures(num: int, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth random colour images, (num, 3, size, size) uint8."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 5, 5, generator=rng)
    smooth = functional.interpolate(coarse, (size, size), mode="bicubic")
    return (255 * smooth).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    return load_extractor("lite0@96", "cpu")


@pytest.mark.parametrize(("size", "num"), [(32, 2), (96, 2), (97, 2), (224, 5)])
def test_network_is_that_of_timm_to_the_bit(size, num):
    """Catches another padding, another order of weights and an epsilon of BatchNorm."""
    timm = pytest.importorskip("timm")
    weights = torch.load(LITE0_WEIGHTS, weights_only=True)
    theirs = timm.create_model("tf_efficientnet_lite0")
    assert list(map(len, (theirs.state_dict(), weights))) == [len(Lite0().state_dict())] * 2
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights.values(), strict=True)))
    ours = Lite0()
    ours.load(weights)
    x = lite0_input(pictures(num), size)
    with torch.no_grad():
        features, logits = ours.eval()(x)
        maps = theirs.eval().forward_features(x)
        expected = theirs.forward_head(maps, pre_logits=True)
        assert torch.equal(features, expected)
        assert torch.equal(logits, theirs.classifier(expected))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_first_maps_are_small_on_a_cpu_alone(device):
    """In parts, 224 pixels take two thirds of the time there; a GPU would wait between them."""
    seen = []
    with FakeTensorMode(), torch.device(device):
        network = Lite0().eval()
        for index in (0, lite0_network.LARGE):
            network.body[index].register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
        network(torch.zeros(8, 3, 224, 224))
    assert seen == ([3, 3, 2, 8] if device == "cpu" else [8, 8])


def test_weights_of_another_network_are_refused():
    weights = dict(Lite0().state_dict())
    weights["head.bias"] = weights["head.bias"][:-1]
    with pytest.raises(ValueError, match="not the weights"):
        Lite0().load(weights)


@pytest.mark.parametrize("size", [16, 96])
def test_images_are_resized_as_pillow_does_and_scaled_as_published(size):
    """Catches bicubic without antialiasing, float rounding, and ImageNet's mean and deviation."""
    image = pictures(1)
    array = image[0].permute(1, 2, 0).numpy()
    resized = np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC))
    expected = (torch.tensor(resized).permute(2, 0, 1).float() - 127) / 128
    torch.testing.assert_close(lite0_input(image, size)[0], expected, atol=1.01 / 128, rtol=0)
    assert (lite0_input(image, size)[0] == expected).double().mean() > 0.99


# Mean and deviation of all, the largest of the first image, a zero, the deviation of the last.
FROZEN = [0.25623, 0.71081, 5.85489, 0.0, 0.64294]


def test_features_are_those_of_before(lite0):
    """Catches any change of network, weights or preprocessing: scores are comparable by name."""
    features = lite0(pictures(8)).features
    assert features.shape == (8, 1280)
    assert 0 <= features.min() < features.max() <= 6
    found = [features.mean(), features.std(), features[0].max(), features[3, 1], features[7].std()]
    assert torch.stack(found).tolist() == pytest.approx(FROZEN, abs=1e-4)


def test_features_do_not_depend_on_batch_or_channels_and_draw_nothing(lite0):
    images = pictures(20)
    before = torch.get_rng_state()
    whole = lite0(images).features
    seven = Extractor(lite0.spec, "", True, lite0.forward, lite0.device, batch_size=7)(images)
    torch.testing.assert_close(seven.features, whole, atol=1e-5, rtol=1e-4)
    gray = images[:4, :1]
    torch.testing.assert_close(lite0(gray).features, lite0(gray.expand(-1, 3, -1, -1)).features)
    load_extractor("lite0@96", "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def crops(num: int) -> Tensor:
    """Crops of the two photographs that come with scikit-learn, (num, 3, 32, 32) uint8."""
    photos = [torch.tensor(image[::4, ::4].copy()) for image in load_sample_images().images]
    rng = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 70, (num, 2), generator=rng).tolist()
    found = [photos[i % 2][y : y + 32, x : x + 32] for i, (y, x) in enumerate(corners)]
    order = torch.randperm(num, generator=rng)
    return torch.stack(found).permute(0, 3, 1, 2)[order].contiguous()


def noisy(images: Tensor, levels: float) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    noise = levels * torch.randn(images.shape, generator=rng)
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def test_kid_grows_with_noise(lite0):
    """What it is for: to rank. 60 images suffice where a Fréchet distance is all bias."""
    photos = crops(120)
    real, other = FeatureSet(lite0(photos[::2]).features), photos[1::2]
    found = [
        kernel_distance(FeatureSet(lite0(noisy(other, levels)).features), real)
        for levels in (0, 16, 40)
    ]
    assert abs(found[0].value) < 4 * found[0].error
    for less, more in pairwise(found):
        assert more.value > less.value + less.error


def test_classes_count_at_the_trained_size_alone(lite0):
    assert lite0(pictures(2)).logits is None
    assert "classifier" not in EXTRACTORS["lite0@96"].scores
    assert "classifier" in EXTRACTORS["lite0@224"].scores
    assert load_extractor("lite0@224", "cpu")(pictures(1)).logits.shape == (1, 1000)


def test_kid_is_the_headline_and_the_size_is_in_every_name(lite0):
    assert lite0.headline == "KID (lite0@96)" == next(iter(lite0.scores.values())).name
    assert all(score.name.endswith("(lite0@96)") for score in lite0.scores.values())
    assert not any("FID" in score.name or "IS" in score.name for score in lite0.scores.values())
    for name in ("kid10k_train", "kid10k_test"):
        assert (PROTOCOLS[name].extractor, PROTOCOLS[name].num_real) == ("lite0@96", 10_000)


def test_changed_or_given_weights_are_refused(tmp_path, monkeypatch):
    """Catches features of other weights under the same name."""
    file = tmp_path / "lite0.pth"
    buffer = io.BytesIO()
    torch.save({}, buffer)
    file.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"--weights: got .*, but lite0@96 has weights of its own"):
        load_extractor("lite0@96", "cpu", weights=file)
    monkeypatch.setattr(extractors, "LITE0_WEIGHTS", file)
    with pytest.raises(InputError, match=r"lite0\.pth: its SHA-256 is .*, expected 57934424"):
        load_extractor("lite0@96", "cpu")
