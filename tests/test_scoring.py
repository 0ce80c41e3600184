"""The scores against closed forms, and their records against what could be mistaken."""

import hashlib
import io
import json
import math
import os
import pickle
import random
import urllib.error
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.data import DataConfig, load_images, pixels
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Metric
from convnorm.experiment.run.distributed import ALONE
from convnorm.experiment.streams import generator
from gan import digits_network, extractors, fidelity
from gan import reference as reference_module
from gan.digits_network import DIGITS_WEIGHTS
from gan.distances import FeatureSet, expected_coverage, frechet_distance, kernel_distance
from gan.extractor import Extractor, ExtractorSpec, Features
from gan.extractors import EXTRACTORS, load_extractor
from gan.feature_cache import cached_features, sha256_of
from gan.keys import OPTIONS, REPORTED, SELECTING
from gan.models import PART
from gan.protocols import PROTOCOLS, Protocol, protocol_named
from gan.records import ExtractorFacts, Origin, ScoreRecord
from gan.reference import Reference, floor, numbers, reference_of, subset
from gan.score_names import FROM_FEATURES, FROM_LOGITS, metrics, renamed
from gan.scoring import Scorer, score

SMALL = Protocol("small", "digits", "train", None, None, is_splits=2)
NOISE = Origin("noise", "train")


@pytest.fixture(scope="module")
def digits_extractor() -> Extractor:
    return load_extractor("digits", "cpu")


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_images(DataConfig("digits", image_size=16), "train").images


def stub(sha256: str = "a" * 64, scale: float = 1.0, name: str = "digits") -> Extractor:
    """An extractor whose features are a few pixels, and that counts the images it sees."""

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        forward.num_seen += len(images)
        pixels = images.float().flatten(1) / 255
        return scale * pixels[:, :4], pixels[:, :3]

    forward.num_seen = 0
    return Extractor(EXTRACTORS[name], sha256, True, forward, torch.device("cpu"))


def noise(num: int, seed: int = 0, size: int = 4) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, 1, size, size), generator=rng, dtype=torch.uint8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The numbers


def test_classifier_score_is_between_one_and_the_number_of_classes():
    """Catches probabilities in the place of logits, and a missing exponential."""
    sure = 100 * torch.eye(7).repeat(50, 1)
    assert fidelity.classifier_score(sure, 1)[0] == pytest.approx(7)
    assert fidelity.classifier_score(torch.ones(50, 7), 5) == pytest.approx((1, 0))


@pytest.mark.parametrize(
    ("num", "splits", "has_spread"),
    [(20, 10, True), (19, 10, False), (10, 10, False), (20, 1, False)],
)
def test_classifier_score_has_a_spread_where_splits_can_differ(num, splits, has_spread):
    """Catches 0 of a single split, and of splits of one image, which all score 1."""
    score, std = fidelity.classifier_score(3 * normal(num, 5), splits)
    assert 1 <= score <= 5
    assert (std > 1e-3) if has_spread else math.isnan(std)


def against(fake: Features, real: Features) -> dict:
    """The numbers of generated images against real ones."""
    points, protocol = FeatureSet(real.features), replace(SMALL, num_fake=None)
    _, bias = floor(real, protocol, FROM_FEATURES | FROM_LOGITS)
    reference = Reference(points, protocol, None, bias, NOISE, ())
    return numbers(FeatureSet(fake.features), fake.logits, reference)


def test_collapse_has_high_precision_and_low_recall():
    """Catches swapped arguments: a generator with one good mode is precise and covers little."""
    real = normal(300, 4)
    collapsed = real[:1] + 0.01 * normal(300, 4, seed=1)
    fake, real = (Features(side, normal(300, 3)) for side in (collapsed, real))
    result = against(fake, real)
    assert result["precision"] == 1
    assert result["recall"] < 0.05
    assert result["coverage"] < 0.1


def test_images_against_themselves_are_perfect(digits, digits_extractor):
    features = digits_extractor(digits[:200])
    result = against(features, features)
    assert abs(result["frechet"]) < 1e-6
    assert result["precision"] == result["recall"] == result["coverage"] == 1
    assert result["kernel"] < 1e-6


