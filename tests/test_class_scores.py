"""Scores of each class by itself, and the ways by which a person asks for a class."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import run, script

from convnorm.experiment.codec import from_json
from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from gan.class_scores import class_reference, class_scores
from gan.distances import FeatureSet, frechet_distance, kernel_distance
from gan.models import FORMAT, ROWS, Prior, load_generator
from gan.records import ScoreRecord
from gan.score_tables import table

WIDTH, NAMES = 3, ("cat", "dog", "ship")
CONDITIONAL = {
    "model.arch": "sngan_cnn",
    "model.conditional": "projection",
    "normalizer.kind": "none",
    "train.n_dis": 1,
    "steps": 1,
}


def sample(seed, num=60):
    """Features that lie around another point for each class, and labels, in any order."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(NAMES), (num,), generator=random)
    return torch.randn(num, WIDTH, generator=random) + 5 * labels[:, None], labels


def test_a_class_is_scored_by_its_own_images_on_both_sides():
    (real, real_labels), (fake, labels) = sample(0), sample(1, 90)
    found = class_scores(fake, labels, class_reference(real, real_labels, NAMES))
    assert [each.name for each in found] == [*NAMES]
    for label, each in enumerate(found):
        sides = FeatureSet(fake[labels == label]), FeatureSet(real[real_labels == label])
        assert (each.num_fake, each.num_real) == tuple(map(len, sides))
        assert each.distance == pytest.approx(frechet_distance(*sides))
        assert each.kernel == pytest.approx(kernel_distance(*sides).value)
        assert 0 < each.distance < 2


def test_images_of_another_class_than_was_asked_for_are_seen():
    """All images together have the right distribution, and the scores of a run would not tell."""
    (real, real_labels), (fake, labels) = sample(0), sample(1)
    reference = class_reference(real, real_labels, NAMES)
    right = class_scores(fake, labels, reference)
    wrong = class_scores(fake, (labels + 1) % len(NAMES), reference)
    for one, other in zip(right, wrong, strict=True):
        assert one.distance < 2 < 20 < other.distance
        assert one.kernel < other.kernel


def test_the_floor_of_a_class_is_two_halves_of_its_real_images():
    """Disjoint, or the distance is too small; of the class alone, or it is that of all classes."""
    real, labels = sample(0, 3000)
    reference = class_reference(real, labels, NAMES)
    assert all(1e-4 < floor < 0.1 for floor, _ in reference.floors)
    assert reference.floors == class_reference(real, labels, NAMES).floors


@pytest.mark.parametrize(("num", "has_distance"), [(WIDTH, False), (WIDTH + 1, True)])
def test_a_distance_needs_more_images_than_features_on_each_side_and_half(num, has_distance):
    random = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(n, WIDTH, generator=random) for n in (2 * num, 50))
    one = torch.zeros(2 * num, dtype=torch.long), torch.zeros(50, dtype=torch.long)
    (found,) = class_scores(fake, one[1], class_reference(real, one[0], ("all",)))
    assert (found.floor is not None, found.distance is not None) == (has_distance,) * 2
    assert found.kernel is not None
    (found,) = class_scores(real[:num], one[0][:num], class_reference(fake, one[1], ("all",)))
    assert (found.distance is not None) == has_distance
    assert found.floor is not None


def test_a_class_without_images_has_no_numbers():
    real, labels = sample(0)
    fake, asked = sample(1)
    reference = class_reference(real[labels > 0], labels[labels > 0], NAMES)
    found = class_scores(fake[asked != 1], asked[asked != 1], reference)
    assert [each.kernel is None for each in found] == [True, True, False]
    assert (found[0].num_real, found[1].num_fake) == (0, 0)


# ---------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A conditional run with scores, and one that knows no classes."""
    runs = tmp_path_factory.mktemp("runs")
    scored = {"score.protocol": "digits", "score.num_real": 300, "score.num_fake": 300}
    run(runs / "conditional", {**CONDITIONAL, **scored})
    run(runs / "plain", {**CONDITIONAL, "model.conditional": "none"})
    return runs


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run a script in an empty folder and return its exit code."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def ended(name: str, *argv: object) -> int:
        with pytest.raises(SystemExit) as end:
            script(name, *map(str, argv), "--device", "cpu")
        return end.value.code

    return ended


def test_a_conditional_run_and_the_script_score_every_class(folder, command, capsys):
    """By the labels of the very latents that its images are made of."""
    line = json.loads((folder / "conditional" / "metrics.jsonl").read_text())
    line.pop("step")
    record = from_json(ScoreRecord, line, "metrics.jsonl")
    loaded = load_generator(folder / "conditional")
    asked = loaded.labels(300, loaded.config.seed)
    assert [each.num_fake for each in record.classes] == asked.bincount(minlength=10).tolist()
    assert sum(each.num_real for each in record.classes) == 300
    assert all(each.kernel is not None for each in record.classes)
    sizes = "--num_real", 300, "--num_fake", 300, "--json", "record.json"
    assert command("fid.py", folder / "conditional", *sizes) == 0
    again = from_json(ScoreRecord, json.loads(Path("record.json").read_text()), "record.json")
    assert again.classes == record.classes
    printed = capsys.readouterr().out
    assert table(again) in printed
    assert "each class by itself" in printed
    assert "\nmean " in printed


def kids(record: dict) -> tuple[float, float]:
    """The mean KID of the classes of a record, and of their floors."""
    found = ([each[key] for each in record["classes"]] for key in ("kernel", "floor_kernel"))
    return tuple(sum(values) / 10 for values in found)


