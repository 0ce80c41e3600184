"""Statistics of real features in place of real images: what they give, and what is refused."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ROOT
from torch import Tensor

from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.errors import InputError
from gan.distances import FeatureSet
from gan.extractor import Extractor
from gan.extractors import EXTRACTORS, load_extractor
from gan.protocols import ALL_IMAGES, PROTOCOLS
from gan.records import Origin, ScoreRecord
from gan.reference import reference_of
from gan.score_names import of_statistics
from gan.scoring import score
from gan.sources import ImageSource, read_source
from gan.statistics_files import Statistics, read_statistics, save_statistics

SIZE, WIDTH = 8, 64
PLAIN = ALL_IMAGES.changed(extractor="digits", image_size=SIZE, reference="statistics")


@pytest.fixture(scope="module")
def digits() -> Extractor:
    return load_extractor("digits", "cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images(DataConfig("digits", image_size=SIZE), "test").images


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def moments(width: int = WIDTH) -> dict[str, np.ndarray]:
    """Mean and covariance as others publish them: they say nothing of themselves."""
    root = np.random.default_rng(0).normal(size=(width, 2 * width))
    return {"mu": np.linspace(0, 1, width), "sigma": root @ root.T / width}


def against(statistics: Statistics, extractor: Extractor, fake: Tensor, **options) -> ScoreRecord:
    origin = Origin("reference")
    protocol = PLAIN.fitted(statistics.num_images, len(fake))
    reference = reference_of(statistics, protocol, extractor, origin=origin)
    return score(fake, reference, extractor, seed=0, origin=Origin("fake"), **options)


def test_saved_statistics_give_the_distance_that_the_images_give(digits, images):
    """Catches another divisor, another precision, and a record that hides what REAL is."""
    fake, real = images[:100], images[100:]
    protocol = ALL_IMAGES.changed(extractor="digits", image_size=SIZE, num_fake=len(fake))
    reference = reference_of(real, protocol, digits, origin=Origin("real"))
    expected = score(fake, reference, digits, seed=0, origin=Origin("fake"))
    save_statistics(Path("real.npz"), reference.features, digits, SIZE)
    record = against(read_statistics(Path("real.npz")), digits, fake)
    name = "FD (digits) (reference statistics)"
    assert record.scores[name] == pytest.approx(expected.scores["FD (digits)"], rel=1e-12)
    assert record.scores["CS (digits)"] == expected.scores["CS (digits)"]
    assert record.num_real == record.protocol["num_real"] == len(real)
    assert (record.real.kind, record.real.extractor) == ("statistics", "recorded")
    assert from_json(ScoreRecord, json.loads(json.dumps(to_json(record))), "here") == record


def test_statistics_of_unknown_origin_are_a_reference_that_says_so(digits, images):
    """Catches a number of images that nobody knows, and a score that needs images."""
    np.savez("ttur.npz", **moments())
    record = against(read_statistics(Path("ttur.npz")), digits, images[:100])
    name = "FD (digits) (reference statistics)"
    assert list(record.scores) == list(record.metrics) == [name, "CS (digits)"]
    assert (record.headline, record.ranked > 0) == (name, True)
    assert (record.num_real, record.floor, record.expected) == (None, None, {})
    assert (record.real.extractor, record.real.split) == ("claimed", None)
    missing, claimed = record.all_doubts[:2]
    assert missing.startswith("FD corrected (digits), KID (digits), ")
    assert "coverage (digits) and the floor are n/a: they need real images" in missing
    assert "ttur.npz does not say which network, resizing and number of images" in claimed
    assert "reference=statistics" in record.protocol["name"]
    assert from_json(ScoreRecord, json.loads(json.dumps(to_json(record))), "here") == record


def test_hash_is_that_of_the_numbers_alone(digits):
    """Catches a hash that changes with the container, and one that misses the covariance."""
    arrays = moments()
    np.savez("a.npz", **arrays)
    np.savez_compressed("b.npz", **arrays, mu_s=np.zeros(3))
    np.savez("c.npz", mu=arrays["mu"], sigma=2 * arrays["sigma"])
    a, b, c = (read_statistics(Path(f"{name}.npz")).sha256() for name in "abc")
    assert a == b != c


def test_closed_form_of_the_distance(digits, images):
    """|m|^2 + sum (a - b)^2 of diagonal covariances, from a file of float32."""
    fake = FeatureSet(digits(images).features).gaussian
    values, vectors = torch.linalg.eigh(fake.covariance)
    values = values.clamp(min=0)
    sigma = 4 * vectors * values @ vectors.T  # twice the deviations
    mean = (fake.mean + 1).numpy()
    np.savez("f.npz", mu=mean.astype(np.float32), sigma=sigma.numpy().astype(np.float32))
    record = against(read_statistics(Path("f.npz")), digits, images)
    assert record.ranked == pytest.approx(WIDTH + values.sum().item(), rel=1e-4)


def test_few_images_are_seen_in_the_covariance(digits, images):
    """Catches the bias of 40 images for 64 features without a word."""
    few, many = (FeatureSet(digits(images[:num]).features) for num in (40, 360))
    np.savez("few.npz", mu=few.gaussian.mean, sigma=few.gaussian.covariance)
    np.savez("many.npz", mu=many.gaussian.mean, sigma=many.gaussian.covariance)
    doubts = against(read_statistics(Path("few.npz")), digits, images).doubts
    assert any("few.npz is singular (rank 39 of 64)" in doubt for doubt in doubts)
    doubts = against(read_statistics(Path("many.npz")), digits, images).doubts
    assert not any("singular" in doubt for doubt in doubts)


def test_fid_is_never_the_bare_name():
    """A score against statistics is not checked to be of Inception's features, whatever it is."""
    for spec in EXTRACTORS.values():
        for scores in (spec.scores, spec.unverified_scores()):
            names = of_statistics(scores)
            assert names["frechet"].name == f"{scores['frechet'].name} (reference statistics)"
            assert set(names) <= {"frechet", "classifier", "classifier_std"}


