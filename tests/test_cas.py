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
