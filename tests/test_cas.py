"""scripts/cas.py: what a classifier learns from generated images, beside what real ones teach."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import differing, run, script

from convnorm.experiment.data import load_images
from gan.models import LoadedGenerator, load_generator

CONDITIONAL = {
    "model.arch": "sngan_cnn",
    "model.conditional": "projection",
    "normalizer.kind": "none",
    "train.n_dis": 1,
    "optim.lr": 0.03,  # so that images are not all gray
    "steps": 3,
}
CLASSIFIER = {
    "model": {"arch": "simple_cnn", "options": {"width": 8}},
    "normalizer": {"kind": "batch"},
    "optim": {"schedule": "onecycle"},
    "train": {"epochs": 2, "batch_size": 64, "flip": False, "crop": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "conditional", CONDITIONAL)
    run(folder / "plain", {**CONDITIONAL, "model.conditional": "none"})
    (folder / "classifier.yaml").write_text(yaml.safe_dump(CLASSIFIER))
    return folder


def cas(folder: Path, out: Path, *argv: object, name: str = "conditional") -> int:
    given = ("--cfg", folder / "classifier.yaml", "--device", "cpu")
    with pytest.raises(SystemExit) as end:
        script("cas.py", *map(str, (folder / name, out, *given, *argv)))
    return end.value.code


def accuracies(out: Path) -> tuple[int, int]:
    found = json.loads((out / "cas.json").read_text())["accuracy"]
    return found["generated"]["correct"], found["real"]["correct"]


@pytest.fixture(autouse=True)
def apart(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())


def generate(monkeypatch: pytest.MonkeyPatch, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Let every generator make these images."""
    monkeypatch.setattr(LoadedGenerator, "sample", lambda self, num, _: images[:num])
    monkeypatch.setattr(LoadedGenerator, "labels", lambda self, num, *_: labels[:num])


def test_a_perfect_generator_teaches_what_real_images_do(folder, tmp_path, monkeypatch, capsys):
    """The very same network; images under other labels than they show teach nothing."""
    real = load_images(load_generator(folder / "conditional").config.data, "train")
    generate(monkeypatch, real.images, real.labels)
    assert cas(folder, tmp_path / "perfect") == 0
    generated, expected = accuracies(tmp_path / "perfect")
    assert generated == expected > 150  # of 360; chance is 36
    assert f"CAS {generated / 360:.4f}" in capsys.readouterr().out
    states = [
        torch.load(tmp_path / "perfect" / name / "last.pt", weights_only=True)["network"]
        for name in ("generated", "real")
    ]
    assert differing(*states) == []
    generate(monkeypatch, real.images, (real.labels + 1) % 10)
    assert cas(folder, tmp_path / "wrong") == 0
    assert accuracies(tmp_path / "wrong")[0] < 36
    assert accuracies(tmp_path / "wrong")[1] == expected


def test_it_sees_the_images_that_a_score_does_and_goes_on(folder, tmp_path, monkeypatch):
    loaded = load_generator(folder / "conditional")
    assert cas(folder, tmp_path / "out", "--num", 70, "--seed", 3) == 0
    with np.load(tmp_path / "out" / "images" / "train.npz") as file:
        images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2)
        assert differing(images, loaded.sample(70, seed=3)) == []
        assert file["labels"].tolist() == loaded.labels(70, 3).tolist()
    found = (tmp_path / "out" / "cas.json").read_bytes()
    weights = [(tmp_path / "out" / name / "last.pt").stat().st_mtime_ns for name in ("real",)]
    assert cas(folder, tmp_path / "out", "--num", 70, "--seed", 3) == 0
    assert (tmp_path / "out" / "cas.json").read_bytes() == found
    assert weights == [(tmp_path / "out" / "real" / "last.pt").stat().st_mtime_ns]


def test_a_folder_of_other_images_is_refused_before_they_change(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert cas(folder, out, "--num", 70) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = {("--num", 80): "num: 70 there, 80 here"}
    refused |= {("--num", 70, "--seed", 1): "seed: 0 there, 1 here"}
    for argv, expected in refused.items():
        capsys.readouterr()
        assert cas(folder, out, *argv) == 2
        assert f"OUT: {out} holds the CAS of other images ({expected})" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "cas.json").write_text("{")
    assert cas(folder, out, "--num", 70) == 2
    assert "cas.json is damaged; expected what cas.py writes" in capsys.readouterr().err


def test_everything_may_have_moved_since_it_was_trained(tmp_path, monkeypatch):
    """The classifiers remember where their images were."""
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split, num in (("train", 120), ("test", 40)):
        images, labels = random.integers(0, 256, (num, 16, 16), np.uint8), np.arange(num) % 4
        np.savez(tmp_path / "data" / f"{split}.npz", images=images, labels=labels)
    data = {"data.name": "npz", "data.root": str(tmp_path / "data"), "data.image_size": 16}
    run(tmp_path / "conditional", {**CONDITIONAL, **data, "train.batch_size": 16})
    (tmp_path / "classifier.yaml").write_text(yaml.safe_dump(CLASSIFIER))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cas(tmp_path, Path("out")) == 0
    found = (tmp_path / "here" / "out" / "cas.json").read_bytes()
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "here" / "out").rename(tmp_path / "cas")
    assert cas(tmp_path, tmp_path / "cas", "--data_root", tmp_path / "moved") == 0
    assert (tmp_path / "cas" / "cas.json").read_bytes() == found


@pytest.mark.parametrize(
    ("name", "argv", "expected"),
    [
        ("plain", (), "plain knows no classes; expected one of model.conditional"),
        ("absent", (), "absent: no such checkpoint"),
        ("conditional", ("--cfg", "absent"), "--cfg absent: no such file"),
        ("conditional", ("--num", "0"), "--num: '0' is not allowed; expected 1 to"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys, name, argv, expected):
    assert cas(folder, tmp_path / "out", *argv, name=name) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