def test_scores_see_what_is_wrong_with_images(digits, digits_extractor):
    """Catches features that say nothing: noise is far from digits, digits are at the floor."""
    real, fake = digits_extractor(digits[:400]), digits_extractor(digits[400:800])
    bad = digits_extractor(noise(400, size=16))
    at_floor, far = (against(side, real) for side in (fake, bad))
    assert far["frechet"] > 10 * at_floor["frechet"] > 20 * abs(at_floor["frechet_corrected"])
    assert far["kernel"] > 10 * abs(at_floor["kernel"])
    assert abs(at_floor["kernel"]) < 4 * at_floor["kernel_error"]
    assert far["precision"] < 0.1 < at_floor["precision"]
    assert far["coverage"] < 0.1 < 0.9 < at_floor["coverage"]
    assert far["classifier"] < at_floor["classifier"]


# The extractors


def test_features_do_not_depend_on_the_batch_size(digits, digits_extractor):
    """Catches a batch normalization left in training mode and images lost at the end."""
    in_batches = [replace(digits_extractor, batch_size=size)(digits[:20]) for size in (7, 20)]
    torch.testing.assert_close(*in_batches)
    assert in_batches[0].features.shape == (20, 64)


def test_digits_extractor_is_small_and_right_on_held_out_digits(digits_extractor):
    """Catches shipped weights that are not those of the record beside them."""
    facts = json.loads(DIGITS_WEIGHTS.with_suffix(".json").read_text())
    test = load_images(DataConfig("digits", image_size=16), "test")
    accuracy = (digits_extractor(test.images).logits.argmax(1) == test.labels).float().mean().item()
    assert accuracy >= 0.97
    assert accuracy == pytest.approx(facts["test_accuracy"], abs=1e-4)
    assert len(test.labels) == facts["num_test"]
    assert DIGITS_WEIGHTS.stat().st_size < 500_000


def test_digits_extractor_takes_other_sizes_and_colours(digits, digits_extractor):
    """Catches RGB digits that are scored as something else than their gray twins."""
    gray = digits_extractor(digits[:20]).logits
    rgb = digits_extractor(digits[:20].expand(-1, 3, -1, -1)).logits
    large = load_images(DataConfig("digits", image_size=32), "train").images[:20]
    torch.testing.assert_close(rgb, gray)
    assert torch.equal(digits_extractor(large).logits.argmax(1), gray.argmax(1))


def test_changed_digits_weights_are_refused(tmp_path, monkeypatch):
    """Catches a scale of its own: features of other weights are not comparable."""
    file = tmp_path / DIGITS_WEIGHTS.name
    file.write_bytes(DIGITS_WEIGHTS.read_bytes() + b" ")
    facts = DIGITS_WEIGHTS.with_suffix(".json").read_text()
    file.with_suffix(".json").write_text(facts)
    monkeypatch.setattr(extractors, "DIGITS_WEIGHTS", file)
    with pytest.raises(InputError, match=r"digits_extractor\.pt: its SHA-256 is"):
        load_extractor("digits", "cpu")


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.victim,))


