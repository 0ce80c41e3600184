"""scripts/fid.py as a user runs it: from another folder, with every kind of FAKE and REAL."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import script
from torch import Tensor

from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.data.pixels import resize
from convnorm.experiment.errors import InputError
from gan.extractor import ExtractorSpec
from gan.extractors import EXTRACTORS
from gan.feature_cache import sha256_of
from gan.models import PART
from gan.records import Origin
from gan.score_names import FROM_FEATURES, renamed

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "fid.py"
FEATURE_SCORES = ("FD", "FD corrected", "KID", "precision", "recall", "coverage")
SCORES = (*FEATURE_SCORES, "CS")


def offline(folder: Path) -> dict[str, str]:
    """Variables of a process with an empty cache."""
    return {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TORCH_HOME": str(folder / "torch"),
        "https_proxy": "http://127.0.0.1:9",  # nobody listens: a download fails at once
    }


def run_script(folder: Path, *args: str) -> subprocess.CompletedProcess:
    """Run the script in a process of its own, in `folder`; offline, with an empty cache."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **offline(folder)}
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def fid(monkeypatch, tmp_path) -> ModuleType:
    """The script as a module: its `main` in this process, where importing torch is paid for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    spec = importlib.util.spec_from_file_location("fid_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fid_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # no test asks the network
    monkeypatch.chdir(tmp_path)
    return module


def record_of(fid: ModuleType, monkeypatch, *args: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["fid.py", *args, "--json", "record.json"])
    assert fid.main() == 0
    return json.loads(Path("record.json").read_text())


def save_npz(file: Path, num: int = 40, size: int = 12) -> Tensor:
    """Write `num` gray digits and return them as (N, 1, H, W)."""
    images = load_images(DataConfig("digits", image_size=size), "test").images[:num]
    np.savez(file, images=images.permute(0, 2, 3, 1).numpy())
    return images


def test_digits_against_held_out_digits_from_another_folder(tmp_path):
    """Catches a script that runs only in the root, noise on stderr, and a table with no floor."""
    done = run_script(tmp_path, "digits", "digits:test", "--json", "record.json")
    assert done.returncode == 0
    assert done.stderr == (
        "FAKE: 1437 images in 10 classes from digits (train), 8x8\n"
        "REAL: 360 images in 10 classes from digits (test), 8x8\n"
    )
    for line in (
        "digits[split=test,size=8]: 360 fake against 360 real",
        "two halves of 180",
        "FD (digits)",
    ):
        assert line in done.stdout
    assert "FID" not in done.stdout
    record = json.loads((tmp_path / "record.json").read_text())
    assert list(record["scores"]) == [f"{score} (digits)" for score in SCORES]
    assert list(record["spreads"]) == ["KID s.e. (digits)", "CS std (digits)"]
    for name in (*record["scores"], *record["spreads"]):
        assert f"\n{name} " in done.stdout
    assert record["protocol"]["name"] == "digits[split=test,size=8]"
    assert record["real"]["split"] == "test"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "record.json"]


def test_error_is_one_line_and_exit_status_2(monkeypatch, tmp_path, capfd):
    """Catches a traceback, and a run that begins although Inception cannot be had."""
    save_npz(tmp_path / "a.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    for name, value in offline(tmp_path).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        script("fid.py", "a.npz", "a.npz", "--num_real", "40", "--num_fake", "40")
    printed, said = capfd.readouterr()
    assert (ended.value.code, printed) == (2, "")
    line = said.splitlines()[-1]
    assert line.startswith("error: weights-inception-2015-12-05-6726825d.pth is not in")
    assert said.count("\n") == 3  # and a line on each side
    assert "--weights FILE" in said


def test_record_that_could_not_be_written_is_told_first(fid, monkeypatch):
    """Catches hours of scoring whose result is lost at the end."""
    monkeypatch.setattr(fid, "read_source", None)
    monkeypatch.setattr(sys, "argv", ["fid.py", "digits", "digits", "--json", "absent/a.json"])
    with pytest.raises(InputError, match=r"json: absent/a\.json cannot be written"):
        fid.main()


def test_npz_is_scored_at_its_own_size(fid, monkeypatch, tmp_path):
    """Catches a REAL of another size than FAKE's, and its hash before it was resized."""
    save_npz(tmp_path / "fake.npz", num=40, size=12)
    record = record_of(fid, monkeypatch, "fake.npz", "digits:test", "--num_fake", "40")
    native = load_images(DataConfig("digits", image_size=8), "test").images
    assert record["real"]["resized_from"] == 8
    assert record["real"]["resized_by"] == "antialiased bicubic"
    assert record["real"]["found"] == (
        "360 images in 10 classes from digits (test), 8x8 resized to 12x12 (antialiased bicubic)"
    )
    assert record["fake"]["resized_by"] is None
    assert record["real"]["sha256"] == sha256_of(resize(native, 12))
    assert record["protocol"]["name"] == "digits[split=test,size=12,fake=40]"