def bad(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = moments() | changes
    return {key: array for key, array in arrays.items() if array is not None}


def with_entry(key: str, index: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    arrays = moments()
    arrays[key][index] = value
    return arrays


SAID = {
    "extractor": np.array("digits"),
    "weights_sha256": np.array("a" * 64),
    "num_images": np.array(100),
    "image_size": np.array(SIZE),
}
BAD = {
    "mu without sigma": (bad(sigma=None), "sigma: missing, expected floats (D, D)"),
    "sigma without mu": (bad(mu=None), "mu: missing, expected floats (D,)"),
    "asymmetric": (with_entry("sigma", (0, 1), 3.0), "sigma: is asymmetric by"),
    "nan mean": (with_entry("mu", (3,), math.nan), "mu: got NaN or infinity"),
    "infinite": (with_entry("sigma", (2, 2), math.inf), "sigma: got NaN or infinity"),
    "negative": (bad(sigma=-np.eye(WIDTH)), "sigma: has the eigenvalue -1, expected none below 0"),
    "other sizes": (bad(mu=np.zeros(3)), "sigma: got float64 (64, 64), expected floats (D, D)"),
    "matrix mean": (bad(mu=np.zeros((1, 64))), "mu: got float64 (1, 64), expected floats (D,)"),
    "scalar": (bad(mu=np.array(0.5)), "mu: got float64 (), expected"),
    "empty": ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "mu: got float64 (0,)"),
    "integers": (bad(mu=np.zeros(64, np.int64)), "mu: got int64 (64,), expected floats"),
    "pickled": (bad(mu=np.array([None] * 64)), "mu: cannot be read (Object arrays cannot"),
    "pickled name": (
        moments() | SAID | {"extractor": np.array(None)},
        "extractor: cannot be read (Object",
    ),
    "half": (moments() | {"num_images": np.array(9)}, "extractor: got nothing, expected a string"),
    "no number": (moments() | SAID | {"num_images": np.array("9")}, "num_images: got <U1 ()"),
    "no images": (moments() | SAID | {"num_images": np.array(0)}, "num_images: got 0, expected at"),
    "wrong width": (moments(32), "mu: got 32 features, expected the 64 of digits"),
    "below 0": (with_entry("mu", (0,), -1.0), "mu: got -1, expected at least 0: digits has no"),
    "other network": (
        moments() | SAID | {"extractor": np.array("lite0@96")},
        "extractor: says lite0@96, expected digits as here",
    ),
    "other weights": (moments() | SAID, f"weights_sha256: says {'a' * 64}, expected"),
}


def read(text: str, role: str = "REAL") -> ImageSource:
    return read_source(text, role, "train", torch.device("cpu"), "data", SIZE)


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_bad_file_is_told_in_one_line(arrays, message, digits, images):
    np.savez("bad.npz", **arrays)
    with pytest.raises(InputError) as caught:
        against(read("bad.npz").images, digits, images[:100])
    assert f"bad.npz: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_of_images_of_another_size_are_refused(digits, images):
    """The suite resizes before the network does, and features of other sizes are others."""
    save_statistics(Path("a.npz"), FeatureSet(digits(images).features), digits, 16)
    with pytest.raises(InputError, match=r"a\.npz: image_size: says 16, expected 8 as here"):
        against(read_statistics(Path("a.npz")), digits, images)


def test_a_protocol_that_says_how_many_is_not_met_by_statistics_of_others(digits, images):
    np.savez("ttur.npz", **moments())
    statistics = read_statistics(Path("ttur.npz"))
    wanted = PROTOCOLS["fid50k_train"].changed(extractor="digits", reference="statistics")
    with pytest.raises(InputError, match=r"takes 50000 real images, but .* an unknown number of"):
        wanted.fitted(statistics.num_images, 50_000)
    assert wanted.fitted(50_000).num_real == 50_000
    with pytest.raises(InputError, match=r"--num_fake: .* do not say how many"):
        PLAIN.fitted(None, None)
    with pytest.raises(InputError, match="at least 10 generated images, got 5"):
        PLAIN.fitted(None, 5)
    with pytest.raises(InputError, match="cannot be extrapolated against statistics"):
        against(statistics, digits, images, extrapolate=True)


def test_what_has_images_too_is_read_as_its_user_expects(images):
    """ADM's statistics are of all images, `arr_0` is a part; the suite's own key is of images."""
    pixels = images[:20].permute(0, 2, 3, 1).numpy()
    np.savez("adm.npz", arr_0=pixels, **moments())
    np.savez("own.npz", images=pixels, **moments())
    np.savez("samples.npz", arr_0=pixels)
    np.savez("moments.npz", **moments())
    found = {name: read(f"{name}.npz") for name in ("adm", "own", "samples")}
    assert isinstance(found["adm"].images, Statistics)
    assert found["adm"].origin.found.endswith("from adm.npz (its images, arr_0, are not read)")
    assert torch.equal(found["own"].images, images[:20])
    assert torch.equal(found["samples"].images, images[:20])
    with pytest.raises(InputError, match=r"images: missing, .* its keys: mu, sigma"):
        read("moments.npz", "FAKE")


# The script


@pytest.fixture
def fid(monkeypatch):
    """Run scripts/fid.py in this process; returns the record."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import fid as module
    finally:
        sys.path.remove(str(ROOT / "scripts"))

    def run(*args: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["fid.py", *args, "--json", "record.json"])
        assert module.main() == 0
        return json.loads(Path("record.json").read_text())

    return run


def test_script_saves_statistics_once_and_reads_them(fid, capsys):
    options = ("--extractor", "digits", "--num_fake", "100")
    first = fid("digits:test", "digits", *options, "--save_statistics", "s.npz")
    saved = Path("s.npz").read_bytes()
    with np.load("s.npz", allow_pickle=False) as archive:
        assert {key: archive[key].dtype.kind for key in archive.files} == {
            **{"mu": "f", "sigma": "f", "extractor": "U", "weights_sha256": "U"},
            **{"num_images": "i", "image_size": "i"},
        }
    capsys.readouterr()
    again = fid("digits:test", "s.npz", *options)
    shown = capsys.readouterr()
    name = "FD (digits) (reference statistics)"
    assert again["scores"][name] == pytest.approx(first["scores"]["FD (digits)"], rel=1e-12)
    assert again["floor"] is None
    assert "floor (none without real images)" in shown.out
    assert shown.out.count("DOUBT: FD corrected (digits), KID (digits)") == 1
    assert "REAL: statistics of 64 features of 1437 images from s.npz" in shown.err
    for real, file, message in (
        ("digits", "s.npz", "s.npz is there already, expected a new file"),
        ("digits", "s.dat", "got s.dat, expected a name that ends in .npz"),
        ("digits", "absent/s.npz", "absent/s.npz cannot be written"),
        ("s.npz", "t.npz", "s.npz has them, expected a REAL of images"),
    ):
        with pytest.raises(InputError, match=message):
            fid("digits:test", real, *options, "--save_statistics", file)
    with pytest.raises(InputError, match=r"--num_real: .* takes 40 real images, but"):
        fid("digits:test", "s.npz", *options, "--num_real", "40")
    assert Path("s.npz").read_bytes() == saved
    assert not Path("t.npz").exists()


def test_images_and_arr_0_give_one_record(fid, images):
    """Catches another order of channels or another hash under the other key."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    np.savez("a.npz", images=pixels[:40])
    np.savez("b.npz", arr_0=pixels[:40])
    records = [fid(f"{name}.npz", "digits:test", "--num_fake", "40") for name in "ab"]
    for record in records:
        del record["fake"]["source"], record["fake"]["found"]
    assert records[0] == records[1]
    np.savez("c.npz", arr_0=pixels / 255)
    with pytest.raises(InputError, match=r"c\.npz: arr_0: got float64 .*, expected uint8"):
        fid("c.npz", "digits:test")


def test_protocol_of_images_is_that_of_before():
    """Only what is new has another name."""
    assert {asdict(protocol)["reference"] for protocol in PROTOCOLS.values()} == {"images"}
