"""The ranking of scores: changes of images by their closed forms, and a run that is cut."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, script
from torch import Tensor

sys.path.insert(0, str(ROOT / "scripts"))  # as the script does

from convnorm.experiment.codec import from_json
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Metric
from gan.extractors import EXTRACTORS, Extractor
from ranking import changes, scores
from ranking.page import worsened
from ranking.records import Point, Ranking

LEVELS = torch.arange(256, dtype=torch.uint8)


def pool(num: int, num_classes: int) -> Images:
    """Images of one pixel that holds its place; the classes take turns."""
    places = torch.arange(num, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Images(places, torch.arange(num) % num_classes, tuple(map(str, range(num_classes))))


# Changes of images


def test_noise_has_its_standard_deviation_and_one_draw_for_all_strengths():
    """Catches a sigma in [0, 1] or [-1, 1], noise that is drawn anew, and rounding downwards."""
    gray = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    weak, strong = (changes.noise(gray, sigma, 0).double() - 128 for sigma in (8.0, 16.0))
    assert weak.std().item() == pytest.approx(8, rel=0.01)
    assert weak.mean().abs() < 0.1
    assert (strong - 2 * weak).abs().max() <= 1.5
    assert torch.equal(changes.noise(gray[:3], 8.0, 0), changes.noise(gray, 8.0, 0)[:3])
    assert not torch.equal(changes.noise(gray, 8.0, 1), changes.noise(gray, 8.0, 0))


@pytest.mark.parametrize("spoil", [changes.noise, changes.blur])
def test_next_to_no_strength_changes_nothing(spoil):
    images = LEVELS.view(1, 1, 16, 16)
    assert torch.equal(spoil(images, 1e-3, 0), images)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_blur_of_a_dot_is_a_gaussian(sigma):
    """Catches a sigma in other units, a kernel that is cut too early and borders that darken."""
    dot = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    dot[..., 16, 16] = 255
    offsets = torch.arange(-16.0, 17.0).double()
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    expected = 255 * torch.outer(weights, weights) / weights.sum() ** 2
    torch.testing.assert_close(
        changes.blur(dot, sigma, 0)[0, 0].double(), expected, atol=0.51, rtol=0
    )
    flat = torch.full_like(dot, 200)
    assert torch.equal(changes.blur(flat, sigma, 0), flat)


@pytest.mark.parametrize("quality", [95, 25])
def test_jpeg_is_that_of_pillow(quality):
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, 16, 16), generator=rng, dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    expected = torch.tensor(np.asarray(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(changes.jpeg(image, quality, 0)[0], expected)


@pytest.mark.parametrize("dropped", [1, 3])
def test_dropped_classes_are_gone_and_replaced_by_others(dropped):
    images = pool(60, 6)
    chosen = changes.drop_classes(images, 30, dropped)
    assert len(chosen) == 30 == len(set(chosen.tolist()))
    assert set(images.labels[chosen].tolist()) == set(range(6 - dropped))


@pytest.mark.parametrize("copies", [1, 4, 7, 50])
def test_duplicates_are_so_many_copies_of_so_few_images(copies):
    chosen = changes.duplicate(pool(20, 2), 20, copies)
    _, counts = chosen.unique(return_counts=True)
    assert counts.tolist() == [copies] * (20 // copies) + [20 % copies] * (20 % copies > 0)


def test_every_change_has_steps_and_keeps_the_number_of_images():
    images = replace(pool(240, 10), images=torch.zeros(240, 3, 8, 8, dtype=torch.uint8))
    assert [len(change.strengths) for change in changes.CHANGES] == [5] * 5
    for change, strength in scores.points():
        spoiled = change.spoil(images.images[change.choose(images, 100, strength)], strength, 0)
        assert (spoiled.shape, spoiled.dtype) == ((100, 3, 8, 8), torch.uint8)


# Scores


def test_network_sees_no_image_twice():
    seen = []

    def forward(images: Tensor) -> tuple[Tensor, None]:
        seen.extend(images.flatten().tolist())
        return images.flatten(1).float(), None

    extractor = Extractor(EXTRACTORS["lite0@96"], "", True, forward, torch.device("cpu"), 4)
    images = pool(9, 1).images[[0, 1, 1, 2, 0, 3, 8, 8, 2]]
    remembering = scores.with_memory(extractor)
    for _ in range(2):
        features = remembering(images)
        assert torch.equal(features.features, images.flatten(1).float())
        assert features.logits is None
    assert sorted(seen) == [0, 1, 2, 3, 8]


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        ([1.0, 2.0, 2.0, 1.5], "lower", 1),
        ([1.0, 2.0, 2.0, 1.5], "higher", 1),
        ([1.0, 0.5, 0.2, 0.1], "higher", 3),
        ([1.0, None, 0.2, 0.1], "higher", None),
    ],
)
def test_steps_that_worsen_are_counted_by_what_is_better(values, better, expected):
    points = [Point("noise", i, {"a": value}, {}, ()) for i, value in enumerate(values)]
    assert worsened(points, "a", Metric(better)) == expected


# The script, on digits


def rank(out: Path, *argv: str) -> int:
    """Run the script in this process and return its exit code."""
    options = ("--data", "digits", "--extractor", "digits", "--image_size", "16", "--num", "160")
    with pytest.raises(SystemExit) as exit:
        script("rank_scores.py", *options, "--device", "cpu", "--out", str(out), *argv)
    return exit.value.code


@pytest.fixture(scope="module")
def ranked(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys.argv)
        patch.setattr(sys, "path", sys.path.copy())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("ranked") / "out"
        assert rank(out) == 0
    return out


@pytest.fixture
def again(ranked, tmp_path, monkeypatch) -> Path:
    """A copy of the record alone."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("XDG_CACHE_HOME", str(ranked / "cache"))
    (tmp_path / "ranking.json").write_bytes((ranked / "ranking.json").read_bytes())
    return tmp_path