def test_folder_and_npz_of_the_same_images_are_equal(fid, monkeypatch, tmp_path):
    """Catches an order of files, a colour or a size that changes with the container."""
    images = save_npz(tmp_path / "a.npz")
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / "folder" / f"{index:03}.png")
    record = record_of(fid, monkeypatch, "folder", "a.npz", "--protocol", "digits")
    assert record["protocol"]["name"] == "digits[split=none,size=12]"
    assert abs(record["scores"]["FD (digits)"]) < 1e-6
    assert record["fake"]["sha256"] == record["real"]["sha256"] == sha256_of(images)


def test_run_against_itself_is_another_sample(fid, monkeypatch, tmp_path):
    """Catches a generator that is held against the very images it is scored with."""
    images = load_images(DataConfig("digits", image_size=16)).images

    def parts(num: int, seed: int, share: slice) -> tuple[Tensor, ...]:
        order = torch.randperm(1437, generator=torch.Generator().manual_seed(seed))
        return images[order[:num]].split(PART)[share]

    config = SimpleNamespace(data=DataConfig("digits", image_size=16))
    facts = {"step": 7, "ema": True, "sha256": "c" * 64, "classes": ()}
    loaded = SimpleNamespace(parts=parts, config=config, **facts)
    monkeypatch.setattr("gan.sources.load_generator", lambda path, device: loaded)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").touch()
    sizes = ["--protocol", "digits", "--num_real", "50"]
    record = record_of(fid, monkeypatch, "run", "run/last.pt", *sizes, "--seed", "4")
    assert record["scores"]["FD (digits)"] > 1e-3
    fake = Origin("run", step=7, ema=True, sha256="c" * 64)
    assert record["fake"] == asdict(fake)
    assert record["real"] == asdict(replace(fake, source="run/last.pt", seed=5))
    assert record["protocol"]["name"] == "digits[split=none,real=50]"


def test_extractor_without_logits_has_a_table_too(fid, monkeypatch, capsys):
    """Catches a row, in the table or the record, of a score that there is not."""

    def forward(images: Tensor) -> tuple[Tensor, None]:
        return images.float().flatten(1)[:, 20:24] / 255, None

    scores = renamed("{}-toy", FROM_FEATURES)
    toy = ExtractorSpec("toy", scores, "frechet", lambda *args: (forward, "c" * 64, True))
    monkeypatch.setitem(EXTRACTORS, "toy", toy)
    record = record_of(fid, monkeypatch, "digits", "digits:test", "--extractor", "toy")
    assert list(record["scores"]) == [f"{name}-toy" for name in FEATURE_SCORES]
    printed = capsys.readouterr().out
    rows = printed.partition("floor")[2].splitlines()[1 : 2 + len(FEATURE_SCORES)]
    assert [row.rsplit(maxsplit=2)[0] for row in rows] == [*record["scores"], "KID s.e.-toy"]
    assert "extractor  toy, weights cccccccccccccccc\n" in printed


def test_all_images_are_scored_where_no_protocol_says_how_many(fid, monkeypatch, tmp_path):
    """Catches a demand for 50,000 images of two small files, and a name that hides it."""
    save_npz(tmp_path / "fake.npz", num=30)
    save_npz(tmp_path / "real.npz", num=40)
    record = record_of(fid, monkeypatch, "fake.npz", "real.npz", "--extractor", "digits")
    assert (record["num_fake"], record["num_real"]) == (30, 40)
    assert record["protocol"]["name"] == "all_images[extractor=digits,size=12,real=40,fake=30]"
    options = ["--extractor", "digits", "--num_fake", "20"]
    record = record_of(fid, monkeypatch, "fake.npz", "real.npz", *options)
    assert record["protocol"]["name"] == "all_images[extractor=digits,size=12,real=40,fake=20]"


