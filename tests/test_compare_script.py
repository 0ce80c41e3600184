"""Two runs held against each other: only what was measured in the same way is compared."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import SCORED, classifier_run, run, script
from scipy.stats import binomtest

from classification.pair import read_pair
from convnorm.experiment.benchmark import pair
from convnorm.experiment.statistics import holm

GAN = {**SCORED, "score.num_real": 100, "score.num_fake": 100, "score.every": 1, "steps": 2}
CLASSIFIER = {"split.validation": 0.1, "split.train_fraction": 0.3, "train.epochs": 2}


def called(name: str, *argv: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        with pytest.raises(SystemExit) as end:
            script(name, *map(str, argv))
    return end.value.code


def evaluated(run_dir: Path, *options: object) -> None:
    assert called("evaluate_cls.py", run_dir, "--device", "cpu", *options) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two GANs and two classifiers; of these only the second was attacked by PGD."""
    folder = tmp_path_factory.mktemp("made")
    for kind in ("convnorm", "none"):
        run(folder / "gan" / kind, {**GAN, "normalizer.kind": kind})
    for kind, seed, attacks in (("convnorm", 0, ["fgsm"]), ("batch", 1, ["fgsm", "pgd2x1"])):
        run_dir = folder / "cls" / kind
        classifier_run(run_dir, {**CLASSIFIER, "normalizer.kind": kind, "seed": seed})
        evaluated(run_dir, "--attacks", *attacks)
    return folder


@pytest.fixture
def runs(made, tmp_path) -> Path:
    """A copy of them to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def compared(capsys, *argv: object) -> str:
    """What the script prints; it must succeed."""
    capsys.readouterr()
    code = called("compare.py", *argv)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def rows(text: str) -> dict[str, list[str]]:
    """The first column of the tables -> the others."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return {first: rest for first, *rest in lines if rest}


def record(run_dir: Path, stem: str = "best") -> dict:
    return json.loads((run_dir / "evaluation" / f"{stem}.json").read_text())


def test_classifiers_are_tested_on_the_images_of_both(made, capsys):
    a, b = classifiers(made)
    text = compared(capsys, a, b)
    found = rows(text)
    assert found["normalizer.kind"] == ["convnorm", "batch"]
    assert found["seed"] == ["0", "1"]
    assert "optim.lr" not in found
    here, there = (100 * record(it)["clean"]["top1"]["value"] for it in (a, b))
    better = "A" if here > there else "B"
    shown = found["clean (%), selected"]
    assert [float(value) for value in shown[:3]] == pytest.approx([here, there, there - here], 1e-3)
    assert shown[3] == better
    p_values = []
    for name in ("clean", "fgsm"):
        flags = [np.load(it / "evaluation" / "best.npz")[name] for it in (a, b)]
        only = [int((flags[i] & ~flags[1 - i]).sum()) for i in (0, 1)]
        assert found[f"{name}, selected"][:3] == ["360", *map(str, only)]
        p_values.append(binomtest(only[0], sum(only)).pvalue)
    for name, p, adjusted in zip(("clean", "fgsm"), p_values, holm(p_values), strict=True):
        shown = [float(value) for value in found[f"{name}, selected"][3:]]
        assert shown == pytest.approx([p, adjusted], rel=0.01)
    assert "B alone was evaluated under pgd2x1 (best.pt)" in text
    assert "selected: on 360 test images, attacked within linf" in text
    assert "pgd2x1, selected" not in text


@pytest.mark.parametrize(
    ("gains", "told"),
    [
        ((0.5, 0.6), "Both have one plateau gain, to within a factor of 1.25: 0.500 and 0.600."),
        ((1.2, 0.4), "The plateau gain of A is 1.20, of B 0.400: what differs may be the gain."),
        ((None, 0.4), None),
    ],
)
def test_two_gans_are_told_their_gains(made, capsys, monkeypatch, gains, told):
    """Runs of two steps have no plateau, so it is given here."""
    left = iter(gains)
    monkeypatch.setattr(pair, "plateau_gain", lambda result: next(left))
    text = compared(capsys, *gans(made))
    assert told in text if told else "plateau" not in text