def test_scores_rank_noise_and_blur(ranked):
    content = json.loads((ranked / "ranking.json").read_text())
    ranking = from_json(Ranking, content, "ranking.json")
    assert len(ranking.points) == 26
    for change, strengths in (("noise", (8, 16, 32)), ("blur", (0.5, 0.7, 1.0, 1.5))):
        found = [ranking.of(change)[strength].scores for strength in strengths]
        for name in ("FD (digits)", "FD corrected (digits)", "KID (digits)"):
            values = [each[name] for each in found]
            assert values == sorted(set(values)), (change, name)
        assert found[-1]["coverage (digits)"] < 0.5 < found[0]["coverage (digits)"]
    assert ranking.of("duplicates")[4.0].scores["coverage (digits)"] < 0.9
    assert ranking.setup.protocol["num_fake"] == ranking.setup.protocol["num_real"] == 160


def test_page_has_every_score_and_says_what_is_doubtful(ranked):
    page = (ranked / "ranking.md").read_text()
    named = r"^\| (noise|blur|JPEG|classes dropped|duplicates) \| [\d.]+ \|"
    assert len(re.findall(named, page, re.M)) == 25
    assert re.search(r"^\| unchanged \|  \| .* \| -0\.\d+ ± 0\.\d+ \|", page, re.M)  # KID
    assert "| blur | 5 of 5 | 5 of 5 | 5 of 5 |" in page
    assert "duplicates 4: 120 of 160 fake images are copies of others" in page
    assert "digits" in page.splitlines()[0]
    with Image.open(ranked / "ranking.png") as figure:
        assert figure.size[0] == 1040


def test_a_cut_ranking_goes_on(ranked, again, monkeypatch):
    """Catches points that are scored again, and points that differ when they are."""
    whole = json.loads((ranked / "ranking.json").read_text())
    cut = whole | {"points": whole["points"][:-7]}
    (again / "ranking.json").write_text(json.dumps(cut))
    scored, original = [], scores.score
    monkeypatch.setattr(scores, "score", lambda *a, **k: scored.append(1) or original(*a, **k))
    assert rank(again) == 0
    assert len(scored) == 7
    found = json.loads((again / "ranking.json").read_text())
    assert found == whole
    assert (again / "ranking.md").read_text() == (ranked / "ranking.md").read_text()


@pytest.mark.parametrize(
    ("argv", "content", "message"),
    [
        (["--seed", "1"], None, "ranking.json: was made with seed 0, not 1; expected the same"),
        (["--num", "150"], None, "ranking.json: was made with protocol "),
        ([], "{", "ranking.json: is not JSON "),
        ([], "{}", "ranking.json: holds no format; expected 'convnorm-suite/ranking/1'"),
        (["--num", "190"], None, "--num: got 190, but without 5 of 10 classes there are 180 "),
        (["--num", "400"], None, "--num: ranking needs 400 generated images, got 360"),
        (["--num", "9"], None, "--num: '9' is not allowed; expected 10 to"),
        (["--extractor", "vgg"], None, "--extractor: 'vgg' is not allowed; expected one of inc"),
        (["--out", "FILE/x"], None, "--out: FILE/x cannot be made a folder"),
        (["--data", "npz", "--data_root", "FILE"], None, "FILE"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_lost(
    again, capsys, monkeypatch, argv, content, message
):
    monkeypatch.chdir(again)
    Path("FILE").touch()
    record = again / "ranking.json"
    if content is not None:
        record.write_text(content)
    before = record.read_bytes()
    assert rank(again, *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert record.read_bytes() == before


def test_other_classes_than_are_there_cannot_be_dropped():
    with pytest.raises(InputError, match="without 5 of 3 classes there are 0 images"):
        changes.drop_classes(pool(30, 3), 20, 5)