def test_few_images_are_said_in_the_table(fid, monkeypatch, tmp_path, capsys):
    """Catches an FD of 12 images, far from that of 1,437, without a word."""
    save_npz(tmp_path / "few.npz", num=12)
    record = record_of(fid, monkeypatch, "few.npz", "digits", "--num_fake", "12")
    printed = capsys.readouterr().out
    (few,) = (doubt for doubt in record["doubts"] if doubt.startswith("FD (digits)"))
    assert few.startswith("FD (digits): 12 fake images for 64 features have a singular covariance")
    assert f"DOUBT: {few}\n" in printed
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2] for line in printed.splitlines() if line}
    assert rows["FD corrected (digits)"] == rows["CS std (digits)"] == "n/a"
    assert record["spreads"]["CS std (digits)"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--weights", "absent.pth"], "absent.pth: cannot read these weights"),
        (["--weights", "text.txt"], "text.txt: its SHA-256 is .* --allow_unverified_weights acc"),
        (["--weights", "text.txt", "--allow_unverified_weights"], "text.txt: not the Inception"),
        (["--extractor", "vgg"], "extractor: got 'vgg', expected inception or digits"),
        (["--extractor", "digits", "--weights", "text.txt"], "--weights: got text.txt, but the"),
        (["--protocol", "fid"], "protocol: got 'fid', expected one of"),
        (["--num_fake", "-3"], "--num_fake: got -3, but fid50k_train needs at least 10"),
        (["--num_real", str(10**24)], "--num_real: got 1000.* takes at most 1000000 images"),
    ],
)
def test_what_is_wrong_without_the_images_is_told_before_they_are_read(
    fid, monkeypatch, tmp_path, args, message
):
    (tmp_path / "text.txt").touch()
    monkeypatch.setattr(fid, "read_source", None)
    with pytest.raises(InputError, match=message):
        record_of(fid, monkeypatch, "a.npz", "b.npz", *args)


def test_every_option_has_a_line_of_help(fid, monkeypatch):
    shown = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda parser: shown.append(parser))
    fid.parse_args()
    assert [action.dest for action in shown[0]._actions if not action.help] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent", "digits"], "FAKE: 'absent' is not found: a run folder, .* folder of images"),
        (["digits", "text.txt"], "REAL: 'text.txt' is neither of these: a run folder"),
        (["digits:valid", "digits"], "FAKE: 'digits:valid' is not found.*:train or :test"),
        (["digits", "digits", "--protocol", "fid"], "protocol: got 'fid', expected one of"),
        (["digits", "digits", "--extractor", "vgg"], "extractor: got 'vgg', expected inception"),
        (["digits", "digits", "--weights", "w.pth"], "weights: got w.pth, but the digits"),
        (["digits", "digits", "--num_real", "0"], "num_real: got 0, but digits needs at least 10"),
        (["digits:test", "digits"], "needs 1437 generated images, got 360; .*--num_fake"),
        (["digits", "digits", "--protocol", "fid10k_test"], "needs 10000 real .* has 360; "),
        (["digits", "empty"], "empty: no images"),
        (["junk.npz", "digits"], "junk.npz: not an .npz file"),
        (["five.npz", "digits"], "digits.* needs at least 10 generated images, got 5; give more"),
        (["five.npz", "digits:test"], "needs at least 10 generated images, got 5; give more"),
        (["digits", "five.npz"], "all_images.* at least 10 real images, .* has 5; give more"),
        (["five.npz", "a.npz"], "all_images.* at least 10 generated images, got 5; give more"),
    ],
)
def test_wrong_input_is_told_in_one_line(fid, monkeypatch, tmp_path, args, message):
    (tmp_path / "text.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.npz").write_bytes(b"junk")
    save_npz(tmp_path / "five.npz", num=5)
    save_npz(tmp_path / "a.npz")
    with pytest.raises(InputError, match=message) as caught:
        record_of(fid, monkeypatch, *args)
    assert "\n" not in str(caught.value)