@pytest.mark.parametrize("content", ["junk", "hostile", "empty", "tensor", "keys"])
def test_wrong_inception_files_end_in_one_line_and_run_no_code(tmp_path, content):
    """Catches torch-fidelity's own loading, which unpickles whatever it is given."""
    file, victim = tmp_path / "weights.pth", tmp_path / "victim"
    match content:
        case "junk":
            file.write_bytes(b"<html>404</html>")
        case "hostile":
            file.write_bytes(pickle.dumps(Hostile(victim)))
        case "empty":
            file.touch()
        case "tensor":
            torch.save(torch.zeros(1), file)
        case "keys":
            torch.save({"fc.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"weights\.pth: its SHA-256 is"):
        load_extractor("inception", "cpu", weights=file)
    with pytest.raises(InputError, match=r"weights\.pth: not the Inception weights") as caught:
        load_extractor("inception", "cpu", weights=file, allow_unverified=True)
    assert "\n" not in str(caught.value)
    assert not victim.exists()


def test_missing_inception_offline_names_file_folder_and_way_out(tmp_path, monkeypatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        InputError,
        match=r"6726825d\.pth is not in .*--weights FILE, .* --extractor lite0@96",
    ):
        load_extractor("inception", "cpu")
    with pytest.raises(
        InputError,
        match=r"score\.weights FILE, .* score\.protocol kid10k_train",
    ):
        load_extractor("inception", "cpu", keys=REPORTED)


def test_file_planted_in_the_hub_folder_is_refused(tmp_path, monkeypatch):
    """Catches trust in a file's name: torch-fidelity takes any content under the right one."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    planted = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({}, planted)
    with pytest.raises(InputError, match="expected 6726825d"):
        load_extractor("inception", "cpu")


@pytest.mark.parametrize("kind", ["absent", "a folder", "a pipe", "no home", "no path"])
def test_weights_that_cannot_be_read_are_one_line(tmp_path, kind):
    """Catches a traceback, and a pipe that is waited for."""
    file = tmp_path / "weights.pth"
    match kind:
        case "a folder":
            file.mkdir()
        case "a pipe":
            os.mkfifo(file)
        case "no home":
            file = Path("~nobody-at-all/weights.pth")
        case "no path":
            file = Path("weights\0.pth")
    with pytest.raises(InputError, match=r"weights.*\.pth: (cannot read|Could not)") as caught:
        load_extractor("inception", "cpu", weights=file, keys=REPORTED)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory) -> Path:
    """A file of random weights; BatchNorm has seen images, or all features would collapse."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        network = module.FeatureExtractorInceptionV3("random", ["2048"])
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        network.train()(noise(4, size=32).expand(-1, 3, -1, -1))
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), file)
    return file


def test_unverified_inception_runs_but_scores_no_fid(random_inception):
    """Catches a "FID" of other weights, a file that is not loaded, and gray images refused."""
    state = torch.get_rng_state()
    extractor = load_extractor("inception", "cpu", weights=random_inception, allow_unverified=True)
    gray = noise(2, size=32)
    features, logits = replace(extractor, batch_size=1)(torch.cat([gray, gray.flip(0)]))
    assert torch.equal(state, torch.get_rng_state())
    assert features.shape == (4, 2048)
    assert logits.shape == (4, 1008)
    torch.testing.assert_close(features[0], features[3])
    assert (features[0] - features[1]).abs().max() > 1e-3
    names = [score.name for score in extractor.scores.values()]
    assert all("unverified" in name for name in names)
    assert not any("FID" in name or "IS" in name for name in names)


def names_of(extractor: Extractor) -> list[str]:
    return [score.name for score in extractor.scores.values()]


def test_only_verified_inception_gives_fid_and_is():
    """The names stand in benchmark configs and results: another one is another column."""
    verified = stub(name="inception")
    shared = ["KID", "KID s.e.", "precision", "recall", "coverage"]
    plain = ["FD", "FD corrected", *shared, "CS", "CS std"]
    assert names_of(verified) == ["FID", "FID corrected", *shared, "IS", "IS std"]
    assert names_of(stub()) == [f"{name} (digits)" for name in plain]
    unverified = [f"{name} (unverified inception)" for name in plain]
    assert names_of(replace(verified, verified=False)) == unverified


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_extractor_says_what_is_better(name, verified):
    """A sign the wrong way round makes the worst GAN the winner; a spread is no score."""
    extractor = replace(stub(name=name), verified=verified)
    distances = ("FD", "FID", "KID")
    for name, metric in metrics(extractor.scores).items():
        assert metric == Metric("lower" if name.startswith(distances) else "higher")
        assert "std" not in name
        assert "s.e." not in name
    assert extractor.headline in metrics(extractor.scores)


# An extractor without logits


def blind(images: Tensor) -> tuple[Tensor, None]:
    return images.float().flatten(1)[:, :4] / 255, None


TOY = ExtractorSpec(
    "toy",
    renamed("{}-toy", FROM_FEATURES),
    "kernel",
    lambda weights, device, allow_unverified, keys: (blind, "c" * 64, not allow_unverified),
)
TOY_NAMES = [
    f"{name}-toy" for name in ("FD", "FD corrected", "KID", "precision", "recall", "coverage")
]


@pytest.fixture
def toy(monkeypatch) -> Protocol:
    """A protocol of an extractor that is added by one entry in the table."""
    protocol = replace(SMALL, name="toy", extractor="toy", image_size=16)
    monkeypatch.setitem(EXTRACTORS, "toy", TOY)
    monkeypatch.setitem(PROTOCOLS, "toy", protocol)
    return protocol


