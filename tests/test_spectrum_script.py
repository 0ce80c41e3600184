"""The script that shows spectra: numbers of the network that was given, and one line for errors."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import reference
import torch
from PIL import Image
from runs import classifier_run, run, script
from torch import nn

from classification.models import load_classifier
from convnorm import ConvNorm2d
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from convnorm.spectrum import operator_norm

CLASSIFIER = {
    "normalizer.batch_norm": True,
    "normalizer.affine": True,
    "train.epochs": 1,
    "select.metric": "accuracy",
    "log.norms_every": 1,
}
OWN = ["norms.png", "conditions.png", "spectrum.csv", "spectrum.json"]


def called(*argv: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        with pytest.raises(SystemExit) as end:
            script("spectrum.py", *map(str, argv))
    return end.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two classifiers of one method and one of another, and a GAN."""
    folder = tmp_path_factory.mktemp("made")
    for kind, seed in (("convnorm", 0), ("convnorm", 1), ("batch", 0)):
        changes = {**CLASSIFIER, "normalizer.kind": kind, "seed": seed}
        classifier_run(folder / f"{kind}{seed}", changes)
    run(folder / "gan", {"steps": 1, "normalizer.kind": "spectral"})
    return folder


@pytest.fixture(scope="module")
def written(made, tmp_path_factory) -> Path:
    """What the script writes of the classifiers."""
    out = tmp_path_factory.mktemp("written") / "out"
    sources = [made / name for name in ("convnorm0", "convnorm1", "batch0")]
    options = ["--images", "5", "--dtype", "float64", "--layer", "features.2", "--device", "cpu"]
    assert called(*sources, *options, "--out", out) == 0
    return out


@pytest.mark.parametrize("name", ["batch0", "gan"])
def test_a_run_of_before_an_option_is_read_with_its_default(made, name, tmp_path):
    state = torch.load(made / name / "last.pt", weights_only=True)
    del state["config"]["normalizer"]["scale"]
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "last.pt", state)
    assert called(tmp_path / "run", "--images", "0", "--device", "cpu") == 0


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "spectrum.csv").read_text().splitlines()))


def test_rows_are_stages_of_layers_of_every_network(made, written):
    found = rows(written)
    names = [f"features.{i}" for i in (0, 2, 4, 6)]
    expected = {
        "convnorm": ["conv", "gain", "affine", "batch_norm"],
        "batch": ["conv", "batch_norm"],
    }
    assert [(row["method"], row["seed"], row["layer"], row["stage"]) for row in found] == [
        (kind, seed, layer, stage)
        for kind, seed in (("convnorm", "0"), ("convnorm", "1"), ("batch", "0"))
        for layer in names
        for stage in expected[kind]
    ]


def test_numbers_are_those_of_the_trained_layer(made, written):
    """Another checkpoint, batch statistics, a map of another size, BatchNorm left out."""
    network = load_classifier(made / "convnorm1" / "last.pt").network
    layer, size = network.get_submodule("features.2").double(), (4, 8, 8)
    row = next(
        row
        for row in rows(written)
        if (row["seed"], row["method"], row["layer"]) == ("1", "convnorm", "features.2")
        and row["stage"] == "batch_norm"
    )
    assert (row["geometry"], row["map"], row["ring"]) == ("4->8 3x3 stride 2", "8x8", "8x8")
    truth = reference.sigma_max(layer, size)
    assert float(row["lanczos"]) == pytest.approx(truth, rel=1e-3)
    assert float(row["lanczos"]) <= truth * (1 + 1e-5) <= float(row["bound"])
    assert truth == pytest.approx(operator_norm(layer, torch.Size((1, *size))), rel=1e-3)
    assert float(row["condition"]) == pytest.approx(float(row["largest"]) / float(row["smallest"]))
    conv = layer[0]
    ring = nn.Conv2d(4, 8, 3, 2, 1, bias=False, padding_mode="circular").double()
    ring.weight = conv.weight
    alone = next(
        row
        for row in rows(written)
        if (row["seed"], row["method"], row["layer"], row["stage"])
        == ("1", "convnorm", "features.2", "conv")
    )
    values = torch.linalg.svdvals(reference.dense(ring, size).flatten(0, 1))
    assert float(alone["largest"]) == pytest.approx(values[0].item())
    assert float(alone["smallest"]) == pytest.approx(values[-1].item())
    assert int(alone["count"]) == len(values)


def test_a_bound_stands_beside_its_jacobian(written):
    for network in json.loads((written / "spectrum.json").read_text()):
        assert network["images"] == 5
        assert 0 < network["jacobian"] <= network["bound"]
        assert network["step"] == 3
        assert network["notes"] == []


def test_pictures_are_written_whole(written):
    names = sorted(path.name for path in written.iterdir())
    assert names == sorted([*OWN, "values.png", "training.png", "bound.png"])
    for path in written.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > 900