def test_gans_are_compared_by_their_scores(made, capsys):
    a, b = gans(made)
    found = rows(compared(capsys, a, b))
    scores = [
        json.loads((it / "summary.json").read_text())["metrics"]["scores"]["FD (digits)"]
        for it in (a, b)
    ]
    shown = [float(value.replace(",", "")) for value in found["FD (digits), final"][:3]]
    assert shown == pytest.approx([*scores, scores[1] - scores[0]], abs=0.1)
    assert found["FD (digits), final"][3] == ("A" if scores[0] < scores[1] else "B")
    assert not any("McNemar" in first for first in found)


def test_gans_are_drawn_into_one_picture_or_one_page(made, tmp_path, capsys):
    png, page = tmp_path / "x.png", tmp_path / "x.html"
    assert f"written: {png}" in compared(capsys, *gans(made), "--out", png)
    with Image.open(png) as picture:
        picture.load()
        assert picture.height > picture.width  # the samples are below the curves
    compared(capsys, *gans(made), "--out", page)
    dark, light = pictures(page)
    assert light == png.read_bytes() != dark
    assert "<td>normalizer.kind</td>" in page.read_text()


def test_classifiers_have_curves_alone(made, tmp_path, capsys):
    page = tmp_path / "x.html"
    compared(capsys, *classifiers(made), "--out", page)
    with Image.open(io.BytesIO(pictures(page)[1])) as picture:
        assert picture.height < picture.width
    assert "Samples" not in page.read_text()
    assert "exact test" in page.read_text()


def pictures(page: Path) -> list[bytes]:
    """The dark and the light one."""
    found = re.findall('="data:image/png;base64,(.*?)"', page.read_text())
    return [base64.b64decode(each) for each in found]


def gans(runs: Path) -> tuple[Path, Path]:
    return runs / "gan" / "convnorm", runs / "gan" / "none"


def classifiers(runs: Path) -> tuple[Path, Path]:
    return runs / "cls" / "convnorm", runs / "cls" / "batch"


def test_the_pair_of_evaluations_with_most_in_common_counts_whatever_their_names(runs):
    """The name of a file tells how the settings differ from the run's own, which differ too."""
    a, b = classifiers(runs)
    for suffix in (".json", ".npz"):
        (b / "evaluation" / "best").with_suffix(suffix).rename(
            b / "evaluation" / f"best_eps=8{suffix}"
        )
    evaluated(b, "--attacks", "--num", 60)  # shares no image set with A's
    pairing = read_pair(a, b)
    assert pairing.a.scores["selected"].keys() == {"clean", "fgsm", "ECE", "NLL"}
    assert (
        pairing.b.scores["selected"]["clean"] == record(b, "best_eps=8")["clean"]["top1"]["value"]
    )


def test_all_test_images_count_before_fewer_and_before_those_of_selection(runs, capsys):
    """Whatever they were attacked with: another budget would turn the table around."""
    both = classifiers(runs)
    for run_dir in both:
        evaluated(run_dir, "--attacks", "fgsm", "pgd2x1", "--eps", 2, "--num", 60)
        evaluated(run_dir, "--attacks", "fgsm", "pgd2x1", "pgd3", "--split", "validation")
    text = compared(capsys, *both)
    assert "selected: on 360 test images" in text
    own = 100 * record(both[0])["attacks"][0]["accuracy"]["value"]
    assert float(rows(text)["fgsm (%), selected"][0]) == pytest.approx(own, 1e-3)


def test_runs_that_followed_other_scores_have_no_curves_and_that_is_said(runs, capsys):
    a, b = classifiers(runs)
    config = b / "config.yaml"
    config.write_text(config.read_text().replace("metric: accuracy", "metric: pgd10"))
    summary = json.loads((b / "summary.json").read_text())
    summary["best"]["scores"]["pgd10"] = 0.1
    (b / "summary.json").write_text(json.dumps(summary))
    text = compared(capsys, a, b)
    assert "A followed validation accuracy during training, B validation pgd10" in text


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def other_images(runs: Path) -> None:
    file = runs / "cls" / "batch" / "evaluation" / "best.json"
    change(file, record(runs / "cls" / "batch")["data"]["images_sha256"], "0" * 64)