def test_scores_without_logits_are_those_of_the_features(toy, tmp_path):
    """Catches a cache, a floor or a record that wants logits, and a score of nothing."""
    extractor = replace(load_extractor("toy", "cpu"), batch_size=25)
    for _ in range(2):  # the second time from the cache
        reference = reference_of(noise(60), toy, extractor, origin=NOISE, cache_dir=tmp_path)
    record = score(noise(60, seed=1), reference, extractor, seed=0, origin=NOISE)
    assert list(record.scores) == list(record.floor.scores) == list(record.metrics) == TOY_NAMES
    assert list(record.spreads) == list(record.floor.spreads) == ["KID s.e.-toy"]
    assert (record.headline, record.ranked) == ("KID-toy", record.scores["KID-toy"])
    fake, real = (FeatureSet(blind(noise(60, seed=seed))[0]) for seed in (1, 0))
    assert record.scores["FD-toy"] == frechet_distance(fake, real) > 0


def test_other_weights_of_any_extractor_may_not_bear_its_names(toy):
    extractor = replace(load_extractor("toy", "cpu"), verified=False)
    assert names_of(extractor)[0] == "FD (unverified toy)"
    assert len(extractor.scores) == len(FROM_FEATURES)


# The cache


def test_cache_gives_the_same_features_without_the_network(tmp_path):
    first, second = stub(), stub()
    features = cached_features(noise(20), first, tmp_path)
    torch.testing.assert_close(cached_features(noise(20), second, tmp_path), features)
    assert (first.forward.num_seen, second.forward.num_seen) == (20, 0)


@pytest.mark.parametrize(
    ("images", "extractor"),
    [(noise(20, seed=1), stub()), (noise(19), stub()), (noise(20), stub(sha256="b" * 64))],
    ids=["other images", "fewer images", "other weights"],
)
def test_cache_is_not_asked_about_other_things(tmp_path, images, extractor):
    """Catches torch-fidelity's cache, which knows an input's name and nothing else."""
    extractor = replace(extractor)
    cached_features(noise(20), stub(), tmp_path)
    features = cached_features(images, extractor, tmp_path)
    torch.testing.assert_close(features, extractor(images))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("module", [extractors, digits_network, fidelity, pixels])