def test_a_gan_shows_its_discriminator(made, capsys):
    assert called(made / "gan", "--images", "3", "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "spectral: 1 network, after step 1"
    assert [line.split()[:2] for line in lines[3:5]] == [["0", "conv"], ["2", "conv"]]
    assert any(line.startswith("spectral") and " 3 " in line for line in lines[5:])


def test_without_images_there_is_no_bound(made, capsys):
    assert called(made / "batch0", "--images", "0", "--device", "cpu") == 0
    assert "Jacobian" not in capsys.readouterr().out


def test_numbers_of_a_method_are_means_with_their_range(made, written, capsys):
    sources = [made / name for name in ("convnorm0", "convnorm1")]
    assert called(*sources, "--images", "0", "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "convnorm: 2 networks, after step 3"
    first = [float(row["largest"]) for row in rows(written) if row["layer"] == "features.0"]
    values = [first[0], first[4]]
    expected = f"{sum(values) / 2:.2f} ({min(values):.2f} to {max(values):.2f})"
    assert expected in lines[3]


def test_methods_are_told_apart_by_what_differs():
    """A scale that only one method has, and a label that two would share."""
    from spectra.records import Measured, by_method

    def one(kind, scale, seed):
        settings = {"normalizer.kind": kind, "normalizer.scale": scale}
        return Measured("x", "x", kind, seed, 1, (), {}, None, 0, None, (), settings)

    measured = [one("none", 1.0, 0), one("none", 1.7, 0), one("batch", 1.0, 0), one("none", 1.0, 1)]
    found = {name: [run.seed for run in runs] for name, runs in by_method(measured).items()}
    assert found == {"none": [0, 1], "none, normalizer.scale 1.7": [0], "batch": [0]}


@pytest.fixture
def small_models(monkeypatch):
    """torchvision's names stand for a network of two layers: real ones take seconds."""
    import torchvision

    def build(name, weights):
        assert weights is None
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.GroupNorm(1, 4),
        )

    monkeypatch.setattr(torchvision.models, "get_model", build)


def test_a_model_is_shown_at_its_input_size(small_models, tmp_path, capsys):
    argv = ["torchvision:resnet18", "--input_size", "7", "--device", "cpu"]
    assert called(*argv, "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")
    assert [(row["layer"], row["stage"], row["map"], row["ring"]) for row in found] == [
        ("0", "conv", "7x7", "8x8"),
        ("0", "batch_norm", "7x7", "8x8"),
        ("2", "conv", "4x4", "4x4"),
    ]
    assert "taken on a map of 8x8: the stride divides it" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(OWN)
    weights = tmp_path / "w.pt"
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), weights)
    assert called(*argv, "--weights", weights) == 2
    assert f"error: --weights: {weights}: Error(s) in loading" in capsys.readouterr().err


def test_norms_are_of_the_stage_that_they_stand_beside(monkeypatch, tmp_path):
    """Of a whole layer, beside what a part that has no symbol was left out of."""
    import torchvision

    layer = ConvNorm2d(3, 4, 3, padding=1, batch_norm=False)
    layer.affine = nn.Conv2d(4, 4, 1)  # mixes channels
    network = nn.Sequential(layer, nn.Conv2d(4, 2, 1))
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: network)
    argv = ["torchvision:resnet18", "--input_size", "8", "--device", "cpu", "--out", tmp_path]
    assert called(*argv) == 0
    found = {(row["layer"], row["stage"]): row for row in rows(tmp_path)}
    assert list(found) == [("0", "conv"), ("0", "gain"), ("1", "conv")]
    assert found["0", "gain"]["lanczos"] == found["0", "gain"]["bound"] == ""
    assert "second convolution" in found["0", "gain"]["notes"]
    assert float(found["1", "conv"]["lanczos"]) > 0