def other_eps(runs: Path) -> None:
    shutil.rmtree(runs / "cls" / "batch" / "evaluation")
    evaluated(runs / "cls" / "batch", "--attacks", "fgsm", "--eps", 2)


def other_real_images(runs: Path) -> None:
    run_dir = runs / "gan" / "none"
    sha256 = json.loads((run_dir / "summary.json").read_text())["metrics"]["real"]["sha256"]
    for name in ("summary.json", "metrics.jsonl"):
        change(run_dir / name, sha256, "0" * 64)


def no_number(runs: Path) -> None:
    run_dir = runs / "gan" / "none"
    for name in ("summary.json", "metrics.jsonl"):
        text = re.sub(
            r'("scores": {\s*"FD \(digits\)": )[\d.e+-]+', r"\1null", (run_dir / name).read_text()
        )
        (run_dir / name).write_text(text)


def not_finished(runs: Path) -> None:
    (runs / "gan" / "none" / "summary.json").unlink()


def not_evaluated(runs: Path) -> None:
    shutil.rmtree(runs / "cls" / "batch" / "evaluation")


def weights_were_replaced(runs: Path) -> None:
    shutil.copy(runs / "cls" / "convnorm" / "best.pt", runs / "cls" / "batch" / "best.pt")


def no_config(runs: Path) -> None:
    (runs / "gan" / "none" / "config.yaml").unlink()


def strange_config(runs: Path) -> None:
    (runs / "gan" / "none" / "config.yaml").write_text("a: 1\n")


def none(runs: Path) -> None:
    pass


GANS, CLASSIFIERS = ("gan/convnorm", "gan/none"), ("cls/convnorm", "cls/batch")


@pytest.mark.parametrize(
    ("spoil", "given", "message"),
    [
        (none, ("gan/none", "cls/batch"), r"RUN_A .*none is of gan and RUN_B .*batch of classific"),
        (none, ("gan/none", "gan/../gan/none"), "RUN_A and RUN_B: .* is both; expected two runs"),
        (none, ("gan/none", "gan/nowhere"), "nowhere: no such folder; expected that of a run"),
        (none, ("gan/none", "gan/none/last.pt"), "last.pt: no such folder; expected that of a run"),
        (none, (*GANS, "--out", "x.pdf"), "--out: x.pdf is not allowed; expected .* .png or .html"),
        (none, (*GANS, "--out", "nowhere/x.png"), "--out: nowhere/x.png cannot be written"),
        (none, ("gan/none",), "RUN_B: missing"),
        (no_config, GANS, "none: holds no config.yaml; expected the folder of a run"),
        (strange_config, GANS, "config.yaml: is of no pipeline; expected one of gan, class"),
        (not_finished, GANS, "none/summary.json: No such file .*; expected that of a finished run"),
        (no_number, GANS, "none: the final FD .digits. is nan; expected a number"),
        (other_real_images, GANS, "not measured in the same way, there and here: real_sha256: '"),
        (
            other_images,
            CLASSIFIERS,
            "best.pt was not evaluated in the same way.* data.images_sha256",
        ),
        (other_eps, CLASSIFIERS, "best.pt was not evaluated in the same way.* attacks.fgsm.eps"),
        (not_evaluated, CLASSIFIERS, "of .*convnorm, best.pt was evaluated, of .*batch, nothing"),
        (weights_were_replaced, CLASSIFIERS, "of .*convnorm, best.pt was eval.*, of .*batch, noth"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(spoil, given, message, runs, capsys):
    spoil(runs)
    argv = [it if it.startswith("-") or "x.p" in it else runs / it for it in given]
    capsys.readouterr()
    assert called("compare.py", *argv) == 2
    output = capsys.readouterr()
    assert output.out == ""
    *before, error = output.err.splitlines()
    assert all(line.startswith("left out: ") for line in before)
    assert re.match(f"error: .*{message}", error), error
