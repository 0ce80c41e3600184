"""Networks of timm, on random tiny ones: no weights are downloaded, and none are large."""

import builtins
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import script
from torch import Tensor
from torch.nn import functional

from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.errors import InputError
from gan import timm_extractors
from gan.extractor import Extractor
from gan.extractors import extractor_named, load_extractor
from gan.feature_cache import cached_features
from gan.pillow import rgb_of_size
from gan.protocols import ALL_IMAGES
from gan.records import Origin, ScoreRecord
from gan.reference import reference_of
from gan.scoring import score
from gan.timm_extractors import dinov2_positions, timm_recipe

timm = pytest.importorskip("timm")
WIDTH = 32
TINY = {"embed_dim": WIDTH, "depth": 1, "num_heads": 2}
RESNET = "timm:resnet10t.c3_in1k"


def pictures(num: int, size: int = 32, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 5, 5, generator=rng)
    smooth = functional.interpolate(coarse, (size, size), mode="bicubic")
    return (255 * smooth).clamp(0, 255).to(torch.uint8)


def randomized(network: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter its own values: a LayerNorm of ones cannot be told from none."""
    rng = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    """A ViT/14 as small as can be, at the 518 pixels that DINOv2 was trained on."""
    network = randomized(timm.create_model(timm_extractors.DINOV2_MODEL, **TINY))
    smooth = torch.randn(1, WIDTH, 4, 4, generator=torch.Generator().manual_seed(2))
    smooth = functional.interpolate(smooth, (37, 37), mode="bicubic")
    network.pos_embed[:, 1:] = smooth.flatten(2).transpose(1, 2)
    return network


@pytest.fixture
def tiny(monkeypatch) -> None:
    """DINOv2's ViT-L as a tiny one."""
    create = timm.create_model

    def created(name: str, **options):
        return create(name, **(TINY if name == timm_extractors.DINOV2_MODEL else {}), **options)

    monkeypatch.setattr(timm, "create_model", created)


@pytest.fixture
def meta(vit, tmp_path) -> Path:
    """The tiny ViT's weights as Meta writes them."""
    file = tmp_path / "meta.pth"
    torch.save({**vit.state_dict(), "mask_token": torch.zeros(1, WIDTH)}, file)
    return file


def dinov2_by_hand(vit: torch.nn.Module, images: Tensor) -> Tensor:
    """facebookresearch/dinov2's vision_transformer.py on `vit`'s weights: (N, D)."""
    x = vit.patch_embed.proj(images)
    height, width = x.shape[-2:]
    x = torch.cat((vit.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), dim=1)
    positions = vit.pos_embed
    if x.shape[1] != positions.shape[1]:
        grid = positions[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        factors = (float(height + 0.1) / 37, float(width + 0.1) / 37)
        grid = functional.interpolate(grid, mode="bicubic", antialias=False, scale_factor=factors)
        assert grid.shape[-2:] == (height, width)
        grid = grid.permute(0, 2, 3, 1).view(1, -1, WIDTH)
        positions = torch.cat((positions[:, 0].unsqueeze(0), grid), dim=1)
    return vit.norm(vit.blocks(x + positions))[:, 0]


def test_features_of_dinov2_are_its_own_to_the_bit(vit, meta, tiny):
    """Catches timm's interpolation of positions, another token, a missing LayerNorm, another
    resize and another scaling.
    """
    images = pictures(3)
    extractor = load_extractor("dinov2", "cpu", weights=meta)
    arrays = [
        np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).resize((224, 224), 3))
        for i in images
    ]
    x = torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2)
    seen = rgb_of_size(images, 224)
    assert (x.int() - seen.int()).abs().max() <= 2
    assert (x == seen).double().mean() > 0.999
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (seen.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = dinov2_by_hand(vit, x)
    found = extractor(images)
    assert torch.equal(found.features, expected)
    assert found.logits is None


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [16, 96])
def test_images_are_resized_as_pillow_does(interpolation, size):
    image = pictures(1)[0]
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    array = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = np.asarray(array.resize((size, size), filters[interpolation]))
    found = rgb_of_size(image[None], size, interpolation)[0].permute(1, 2, 0)
    off = (found.int() - torch.tensor(expected).int()).abs()
    assert off.max() <= 1
    assert (off == 0).double().mean() > 0.99


def test_positions_of_the_trained_size_stay_as_they_are(vit):
    assert dinov2_positions(vit.pos_embed, 37) is vit.pos_embed
    assert dinov2_positions(vit.pos_embed, 16).shape == (1, 257, WIDTH)
    x = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vit(x), dinov2_by_hand(vit, x))


