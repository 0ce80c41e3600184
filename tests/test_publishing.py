"""Published weights: the generator of the run, in a folder that tells what it is, whole or not."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import ROOT, SELECTED, differing, run, script, state_of
from safetensors.numpy import load_file

import gan
from convnorm.experiment.errors import InputError
from convnorm.experiment.pictures import picture_of
from gan import card
from gan.card import _adam
from gan.config import OptimConfig
from gan.models import load_discriminator, load_generator
from gan.published import CARD, CONFIG, DISCRIMINATOR, GENERATOR, MODEL, SAMPLES, SCORES
from gan.publishing import publish

CONDITIONAL = {
    "model.arch": "sngan_cnn",
    "model.conditional": "projection",
    "normalizer.kind": "spectral",
    "train.n_dis": 1,
    "train.ema_decay": 0.5,
    "optim.lr": 0.03,  # so that a step is seen in the images
    "steps": 3,
}
ON_CPU = "--device", "cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs, `plain` of a folder of pictures and `scored`, which is conditional; both published."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    (folder / "secret").mkdir()
    for index in range(16):
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "secret" / f"{index}.png")
    of_folder = {"data.name": "folder", "data.root": str(folder / "secret")}
    run(folder / "plain", {**of_folder, "normalizer.kind": "none", "train.n_dis": 1, "steps": 1})
    run(folder / "scored", {**CONDITIONAL, **SELECTED, "score.every": 1})
    for name in ("plain", "scored"):
        publish(folder / name, folder / "out" / name, discriminator=True)
    publish(folder / "scored", folder / "out" / "best", "best")
    return folder


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch) -> None:
    """Scripts leave their arguments, their path and their cache here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)


def ended(name: str, *argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        script(name, *map(str, argv))
    return end.value.code


@pytest.mark.parametrize(
    ("name", "file"), [("plain", "last"), ("scored", "last"), ("best", "best")]
)
def test_what_is_published_is_the_generator_of_the_run(folder, name, file):
    """Catches live weights in place of averaged ones, another checkpoint and another config."""
    checkpoint = folder / name.replace("best", "scored") / f"{file}.pt"
    expected, found = load_generator(checkpoint), gan.load(str(folder / "out" / name))
    assert differing(found.sample(5, seed=1), expected.sample(5, seed=1)) == []
    for fact in ("step", "ema", "classes", "num_classes", "sha256"):
        assert getattr(found, fact) == getattr(expected, fact)
    assert differing(found.images(found.prior.draw(5, 2)), found.sample(5, seed=1)) != []


def test_a_discriminator_is_published_on_request(folder):
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 4])
    networks = [load_discriminator(folder / name).network for name in ("scored", "out/scored")]
    assert differing(*(network(images, labels) for network in networks)) == []
    with pytest.raises(InputError, match=r"out/best/model.json: holds a generator alone; expected"):
        load_discriminator(folder / "out" / "best")
    assert not (folder / "out" / "best" / DISCRIMINATOR).exists()


def test_a_discriminator_in_channels_last_is_published(tmp_path):
    run(tmp_path / "run", {"steps": 1, "train.channels_last": True})
    publish(tmp_path / "run", tmp_path / "out", discriminator=True)
    expected, found = (load_discriminator(tmp_path / name).network for name in ("run", "out"))
    assert differing(found.state_dict(), expected.state_dict()) == []


def test_the_card_tells_both_rates_and_where_they_go():
    assert _adam(OptimConfig(decay="none")) == "learning rate 0.0002, betas 0 and 0.9"
    two = OptimConfig(lr_d=4e-3, decay="cosine", final_beta2=0.99, decay_steps=50)
    assert _adam(two) == (
        "learning rate 0.0002 (of D 0.004), betas 0 and 0.9; cosine decay to 0 of the rate, "
        "beta2 to 0.99 in 50 steps"
    )


def test_other_programs_read_the_tensors(folder):
    found = load_file(folder / "out" / "scored" / GENERATOR)
    expected = state_of(folder / "scored")["ema"]
    assert found.keys() == expected.keys()
    assert all((found[name] == each.numpy()).all() for name, each in expected.items())


def test_scores_are_those_of_the_step(folder):
    lines = (folder / "scored" / "metrics.jsonl").read_text().splitlines()
    by_step = {line.pop("step"): line for line in map(json.loads, lines)}
    for name in ("scored", "best"):
        out = folder / "out" / name
        step = json.loads((out / MODEL).read_text())["step"]
        assert json.loads((out / SCORES).read_text()) == by_step[step]
        assert f"after step {step} of 3" in (out / CARD).read_text()
    assert len({json.dumps(line["scores"]) for line in by_step.values()}) == 3
    assert "score of its own selected" in (folder / "out" / "best" / CARD).read_text()
    assert not (folder / "out" / "plain" / SCORES).exists()
    assert "None were taken at this step" in (folder / "out" / "plain" / CARD).read_text()


def test_the_picture_has_a_row_for_each_class_or_the_first_images(folder):
    for name in ("plain", "scored"):
        loaded = load_generator(folder / name)
        latents = loaded.prior.by_class(8, 0, "samples") if loaded.classes else None
        images = loaded.sample(64, seed=0) if latents is None else loaded.images(latents)
        picture = torch.from_numpy(np.array(Image.open(folder / "out" / name / SAMPLES)))
        assert differing(picture.permute(2, 0, 1), picture_of(images, 8)) == []