def test_a_network_that_diverged_is_shown_as_it_is(small_models, tmp_path, capsys):
    """NaN in a table and gaps in pictures; JSON knows no NaN."""
    argv = ["torchvision:resnet18", "--input_size", "8", "--device", "cpu"]
    weights = tmp_path / "w.pt"
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4))
    network.append(nn.GroupNorm(1, 4))
    for parameter in network.parameters():
        nn.init.constant_(parameter, float("nan"))
    torch.save(network.state_dict(), weights)
    assert called(*argv, "--weights", weights, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines()[3].split()[1:5] == ["conv", "nan", "nan", "nan"]
    text = (tmp_path / "out" / "spectrum.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)[0]["layers"][0]["stages"][0]["values"]["largest"] is None


def test_a_bound_that_is_refused_says_why(small_models, tmp_path, capsys):
    argv = ["torchvision:resnet18", "--input_size", "8", "--data", "digits", "--images", "2"]
    assert called(*argv, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "- no bound of the network: 3: GroupNorm has no bound here" in said
    assert said.splitlines()[-3].split()[2:] == ["2", "n/a", "n/a"]


def test_timm_is_asked_for_networks_of_its_own(monkeypatch):
    timm = pytest.importorskip("timm")
    from gan.timm_extractors import untrained

    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: (name, pretrained))
    assert untrained("resnet18") == ("resnet18", False)
    with pytest.raises(InputError, match=r"timm:hf-hub:a/b: no such network; expected one of timm"):
        untrained("hf-hub:a/b")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("", "RUN|MODEL: missing; see --help"),
        ("nowhere", "RUN: nowhere: no such folder or file; expected the folder of a run, a check"),
        (".", "last.pt: no such checkpoint"),
        ("{made}/batch0 {made}/batch0", "RUN: {made}/batch0 is given twice; expected each network"),
        ("{made}/batch0 {made}/batch0/last.pt", "{made}/batch0/last.pt: has the config and the"),
        ("{made}/batch0 {made}/gan", "{made}/gan: layer features.0: none, in {made}/batch0: 1->4"),
        ("{made}/gan/last.pt --checkpoint last", "--checkpoint: last is not allowed with {made}/"),
        ("{made}/gan --checkpoint best", "{made}/gan/best.pt: no such checkpoint; expected a run"),
        ("{made}/batch0/config.yaml", "{made}/batch0/config.yaml: damaged or not a checkpoint"),
        ("{made}/batch0 --input_size 32", "--input_size: is for torchvision:NAME and timm:NAME"),
        ("{made}/batch0 --weights x", "--weights: is for torchvision:NAME and timm:NAME"),
        ("{made}/batch0 --data digits", "--data: is for torchvision:NAME and timm:NAME"),
        ("{made}/batch0 --data_root x", "data_root: 'x' is not allowed; expected none, as the"),
        ("{made}/batch0 --layer features.2", "--layer: is not allowed without --out"),
        ("{made}/batch0 --overwrite", "--overwrite: is not allowed without --out"),
        ("{made}/batch0 --layer 3 --out new", "--layer: '3'; expected one of features.0, featur"),
        ("{made}/batch0 --out file", "--out: file cannot be made a folder (File exists)"),
        ("{made}/batch0 --out full", "--out: full holds spectrum.csv; expected another folder, or"),
        ("{made}/batch0 --out ~no_such_user/x", "--out: ~no_such_user/x: there is no user"),
        ("{made}/batch0 --images -1", "--images: '-1' is not allowed; expected 0 to 100000"),
        (
            "{made}/batch0 --dtype float16",
            "--dtype: 'float16' is not allowed; expected one of",
        ),
        ("{made}/batch0 --device tpu", "--device: 'tpu' is not allowed; expected one of"),
        ("{made}/batch0 --checkpoint first", "--checkpoint: 'first' is not allowed; expected one"),
        ("{made}/batch0 --sizes 3", "sizes: no such key; expected"),
        ("torchvision:resnet18", "--input_size: missing; expected the pixels of an image for torc"),
        ("torchvision:resnet18 --input_size 0", "--input_size: '0' is not allowed; expected 1 to"),
        ("torchvision:resnet --input_size 8", "MODEL: torchvision:resnet: no such classifier; exp"),
        ("torchvision:fcn_resnet50 --input_size 8", "MODEL: torchvision:fcn_resnet50: no such cla"),
        ("timm:nothing --input_size 8", "timm:nothing: no such network; expected one of timm"),
        (
            "torchvision:resnet18 --input_size 8 --checkpoint last",
            "--checkpoint: is for runs; torch",
        ),
        ("torchvision:resnet18 --input_size 8 --data_root x", "--data_root: x is not allowed; exp"),
        ("torchvision:resnet18 --input_size 8 --weights no", "--weights: no: no such file; expec"),
        ("torchvision:resnet18 --input_size 8 --weights file", "--weights: file: "),
        (
            "torchvision:resnet18 --input_size 1",
            "torchvision:resnet18: does not take an image of 3",
        ),
        (
            "torchvision:resnet18 --input_size 8 --data npz --data_root no.npz",
            "torchvision:resnet18: data.root: no.npz",
        ),
    ],
)
def test_bad_arguments_are_answered_in_one_line(
    argv, line, made, small_models, monkeypatch, tmp_path, capsys
):
    if "timm" in argv:
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not weights")
    Path("full").mkdir()
    Path("full/spectrum.csv").write_text("mine")
    assert called(*argv.format(made=made).split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {line.format(made=made)}"), said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert Path("full/spectrum.csv").read_text() == "mine"
    assert [path for path in Path("full").iterdir() if path.suffix != ".csv"] == []


def test_overwriting_leaves_nothing_of_the_look_before(made, written, tmp_path):
    """Pictures of other runs beside a new table; but never a file that is not the script's."""
    out = shutil.copytree(written, tmp_path / "out")
    (out / "README.md").write_text("mine")
    argv = [made / "batch0", "--images", "0", "--device", "cpu", "--out", out]
    assert called(*argv) == 2
    assert called(*argv, "--overwrite") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted([*OWN, "training.png", "README.md"])
    assert {row["method"] for row in rows(out)} == {"batch"}