@pytest.fixture
def scored(folder, command, capsys):
    """Score the conditional run with further options: the records, and the lines that are said."""

    def found(*options: object) -> tuple[list[dict], list[str]]:
        sizes = "--num_real", 300, "--num_fake", 300, "--json", "records.json"
        assert command("fid.py", folder / "conditional", *options, *sizes) == 0
        return json.loads(Path("records.json").read_text()), capsys.readouterr().out.splitlines()

    return found


def test_all_checkpoints_have_the_means_of_their_classes(scored):
    (record,), lines = scored("--all")
    (head,) = (line for line in lines if line.startswith("checkpoint "))
    assert head.endswith("FD, mean of classes  KID, mean of classes")
    last, floor = (next(line for line in lines if word in line) for word in ("last.pt ", "floor"))
    assert (last.split()[-1], floor.split()[-1]) == tuple(f"{mean:.5g}" for mean in kids(record))


def test_draws_have_the_means_of_their_classes(scored):
    records, lines = scored("--draws", 2)
    (first, floor), (second, _) = map(kids, records)
    (line,) = (line for line in lines if line.startswith("KID, mean of classes "))
    mean, _, told = line.removeprefix("KID, mean of classes").split()
    assert (mean, told) == (f"{(first + second) / 2:.5g}", f"{floor:.5g}")


def test_labels_belong_to_the_images_that_are_scored(folder):
    loaded = load_generator(folder / "conditional")
    latents = loaded.prior.draw(40, 7, "samples")
    assert torch.equal(loaded.labels(40, 7), latents.labels)
    assert torch.equal(torch.cat([*loaded.batches(latents)]), loaded.sample(40, 7))


def test_where_a_side_has_no_such_classes_none_is_scored(folder, command, capsys):
    np.savez(
        "others.npz",
        images=load_images(DataConfig("digits", image_size=16)).images[:100, 0].numpy(),
    )
    sizes = "--num_real", 100, "--num_fake", 100, "--extractor", "digits", "--json", "record.json"
    for argv in ((folder / "plain",), (folder / "conditional", "others.npz")):
        assert command("fid.py", *argv, *sizes) == 0
        assert json.loads(Path("record.json").read_text())["classes"] == []
        assert "each class" not in capsys.readouterr().out
        Path("record.json").unlink()


def test_a_class_is_asked_for_by_name_or_index(folder, command):
    """All images are of it, of the latents that are drawn without it."""
    loaded = load_generator(folder / "conditional")
    latents = loaded.prior.draw(5, 3, "samples").of_class(8)
    expected = torch.cat([*loaded.batches(latents)])
    asked = "--num", 5, "--seed", 3, "--class", 8, "--out", "eights.npz"
    assert command("generate.py", folder / "conditional", *asked) == 0
    found = torch.from_numpy(np.load("eights.npz")["arr_0"]).permute(0, 3, 1, 2)
    assert torch.equal(found[:, :1], expected)


def test_a_name_goes_before_an_index(folder):
    loaded = load_generator(folder / "conditional")
    object.__setattr__(loaded, "classes", ("2", "ship", "car"))
    assert [loaded.class_named(text, "") for text in ("2", "ship", "0", "1")] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("conditional", "10", "--class: no class '10'; expected 0 to 9, or one of 0, 1, 2"),
        ("conditional", "ship", "--class: no class 'ship'; expected 0 to 9"),
        ("conditional", "-1", "--class: no class '-1'; expected 0 to 9"),
        ("plain", "3", "--class: '3' is not allowed, as the generator knows no classes"),
    ],
)
def test_a_class_that_cannot_be_asked_for_is_refused(folder, command, name, label, message, capsys):
    asked = "--num", 5, f"--class={label}", "--out", "it.npz"
    assert command("generate.py", folder / name, *asked) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not Path("it.npz").exists()


def test_a_picture_has_a_row_for_each_class(folder, command):
    """Of a training run, and of generate.py; the columns share their latents."""
    picture = np.asarray(Image.open(folder / "conditional" / "samples" / "step0000001.png"))
    cell = 16 + 2
    scale = -(-256 // (8 * cell + 2))
    assert picture.shape[:2] == (scale * (10 * cell + 2), scale * (8 * cell + 2))
    grid = "--num", 3, "--grid", "--out"
    assert command("generate.py", folder / "conditional", *grid, "rows.png") == 0
    assert command("generate.py", folder / "conditional", "--class", 4, *grid, "fours.png") == 0
    rows, fours = (np.asarray(Image.open(file)) for file in ("rows.png", "fours.png"))
    assert rows.shape[0] / rows.shape[1] == pytest.approx(10 / 3, rel=0.05)
    assert fours.shape[0] / fours.shape[1] == pytest.approx(2 / 2, rel=0.05)


def test_rows_are_classes_and_columns_latents():
    latents = Prior(4, 3).by_class(2, 0, "grid")
    assert latents.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(latents.z, latents.z[:2].repeat(3, 1))
    assert not torch.equal(latents.z[0], latents.z[1])
    many = Prior(4, 5 * ROWS).by_class(1, 0).labels
    assert len(many.unique()) == ROWS
    assert (many[0], many[-1]) == (0, 5 * ROWS - 1)


def test_a_checkpoint_without_names_is_damaged(folder, tmp_path):
    state = checkpoint.load(folder / "conditional" / "last.pt", FORMAT)
    del state["classes"]
    checkpoint.save(tmp_path / "last.pt", state)
    with pytest.raises(InputError, match=r"last.pt: not a complete checkpoint"):
        load_generator(tmp_path)