def test_cache_is_not_asked_about_other_code(tmp_path, monkeypatch, module):
    """Catches the old features after a change of the network or of what it sees."""
    folder = tmp_path / "cache"
    cached_features(noise(20), stub(), folder)
    changed = tmp_path / "changed.py"
    changed.write_bytes(Path(module.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(module, "__file__", str(changed))
    again = stub()
    cached_features(noise(20), again, folder)
    assert again.forward.num_seen == 20


@pytest.mark.parametrize("damage", ["a flipped bit", "a truncated file", "an empty file"])
def test_damaged_cache_is_computed_again(tmp_path, damage):
    features = cached_features(noise(20), stub(), tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    kept = {"a flipped bit": content, "a truncated file": content[:50], "an empty file": b""}
    file.write_bytes(kept[damage])
    again = stub()
    torch.testing.assert_close(cached_features(noise(20), again, tmp_path), features)
    assert again.forward.num_seen == 20


def hashed(content: object) -> bytes:
    """A file of the cache that is sound, whatever it holds."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        hashlib.sha256(b"").digest(),
        hashed({"a": 1}),
        hashed([torch.zeros(2)]),
        hashed([torch.zeros(19, 4), torch.zeros(19, 3)]),
        hashed([torch.zeros(20), None]),
        hashed(["text", "text"]),
    ],
    ids=["nothing", "a dict", "one part", "other images", "no features", "text"],
)
def test_foreign_cache_is_computed_again(tmp_path, content):
    """Catches trust in a hash that only says that a file is whole."""
    features = cached_features(noise(20), stub(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    torch.testing.assert_close(cached_features(noise(20), stub(), tmp_path), features)


def test_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made a folder"):
        cached_features(noise(4), stub(), tmp_path / "file")
    cached_features(noise(4), stub(), tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"features: cannot be written"):
        cached_features(noise(4), stub(), tmp_path / "cache")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", Path("~nobody-at-all").expanduser)
    with pytest.raises(InputError, match="XDG_CACHE_HOME: is not set"):
        cached_features(noise(4), stub())


# The protocols


def test_protocols_of_other_sizes_have_other_names():
    """Catches two records with one name whose numbers cannot be compared."""
    base = PROTOCOLS["fid10k_test"]
    assert base.changed(num_real=64, num_fake=32).name == "fid10k_test[real=64,fake=32]"
    assert base.changed(num_real=10_000, split="test") == base
    assert base.changed(split=None, extractor="digits").name == (
        "fid10k_test[extractor=digits,split=none]"
    )


def test_fitted_protocol_records_the_numbers_it_is_used_with():
    """Catches a KID subset larger than the data, and a None in a record."""
    fitted = PROTOCOLS["digits"].changed(num_fake=40).fitted(200)
    assert (fitted.num_real, fitted.num_fake) == (200, 40)
    assert PROTOCOLS["fid50k_train"].fitted(50_000) == PROTOCOLS["fid50k_train"]


@pytest.mark.parametrize("num", [-1, 0, 3, 10**24])
@pytest.mark.parametrize(
    ("keys", "name"),
    [(OPTIONS, "--num_fake"), (REPORTED, "score.num_fake"), (SELECTING, "score.select_num_fake")],
)
def test_numbers_out_of_range_are_told_by_the_name_that_the_user_knows(keys, name, num):
    with pytest.raises(InputError, match=f"^{name}: got {num}, but digits needs at least 10 and"):
        PROTOCOLS["digits"].changed(num_fake=num, keys=keys)


def test_wrong_numbers_are_told_with_the_way_out():
    """Each line names a number that would do: following it must end in a score."""
    protocol = PROTOCOLS["fid10k_test"]
    message = r"^score\.num_real: .* needs 10000 .* has 360; set score\.num_real to 360, or less"
    with pytest.raises(InputError, match=message):
        protocol.fitted(360, keys=REPORTED)
    followed = protocol.changed(num_real=360)
    message = "^--num_fake: .* needs 10000 generated images, got 50; set --num_fake to 50, or less"
    with pytest.raises(InputError, match=message):
        followed.fitted(360, 50)
    assert followed.changed(num_fake=50).fitted(360, 50).num_fake == 50
    with pytest.raises(InputError, match="say how many with --num_real"):
        PROTOCOLS["digits"].fitted(None)
    with pytest.raises(InputError, match="got 'fid', expected one of fid50k_train"):
        protocol_named("fid")


@pytest.mark.parametrize("available", [(5, 100), (100, 5), (9, 9)])
def test_less_than_can_be_scored_is_not_told_to_take_fewer(available):
    with pytest.raises(InputError, match=r"needs at least 10 .* images, .* (5|9); give more$"):
        PROTOCOLS["digits"].fitted(*available)


def test_the_real_images_to_select_by_are_enough(digits_extractor, digits):
    """Catches fewer images than features, and a test split that is another kind of images."""
    test = load_images(DataConfig("digits", image_size=16), "test").images
    train, held_out = (FeatureSet(digits_extractor(images).features) for images in (digits, test))
    assert held_out.rank == held_out.features.shape[1] == 64
    assert frechet_distance(train, held_out) < 0.2
    fitted = PROTOCOLS["digits_test"].fitted(len(test))
    assert (fitted.split, fitted.num_real, fitted.num_fake) == ("test", 360, len(digits))


# The records


def test_reference_is_a_random_subset_and_the_same_for_every_run(digits):
    """Catches the first n of files that are sorted by class."""
    images = torch.arange(1000).to(torch.uint8).view(-1, 1, 1, 1)
    taken = subset(images, 100, "reference", "hash")
    assert torch.equal(taken, subset(images, 100, "reference", "hash"))
    assert not torch.equal(taken, subset(images, 100, "reference", "other"))
    assert len(subset(torch.arange(1000), 100, 1).unique()) == 100
    assert subset(torch.arange(1000), 100, 1).double().mean() > 300


def test_floor_compares_disjoint_halves(monkeypatch):
    """Catches a floor of images against themselves, whole or in part, or of sorted halves."""
    compared = []

    def seen(name: str) -> None:
        compute = getattr(reference_module, name)

        def spy(first: FeatureSet, second: FeatureSet, *args: int) -> object:
            compared.append((first.features, second.features))
            return compute(first, second, *args)

        monkeypatch.setattr(reference_module, name, spy)

    for name in ("frechet_distance", "frechet_bias", "kernel_distance", "neighborhoods"):
        seen(name)
    index = torch.arange(101.0)[:, None]  # says which image a row is of
    features = Features(torch.cat([index, normal(101, 2)], dim=1), normal(101, 5))
    result, bias = floor(features, SMALL, FROM_FEATURES | FROM_LOGITS)
    assert result.num_images == 50
    assert len(compared) == 4
    for halves in compared:
        first, second = (set(half[:, 0].tolist()) for half in halves)
        assert len(first) == len(second) == 50
        assert first.isdisjoint(second)
        assert min(max(first), max(second)) > 90  # each has some of the last images
    first, second = map(FeatureSet, compared[0])
    assert result.scores["FD"] == frechet_distance(first, second) > 1e-3
    assert bias == pytest.approx(25 * result.scores["FD"])
    assert result.scores["FD corrected"] == pytest.approx(0, abs=1e-9)
    assert result.scores["CS"] == fidelity.classifier_score(features.logits, 2)[0]
    assert result.spreads["CS std"] == fidelity.classifier_score(features.logits, 2)[1]
    assert result.spreads["KID s.e."] == kernel_distance(first, second).error


def test_record_says_all_that_the_numbers_depend_on(tmp_path):
    extractor, images = stub(), noise(60)
    reference = reference_of(images, SMALL, extractor, origin=NOISE, cache_dir=tmp_path)

    def sample(num: int, seed: int, share: slice) -> tuple[Tensor, ...]:
        return noise(num, seed=seed).split(PART)[share]

    fake = Origin("run", step=5, ema=True)
    record = score(sample, reference, extractor, seed=3, origin=fake)
    assert json.loads(json.dumps(to_json(record))) == to_json(record)
    assert record.protocol == asdict(SMALL.fitted(60))
    assert record.extractor == ExtractorFacts("digits", "a" * 64, verified=True)
    assert record.real == replace(NOISE, sha256=sha256_of(images))
    assert record.fake == replace(fake, sha256=sha256_of(noise(60, seed=3)))
    assert (record.num_fake, record.num_real, record.seed) == (60, 60, 3)
    assert set(record.versions) == {"torch", "torch_fidelity", "python"}
    features = extractor(noise(60, 3))
    direct = numbers(FeatureSet(features.features), features.logits, reference)
    assert record.scores | record.spreads == {
        extractor.scores[number].name: value for number, value in direct.items()
    }
    assert record.metrics == metrics(extractor.scores)
    assert list(record.metrics) == list(record.scores) == list(record.floor.scores)
    assert list(record.spreads) == list(record.floor.spreads)
    assert list(record.spreads) == ["KID s.e. (digits)", "CS std (digits)"]
    assert (record.headline, record.ranked) == ("FD (digits)", record.scores["FD (digits)"])
    assert record.expected == {"coverage (digits)": expected_coverage(60, 60, 5)}
    assert record.extrapolation is None
    assert record.selection is None


def test_too_few_generated_images_are_told(tmp_path):
    extractor = stub()
    reference = reference_of(noise(60), SMALL, extractor, origin=NOISE, cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"needs 60 generated images, got 20; .*--num_fake"):
        score(noise(20), reference, extractor, seed=0, origin=NOISE)


def test_scorer_leaves_the_random_state_alone(tmp_path, digits):
    """Catches a training run that goes another way because it was scored."""

    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = states()
    scorer = Scorer(
        PROTOCOLS["digits"].changed(num_fake=50),
        DataConfig("digits", image_size=16),
        ALONE,
        keys=REPORTED,
        cache_dir=tmp_path,
    )
    record = scorer(lambda num, seed, share: [digits[:num]][share], 0, step=100, ema=False)
    assert states() == before
    assert record.protocol["name"] == "digits[fake=50]"
    assert (record.num_real, record.num_fake) == (1437, 50)
    assert (record.fake.source, record.fake.step, record.fake.ema) == ("training", 100, False)
    found = load_images(DataConfig("digits", image_size=16)).found
    assert record.real == Origin("digits", "train", sha256=sha256_of(digits), found=found)


def test_scorer_finds_too_few_images_before_it_wants_weights(tmp_path, monkeypatch):
    """Catches a download of 96 MB, or a lack of weights, that hides the real mistake."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"^score\.num_real: .* 1437; set .* to 1437, or less"):
        Scorer(PROTOCOLS["fid50k_train"], DataConfig("digits"), ALONE, keys=REPORTED)


# The doubts


def scored(fake: Tensor, real: Tensor, extractor: Extractor, tmp_path: Path) -> ScoreRecord:
    protocol = PROTOCOLS["digits"].changed(num_fake=len(fake))
    reference = reference_of(real, protocol, extractor, origin=NOISE, cache_dir=tmp_path)
    return score(fake, reference, extractor, seed=0, origin=Origin("fakes"))


def test_enough_images_are_not_doubted(digits, digits_extractor, tmp_path):
    """A warning that always is there is not read."""
    record = scored(digits[:1000] ^ 1, digits, digits_extractor, tmp_path)
    assert record.all_doubts == ()
    assert record.spreads["KID s.e. (digits)"] > 1e-5
    assert record.spreads["CS std (digits)"] > 1e-3


UNCORRECTED = "FD corrected (digits): fewer than 1.2 images for each feature"
FEW = "FD (digits): 12 {} images for 64 features have a singular covariance (rank 11), which"
ALIKE = "FD (digits): {} fake images for 64 features have a singular covariance (rank {}), as many"


@pytest.mark.parametrize(
    ("fake", "real", "told"),
    [
        (
            lambda digits: digits[:12],
            lambda digits: digits,
            [FEW.format("fake"), UNCORRECTED, "CS (digits): splits of 1 bound it by 1"],
        ),
        (
            lambda digits: digits[:1000],
            lambda digits: digits[:12],
            [
                FEW.format("real"),
                UNCORRECTED,
                "floor: FD (digits): 6 images of one half for 64 features",
                "floor: CS (digits): splits of 1",
            ],
        ),
        (
            lambda digits: digits[:1000],
            lambda digits: digits[:100],
            [
                UNCORRECTED,
                "floor: FD (digits): 50 images of one half",
                "floor: CS (digits): splits of 10",
            ],
        ),
        (
            lambda digits: digits[:20].repeat(50, 1, 1, 1),
            lambda digits: digits,
            [ALIKE.format(1000, 19), "980 of 1000 fake images are copies of others"],
        ),
        (
            lambda digits: digits[:1].repeat(100, 1, 1, 1),
            lambda digits: digits,
            [ALIKE.format(100, 0), "99 of 100 fake images are copies of others"],
        ),
        (
            lambda digits: torch.ones_like(digits[:100]),  # black, but for a level
            lambda digits: digits,
            [ALIKE.format(100, 0), "99 of 100 fake images are copies of others"],
        ),
        (
            lambda digits: digits[:500].repeat(2, 1, 1, 1),
            lambda digits: digits,
            ["500 of 1000 fake images are copies of others"],
        ),
        (
            lambda digits: digits[:1000],
            lambda digits: digits[:500].repeat(2, 1, 1, 1),
            ["500 of 1000 real images are copies of others"],
        ),
    ],
    ids=["few fakes", "few reals", "few in a half", "20", "one", "black", "twice", "reals twice"],
)
def test_few_or_equal_images_are_said_in_the_record(
    digits, digits_extractor, tmp_path, fake, real, told
):
    """An FD of 12 images, a CS of one image a split: numbers that say nothing, without a word."""
    others = fake(digits) ^ 1  # than the real ones, by a grey level
    record = scored(others, real(digits), digits_extractor, tmp_path)
    assert len(record.all_doubts) == len(told)
    for doubt, expected in zip(record.all_doubts, told, strict=True):
        assert doubt.startswith(expected)
    assert from_json(ScoreRecord, json.loads(json.dumps(to_json(record))), "") == record


def test_fakes_that_are_the_real_images_are_said(digits, digits_extractor, tmp_path):
    """A folder of training images, or a generator against itself, scores better than the floor."""
    record = scored(digits[:1000], digits, digits_extractor, tmp_path)
    assert record.doubts == ("1000 of 1000 fake images are among the real ones",)
    few = torch.cat([digits[:10], digits[10:1000] ^ 1])
    assert scored(few, digits, digits_extractor, tmp_path).doubts == ()


@pytest.mark.parametrize("half", [0, 1])
def test_either_half_of_the_floor_is_doubted(half):
    """Catches a floor of which one half alone, the first or the second, is looked at."""
    order = torch.randperm(40, generator=generator("cpu", "floor"))
    features = normal(40, 3)
    features[order[20 * half : 20 * (half + 1)]] = features[0].clone()
    found = floor(Features(features, None), SMALL, FROM_FEATURES)[0].doubts
    assert found == (
        "FD: 20 images of one half for 3 features have a singular covariance (rank 0), as many are "
        "equal, or nearly so",
    )


@pytest.mark.parametrize(("splits", "least"), [(1, 8), (2, 8), (10, 10), (20, 20)])
def test_the_least_number_of_images_has_every_score_and_one_less_is_refused(
    tmp_path, splits, least
):
    """Catches a k-th neighbour that is not there, in a half of the floor, and an empty split."""
    protocol, extractor = replace(SMALL, is_splits=splits), stub()
    with pytest.raises(InputError, match=f"needs at least {least} real images"):
        reference_of(noise(least - 1), protocol, extractor, origin=NOISE, cache_dir=tmp_path)
    reference = reference_of(noise(least), protocol, extractor, origin=NOISE, cache_dir=tmp_path)
    with pytest.raises(InputError, match=f"needs at least {least} generated images"):
        score(noise(least - 1), reference, extractor, seed=0, origin=NOISE)
    record = score(noise(least, seed=1), reference, extractor, seed=0, origin=NOISE)
    missing = [name for name, value in record.scores.items() if value is None]
    assert missing == (["FD corrected (digits)"] if least < 10 else [])
    assert record.scores.keys() == record.floor.scores.keys()
    coverage = record.floor.scores["coverage (digits)"]  # of halves, which may be smaller than k
    assert (coverage is None) == (least // 2 <= 5)


@pytest.mark.parametrize(
    ("reals", "fakes", "known"), [(10, 5, True), (9, 5, False), (10, 4, False)]
)
def test_neither_side_has_a_corrected_distance_of_too_few_images(tmp_path, reals, fakes, known):
    """Catches a number of the floor alone, or of the score alone: a benchmark reads both."""
    protocol = replace(SMALL, is_splits=1, prc_neighborhood=1, num_fake=fakes)
    reference = reference_of(noise(reals), protocol, stub(), origin=NOISE, cache_dir=tmp_path)
    record = score(noise(fakes, seed=1), reference, stub(), seed=0, origin=NOISE)
    for scores in (record.scores, record.floor.scores):
        assert (scores["FD corrected (digits)"] is not None) == known


def broken(images: Tensor, part: int, num: int = 3) -> tuple[Tensor, Tensor]:
    """Features and logits of which one part is not finite for the brightest images."""
    parts = images.float().flatten(1)[:, :4] / 255, images.float().flatten(1)[:, 4:8]
    parts[part][images.float().flatten(1).mean(dim=1).argsort(descending=True)[:num]] = math.nan
    return parts


@pytest.mark.parametrize("part", [0, 1], ids=["features", "logits"])
def test_features_that_are_no_numbers_are_refused_or_said(tmp_path, part):
    """Catches a precision of 0 that is no more than a comparison with NaN."""
    sound = replace(stub(), forward=lambda images: broken(images, part, num=0))
    bad = replace(stub("b" * 64), forward=lambda images: broken(images, part))
    images = noise(60)
    with pytest.raises(InputError, match="features of 3 of 60 real images are not finite"):
        reference_of(images, SMALL, bad, origin=NOISE, cache_dir=tmp_path)
    reference = reference_of(images, SMALL, sound, origin=NOISE, cache_dir=tmp_path)
    record = score(noise(60, seed=1), reference, bad, seed=0, origin=NOISE)
    assert set(record.scores.values()) == set(record.spreads.values()) == {None}
    assert record.doubts[0] == "3 of 60 fake images have features that are not finite"
    assert [d for d in record.doubts if d.endswith("not a finite number")] == [
        f"{name}: not a finite number" for name in record.scores
    ]
    assert to_json(record)["scores"]["FD (digits)"] is None