def test_safetensors_are_the_same_weights(vit, meta, tiny, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(vit.state_dict(), tmp_path / "timm.safetensors")
    first, again = (
        load_extractor("dinov2", "cpu", weights=tmp_path / name)
        for name in ("meta.pth", "timm.safetensors")
    )
    assert first.weights_sha256 == again.weights_sha256


def test_hash_is_of_the_tensors_and_not_of_their_file(vit, meta, tiny, tmp_path):
    """Catches two hashes of Meta's file and timm's, and one hash of two networks."""
    torch.save(dict(reversed(vit.state_dict().items())), tmp_path / "timm.pth")
    other = {**vit.state_dict(), "norm.bias": vit.norm.bias + 1}
    torch.save(other, tmp_path / "other.pth")
    names = ("meta.pth", "timm.pth", "other.pth")
    first, again, changed = (
        load_extractor("dinov2", "cpu", weights=tmp_path / name).facts for name in names
    )
    assert first.weights_sha256 == again.weights_sha256 != changed.weights_sha256
    assert first.details["file_sha256"] != again.details["file_sha256"]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(randomized(timm.create_model("resnet10t")).state_dict(), file)
    return file


def test_a_network_of_timm_sees_what_its_configuration_says(resnet):
    """Catches a crop, another size, another scaling, and features behind the classifier."""
    extractor = load_extractor(RESNET, "cpu", weights=resnet)
    recipe = timm_recipe("resnet10t")
    assert (recipe.model, recipe.size) == ("resnet10t.c3_in1k", 176)
    network = timm.create_model("resnet10t")
    network.load_state_dict(torch.load(resnet, weights_only=True))
    x = recipe(pictures(2))
    with torch.no_grad():
        maps = network.eval().forward_features(x)
        expected = network.forward_head(maps, pre_logits=True)
    assert x.shape == (2, 3, 176, 176)
    assert torch.equal(extractor(pictures(2)).features, expected)
    assert extractor.facts.details == {
        "timm": timm.__version__,
        "model": "resnet10t.c3_in1k",
        "size": 176,
        "resize": "bicubic, antialiased, on bytes as Pillow, without a crop",
        "mean": "0.485 0.456 0.406",
        "std": "0.229 0.224 0.225",
        "output": "what the classifier sees",
        "features": 512,
        "file_sha256": extractor.facts.details["file_sha256"],
    }


def test_a_score_says_what_it_is_and_is_never_called_fid(meta, resnet, tiny, tmp_path):
    """Catches a name without the size, a claim of verified weights, and a record that loses any."""
    for name, weights, label in (
        ("dinov2", meta, "FD (dinov2-vitl14@224)"),
        ("timm:resnet10t", resnet, "KID (timm:resnet10t.c3_in1k@176)"),
    ):
        extractor = load_extractor(name, "cpu", weights=weights)
        protocol = ALL_IMAGES.changed(extractor=extractor.spec.name)
        reference = reference_of(
            pictures(12), protocol, extractor, origin=Origin("real"), cache_dir=tmp_path
        )
        record = score(pictures(12, seed=1), reference, extractor, seed=0, origin=Origin("fake"))
        assert record.headline == label
        assert not any("FID" in each or "CS" in each for each in record.scores)
        assert record.extractor.verified is False
        assert record.doubts[0] == (
            f"nothing verifies that the weights {extractor.weights_sha256[:16]} are those of "
            f"{extractor.spec.name}"
        )
        assert from_json(ScoreRecord, json.loads(json.dumps(to_json(record))), "here") == record


def test_script_says_which_weights_a_short_name_means(resnet, tmp_path, monkeypatch):
    """Catches two protocols of one name, should timm's default tag change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = ("--num_fake", "10", "--num_real", "10", "--json", "record.json")
    timms = ("--extractor", "timm:resnet10t", "--weights", str(resnet))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(SystemExit, match="0"):
        script("fid.py", "digits:test", "digits", *timms, *few)
    record = from_json(ScoreRecord, json.loads(Path("record.json").read_text()), "record.json")
    assert record.protocol["extractor"] == record.extractor.name == RESNET


def test_cached_features_are_of_the_same_recipe(tmp_path):
    """Catches features of another version of timm, or of another scaling, from the cache."""

    def extractor(forward, **details) -> Extractor:
        spec = SimpleNamespace(name="timm:x")
        return Extractor(spec, "a", False, forward, torch.device("cpu"), details=details)

    def forward(images: Tensor, scale: float) -> tuple[Tensor, None]:
        return scale * images.float().flatten(1)[:, :2], None

    one, two = (extractor(partial(forward, scale=s), timm=f"1.0.{s}") for s in (1, 2))
    first = cached_features(pictures(3), one, tmp_path).features
    assert torch.equal(cached_features(pictures(3), two, tmp_path).features, 2 * first)


def test_loading_draws_nothing(meta, resnet, tiny):
    before = torch.get_rng_state()
    load_extractor("dinov2", "cpu", weights=meta)
    load_extractor(RESNET, "cpu", weights=resnet)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:nope", r"extractor: got timm:nope, expected a network of timm"),
        ("timm:resnet18.nope", r"extractor: got timm:resnet18.nope: Invalid pretrained tag"),
        ("timm:", r"extractor: got timm:, expected a network of timm"),
        ("vgg", r"extractor: got 'vgg', expected inception or .* or dinov2 or timm:NAME"),
    ],
)
def test_an_unknown_network_is_told_in_one_line(name, message):
    with pytest.raises(InputError, match=message) as caught:
        extractor_named(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (1, 32, 32)}, r"takes \(1, 32, 32\) by bicubic, expected square RGB"),
        ({"input_size": (3, 32, 64)}, "expected square RGB"),
        ({"interpolation": "nearest"}, "by nearest, expected square RGB by bicubic or bilinear"),
    ],
)
def test_preprocessing_that_is_not_pillows_is_refused(change, message, monkeypatch):
    config = SimpleNamespace(**{"input_size": (3, 32, 32), "interpolation": "bicubic"} | change)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
    with pytest.raises(InputError, match=message):
        extractor_named("timm:strange")


@pytest.mark.parametrize("name", ["dinov2", RESNET])
def test_without_timm_the_line_says_how_to_install_it(name, meta, monkeypatch):
    real = builtins.__import__

    def without(module: str, *args, **options):
        if module == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return real(module, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs timm, .*; pip install 'timm>=1\.0'"):
        load_extractor(name, "cpu", weights=meta)


def without(key: str, state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize("name", ["dinov2", RESNET])
@pytest.mark.parametrize("kind", ["absent", "junk", "lacking", "foreign", "no tensors", "listed"])
def test_wrong_weights_are_told_in_one_line(name, kind, meta, resnet, tiny, tmp_path):
    """Catches random weights in the place of those that the file lacks: timm can be lenient."""
    is_dinov2 = name == "dinov2"
    own, foreign = (
        torch.load(file, weights_only=True)
        for file in ((meta, resnet) if is_dinov2 else (resnet, meta))
    )
    lacking = without("norm.weight" if is_dinov2 else "layer1.0.bn1.weight", own)
    content, message = {
        "absent": (None, "cannot read these weights"),
        "junk": (None, "not a file of weights"),
        "no tensors": ({"epoch": 3}, "not a file of weights, expected names and tensors alone"),
        "listed": ([torch.zeros(1)], "not a file of weights, expected names and tensors alone"),
        "lacking": (lacking, "cannot be loaded as the weights of timm.* Missing key"),
        "foreign": (foreign, "pos_embed: got nothing" if is_dinov2 else "cannot be loaded as"),
    }[kind]
    file = tmp_path / "weights.pth"
    if kind == "junk":
        file.write_bytes(b"junk")
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(InputError, match=message) as caught:
        load_extractor(name, "cpu", weights=file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 51, WIDTH), (1, 1, WIDTH), (257, WIDTH)])
def test_positions_that_are_no_square_grid_are_refused(shape, meta, tiny):
    torch.save({**torch.load(meta, weights_only=True), "pos_embed": torch.zeros(shape)}, meta)
    with pytest.raises(InputError, match=r"meta\.pth: pos_embed: got \("):
        load_extractor("dinov2", "cpu", weights=meta)


def test_weights_that_cannot_be_downloaded_are_told_in_one_line(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("Network is unreachable\nand so on")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    for name, message in (
        ("dinov2", r"dinov2_vitl14_pretrain\.pth is not in .*could not be downloaded"),
        (
            RESNET,
            r"download: cannot be loaded as the weights of .*resnet10t\.c3_in1k .*--weights FILE",
        ),
    ):
        with pytest.raises(InputError, match=message):
            load_extractor(name, "cpu")
