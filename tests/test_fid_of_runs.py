"""scripts/fid.py with runs: the newest, its own data and protocol, all checkpoints, many draws."""

import json
import os
import re
import shutil
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from runs import SELECTED, log_of, run, script, tiny, tiny_classifier

from convnorm.experiment.config import to_yaml
from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import InputError
from gan.runs import newest_run
from gan.score_tables import draws_table, mean_and_spread, shown
from gan.sources import own_data, own_protocol

FEW = {**SELECTED, "score.num_real": 60, "score.num_fake": 60}
RUN = "runs/gan/digits_convnorm/seed0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run whose best.pt is not of its last step."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {**FEW, "normalizer.kind": "none", "score.every": 2, "checkpoints.every": 1}
    run(folder / RUN, changes)
    shutil.copy(folder / RUN / "checkpoints" / "step_0000002.pt", folder / RUN / "best.pt")
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Path:
    """The same to write in, and to stand in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained / "cache"))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(shutil.copytree(trained / "runs", tmp_path / "runs").parent)
    return tmp_path


def fid(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        script("fid.py", *argv, "--device", "cpu")
    return ended.value.code


def records(*argv: str) -> dict | list:
    """What --json holds."""
    assert fid(*argv, "--json", "record.json") == 0
    return json.loads(Path("record.json").read_text())


def measured(run_dir: Path) -> dict[str, float]:
    """What the run itself says of its last step."""
    return log_of(run_dir, "metrics.jsonl")[-1]


def test_alone_it_scores_the_newest_run_as_the_run_scores_itself(place, capsys):
    """Catches other data, another split, other numbers of images, an older run, a classifier."""
    newer = place / "runs/benchmark/grid/runs/none/seed0"
    shutil.copytree(place / RUN, newer)
    classifier = place / "runs/benchmark/other/seed0"
    classifier.mkdir(parents=True)
    (classifier / "config.yaml").write_text("select: {metric: accuracy}\n")
    (classifier / "last.pt").write_bytes(b"PK")
    for age, folder in enumerate((classifier, newer, place / RUN)):
        os.utime(folder / "last.pt", (10**9 - age, 10**9 - age))
    record = records()
    assert "FAKE: runs/benchmark/grid/runs/none/seed0, the newest run\n" in capsys.readouterr().err
    own = measured(place / RUN)
    for key in ("scores", "spreads", "protocol", "floor", "num_fake", "num_real", "seed"):
        assert record[key] == own[key]
    assert record["real"]["source"] == "digits"
    os.utime(place / RUN / "last.pt")
    assert records()["fake"]["source"] == RUN


@pytest.mark.parametrize(
    ("argv", "protocol"),
    [
        ([], "digits[real=60,fake=60]"),
        (["--num_fake", "50"], "digits[real=60,fake=60][fake=50]"),
        (["--protocol", "digits_test", "--num_fake", "60"], "digits_test[fake=60]"),
    ],
)
def test_without_real_a_run_has_its_own_data_and_protocol(place, argv, protocol):
    assert records(RUN, *argv)["protocol"]["name"] == protocol
    assert records(f"{RUN}/last.pt", *argv)["protocol"]["name"] == protocol


@pytest.mark.parametrize(
    ("changes", "protocol"),
    [
        ({}, "digits"),
        ({"score.protocol": "digits_test"}, "digits_test"),
        ({"data.name": "cifar10"}, "fid50k_train"),
        ({"data.name": "cifar10", "score.protocol": "fid10k_test"}, "fid10k_test"),
        (FEW, "digits[real=60,fake=60]"),
    ],
)
def test_the_protocol_of_a_run_is_that_of_its_config(changes, protocol):
    assert own_protocol(tiny(changes)).name == protocol


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_data_of_a_run_are_read_as_its_config_says(tmp_path, split):
    """In the split of the protocol, at the size of the run, and from where they were moved to."""
    for index, name in enumerate(("train", "test")):
        (tmp_path / "data" / name).mkdir(parents=True)
        pixels = np.full((12, 12), 100 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / name / "0.png")
    source = own_data(DataConfig("folder", str(tmp_path / "data"), 16), split, None)
    assert (source.images.shape[-1], int(source.images.max())) == (16, 100 * (split == "test"))
    assert (source.origin.source, source.origin.split) == (str(tmp_path / "data"), split)
    moved = DataConfig("folder", str(tmp_path / "gone"), 16)
    assert own_data(moved, split, str(tmp_path / "data")).images.equal(source.images)
    with pytest.raises(InputError, match="gone is not a folder"):
        own_data(moved, split, None)


def test_best_and_last_are_told_apart(place):
    assert records(RUN)["fake"]["step"] == records(RUN, "--checkpoint", "last")["fake"]["step"] == 4
    best = records(RUN, "--checkpoint", "best")
    assert (best["fake"]["source"], best["fake"]["step"]) == (f"{RUN}/best.pt", 2)
    assert best["scores"] != records(RUN)["scores"]


def test_all_checkpoints_are_rows_of_one_table(place, capsys):
    """Catches a file that is left out, and a row with the scores of another one."""
    capsys.readouterr()
    found = records(RUN, "--all")
    printed = capsys.readouterr().out
    kept = [f"step_000000{step}.pt" for step in (1, 2, 3, 4)]
    names = [*(f"{RUN}/checkpoints/{name}" for name in kept), f"{RUN}/best.pt", f"{RUN}/last.pt"]
    assert [each["fake"]["source"] for each in found] == names
    assert [each["fake"]["step"] for each in found] == [1, 2, 3, 4, 2, 4]
    assert len({json.dumps(each["protocol"]) for each in found}) == 1
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    for record in found:
        step, *values = rows[Path(record["fake"]["source"]).name]
        assert int(step) == record["fake"]["step"]
        assert values == [shown(value) for value in record["scores"].values()]
    assert found[-1]["scores"] == measured(place / RUN)["scores"]
    assert found[1]["scores"] == found[4]["scores"] != found[2]["scores"]
    floor = [shown(value) for value in found[0]["floor"]["scores"].values()]
    assert rows["floor"][-len(floor) :] == floor
    assert f"fake       {RUN}\n" in printed


def test_a_killed_run_may_have_no_last_pt(place):
    (place / RUN / "last.pt").unlink()
    (place / RUN / "best.pt").unlink()
    assert [each["fake"]["step"] for each in records(RUN, "--all")] == [1, 2, 3, 4]


def test_draws_show_mean_and_spread_of_every_score(place, capsys):
    """Catches one draw that is scored several times, and a reference that is one of them."""
    capsys.readouterr()
    found = records(RUN, RUN, "--protocol", "digits", "--num_real", "60", "--draws", "3")
    printed = capsys.readouterr().out
    assert [each["seed"] for each in found] == [0, 1, 2]
    assert {each["real"]["seed"] for each in found} == {3}
    first = records(RUN, RUN, "--protocol", "digits", "--num_real", "60", "--seed", "1")
    assert first["fake"] == found[1]["fake"]
    rows = {line.split("  ")[0].strip(): line.split()[-3:] for line in printed.splitlines()}
    for name, floor in found[0]["floor"]["scores"].items():
        values = [each["scores"][name] for each in found]
        if name == "FD corrected (digits)":  # of too few images
            assert rows[name] == ["n/a"] * 3
            continue
        expected = [statistics.fmean(values), statistics.stdev(values), floor]
        assert rows[name] == [f"{value:.5g}" for value in expected]
    assert "draws      3, seed 0 to 2\n" in printed
    assert len({each["scores"]["FD (digits)"] for each in found}) == 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [([2.0], (2.0, None)), ([1.0, None], (None, None)), ([1.0, 3.0], (2.0, 2**0.5))],
)
def test_what_has_no_mean_or_spread_is_not_a_number(values, expected):
    assert mean_and_spread(values) == pytest.approx(expected)


def test_a_doubt_says_whose_it_is():
    def record(seed, *doubts):
        floor = {"floor_title": "floor", "floor_values": {"FD": None}}
        scores = {"scores": {"FD": 1.0}, "classes": ()}
        return SimpleNamespace(seed=seed, **scores, **floor, all_doubts=doubts)

    text = draws_table([record(0, "few"), record(1, "few", "alike")])
    assert text.endswith("\nDOUBT: few\nDOUBT (seed 1): alike")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("digits", "REAL: missing; expected one of a run folder, .* as FAKE digits is no run"),
        ("images.npz", "REAL: missing; .* as FAKE images.npz is no run"),
        ("images.npz digits --draws 2", "--draws: not allowed with the images of images.npz"),
        ("digits digits --checkpoint best", "--checkpoint: best is not allowed with FAKE 'digits'"),
        ("images.npz digits --checkpoint last", "--checkpoint: last is not allowed with FAKE 'ima"),
        (f"{RUN}/last.pt --checkpoint best", "--checkpoint: best is not allowed with .*last.pt; "),
        (f"{RUN} --checkpoint first", "--checkpoint: 'first' is not allowed; expected one of"),
        (f"{RUN} --draws 0", "--draws: '0' is not allowed; expected 1 to 10000"),
        (f"{RUN} --all --draws 2", "--all: not allowed with --draws; expected one of them"),
        (f"{RUN} --all --checkpoint best", "--all: not allowed with --checkpoint; expected one"),
        (f"{RUN}/last.pt --all", "--all: .*last.pt holds no checkpoint; expected the folder of a"),
        ("digits digits --all", "--all: digits holds no checkpoint; expected the folder of a GAN"),
        ("empty --all", "--all: empty holds no checkpoint; expected the folder of a GAN"),
        (f"{RUN} --data_root elsewhere", "data_root: 'elsewhere' is not allowed; expected none"),
        ("unselected --checkpoint best", "unselected/best.pt: no such checkpoint; expected a run"),
    ],
)
def test_what_cannot_be_scored_is_told_in_one_line(place, capsys, argv, line):
    np.savez("images.npz", images=np.zeros((20, 16, 16), np.uint8))
    Path("empty").mkdir()
    Path("unselected").mkdir()
    Path("unselected/last.pt").touch()
    code = fid(*argv.split())
    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert [each for each in said if not each.startswith("FAKE: ")] == said[-1:]
    assert re.match(f"error: {line}", said[-1])


def test_without_any_run_it_says_where_it_looked(place, capsys):
    shutil.rmtree(place / "runs")
    assert fid() == 2
    expected = "error: FAKE: missing, and no run of a GAN is in runs/gan or runs/benchmark"
    assert re.match(expected, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("steps: [", RUN),
        (to_yaml(tiny_classifier()), RUN),
        (to_yaml(tiny()).replace("seed: 0\n", ""), "runs/gan/newer"),  # of an older version
    ],
)
def test_a_run_of_a_gan_is_known_by_its_config(place, content, found):
    """Another version's run, whose error says so, must not be passed over for an older one."""
    folder = place / "runs/gan/newer"
    folder.mkdir()
    (folder / "config.yaml").write_text(content)
    shutil.copy(place / RUN / "last.pt", folder / "last.pt")
    assert newest_run() == Path(found)


@pytest.mark.parametrize("passed_over", ["runs/benchmark/grid/pilots/none", "runs/gan/.deleted"])
def test_a_pilot_and_a_run_that_is_replaced_are_not_the_newest(place, passed_over):
    shutil.copytree(place / RUN, place / passed_over)
    (place / passed_over / "last.pt").touch()
    assert newest_run() == Path(RUN)