def test_no_path_of_the_machine_is_told(folder):
    for file in (folder / "out").rglob("*"):
        if file.is_file():
            assert str(folder).encode() not in file.read_bytes(), file
    config = yaml.safe_load((folder / "out" / "plain" / CONFIG).read_text())
    assert config["data"]["root"] == "secret"


def test_no_path_of_real_images_is_told_in_scores(folder, tmp_path):
    """Of the reported score, and of the one that a step is selected by, wherever the data lay."""
    shutil.copytree(folder / "scored", tmp_path / "run")
    lines = [*map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())]
    for line in lines:
        for record in (line, line["selection"]):
            record["real"]["found"] = f"360 images from {tmp_path}/train"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    publish(tmp_path / "run", tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / SCORES).read_text()


def test_scripts_take_it_as_a_run(folder):
    records = []
    for name in ("scored", "out/scored"):
        sizes = ("--num_real", 300, "--num_fake", 300, "--json", "record.json", *ON_CPU)
        assert ended("fid.py", folder / name, *sizes) == 0
        records.append(json.loads(Path("record.json").read_text()))
    first, second = ({**record, "fake": record["fake"]["sha256"]} for record in records)
    assert first == second
    grid = ("--class", 4, "--num", 9, "--grid", "--out", "fours.png", *ON_CPU)
    assert ended("generate.py", folder / "out" / "scored", *grid) == 0
    assert Path("fours.png").is_file()


def test_what_the_card_shows_runs(folder, monkeypatch, tmp_path):
    text = (folder / "out" / "scored" / CARD).read_text()
    monkeypatch.chdir(folder / "out")
    told = {}
    exec(re.search("```python\n(.*?)```", text, re.DOTALL)[1], told)
    assert tuple(told["images"].shape) == (16, 1, 16, 16)
    assert (
        f"({', '.join(map(str, told['images'].shape))}) {told['images'].dtype}".replace(
            "torch.", ""
        )
        in text
    )
    told = ("--run_dir", tmp_path / "again", "--steps", 1, "--score.every", 0, *ON_CPU)
    assert ended("train_gan.py", "--cfg", f"scored/{CONFIG}", *told) == 0
    for file in (folder / "out" / "scored").iterdir():
        if file.name not in (CARD, MODEL):
            assert f"| {file.name} | {file.stat().st_size:,} bytes" in text.replace("\\_", "_")


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """A published folder that may be damaged."""
    (tmp_path / "copy").mkdir()
    for file in (folder / "out" / "best").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "copy"


@pytest.mark.parametrize("name", [GENERATOR, CONFIG])
def test_a_file_that_was_changed_or_lost_is_named(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[-1] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(InputError, match=f"copy/{name}: changed since it was published; expected"):
        gan.load(copied)
    (copied / name).unlink()
    with pytest.raises(InputError, match=f"copy/{name}: No such file .*; expected the file that"):
        gan.load(copied)
    model = json.loads((copied / MODEL).read_text())
    del model["files"][name]
    (copied / MODEL).write_text(json.dumps(model))
    with pytest.raises(InputError, match=f"copy/model.json: files: lacks {name}; expected its SHA"):
        gan.load(copied)


def test_a_training_does_not_take_it_for_a_run(copied):
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    with pytest.raises(InputError, match=r"run_dir: .*copy holds other files"):
        run(copied, CONDITIONAL)
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("absent", "new"), "RUN: absent holds no last.pt; expected a GAN's run folder"),
        (("out/best", "new"), "RUN: out/best holds no last.pt; expected"),
        (("plain", "new", "--checkpoint", "best"), "plain/best.pt: no such checkpoint; expected"),
        (("plain", "plain"), "OUT: plain is not empty; expected a new folder or an empty one"),
        (("plain", "plain/last.pt"), "OUT: plain/last.pt is there already; expected a new name"),
        (
            ("scored", "new", "--checkpoint", "best", "--discriminator"),
            "--discriminator: scored/best.pt holds a generator alone; expected last.pt",
        ),
        (("out/best", "new", "--checkpoint", "last"), "RUN: out/best holds no last.pt; expected"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(folder)
    assert ended("publish.py", *argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")
    assert not Path("new").exists()


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), KeyboardInterrupt()])
def test_what_is_not_complete_gets_no_name(folder, tmp_path, monkeypatch, error):
    def fails(*_: object) -> str:
        raise error

    monkeypatch.setattr(card, "text", fails)
    with pytest.raises((InputError, KeyboardInterrupt)):
        publish(folder / "plain", tmp_path / "new" / "out")
    assert [*(tmp_path / "new").iterdir()] == []


def test_a_card_of_digits_is_in_results():
    """The one that README shows: its files are those that were published, and it is up to date."""
    shipped = ROOT / "results" / "digits_projection"
    loaded = gan.load(shipped)
    assert loaded.config.model.conditional == "projection"
    assert loaded.sample(2, seed=0).shape == (2, 1, 16, 16)
    assert all(file.stat().st_size < 2**20 for file in shipped.iterdir())
