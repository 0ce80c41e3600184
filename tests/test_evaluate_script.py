"""scripts/evaluate_cls.py in processes of its own: killed, stopped, resumed, and misused."""

import os
import re
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from runs import Child, script, tiny_classifier

from classification.models import FORMAT, build
from convnorm.experiment.run import checkpoint

# Long enough to be killed in the middle: some dozens of batches.
LONG = ("--attacks", "pgd3", "simba_dct", "--num=180", "--batch_size", "4", "--max_queries", "40")


def make_run(folder: Path, changes: dict | None = None, **state) -> Path:
    """A run folder with a network that has learned nothing, as best.pt."""
    config = tiny_classifier(changes)
    folder.mkdir(parents=True)
    content = {
        "format": FORMAT,
        "config": asdict(config),
        "classes": tuple("0123456789"),
        "channels": 1,
        "data_sha256": "d" * 64,
        "step": 3,
        "epoch": 1,
        "network": build(config, 10, (0.5,), (0.5,)).state_dict(),
        "ema": None,
    }
    checkpoint.save(folder / "best.pt", content | state)
    return folder


def run(tmp_path: Path, *argv: str) -> Child:
    return Child(tmp_path / "output.txt", script, "evaluate_cls.py", *argv, "--device=cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """The JSON of an evaluation that was left alone."""
    folder = make_run(tmp_path_factory.mktemp("whole") / "run")
    code, output = run(folder.parent, str(folder), *LONG).end()
    assert code == 0, output
    return record_of(folder)


def record_of(folder: Path) -> str:
    return (folder / "evaluation" / "best_num=180_batch_size=4_max_queries=40.json").read_text()


def wait_for(folder: Path, files: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.pt"))) < files:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_works_from_another_folder_on_a_run_and_on_its_file(tmp_path, monkeypatch):
    """Catches a folder and its best.pt that are two results, and paths from the repository."""
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    code, output = run(tmp_path, "run", "--num=60").end()
    assert code == 0, output
    assert "Traceback" not in output
    assert "written to run/evaluation/best_num=60.json" in output
    assert "measured now: clean, fgsm, pgd20, sweep\n" in output
    for name in ("clean", "fgsm", "pgd20", "sweep", "worst case"):
        assert f"\n{name} " in output
    first = (tmp_path / "run/evaluation/best_num=60.json").read_text()
    code, output = run(tmp_path, str(tmp_path / "run" / "best.pt"), "--num=60").end()
    assert code == 0, output
    assert "images\n" not in output.split("best.pt, epoch")[0]  # nothing was computed again
    assert "measured before: clean, fgsm, pgd20, sweep\n" in output
    assert (tmp_path / "run/evaluation/best_num=60.json").read_text() == first
    assert (tmp_path / "run/evaluation/best_num=60.png").stat().st_size > 10_000


def here(*argv: str) -> int:
    """The script's exit status, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        with pytest.raises(SystemExit) as end:
            script("evaluate_cls.py", *argv, "--device=cpu")
    return end.value.code


def test_a_run_is_attacked_with_the_eps_of_its_own_config_unless_told(tmp_path, capsys):
    """8/255 is nothing to a digit and much to a photograph. Both are shown in the end."""
    folder = make_run(tmp_path / "run", {"adversary.eps": 24.0})
    common = (str(folder), "--num=20", "--attacks", "fgsm")
    for own in ((), ("--eps=24",), ("--eps", "24/255")):
        assert here(*common, *own) == 0
        assert "linf 24/255" in capsys.readouterr().out
        assert [file.name for file in (folder / "evaluation").glob("*.json")] == [
            "best_num=20.json"
        ]
    before = record(folder, "best_num=20")
    assert here(*common, "--eps=4/255") == 0
    output = capsys.readouterr().out
    first, second = output.split("best_num=20.json, another record of these weights:")
    assert "linf 4/255" in first
    assert "linf 24/255" in second
    assert "written to" in second.splitlines()[-1]
    assert record(folder, "best_num=20") == before
    assert record(folder, "best_num=20_eps=4") != before


def record(folder: Path, name: str) -> str:
    return (folder / "evaluation" / f"{name}.json").read_text()


def test_every_option_is_explained(capsys):
    """With its unit where it has one, and what it is by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        patch.setenv("COLUMNS", "1000")
        with pytest.raises(SystemExit):
            script("evaluate_cls.py", "--help")
    text = re.sub(r"\n {20,}", " ", capsys.readouterr().out)  # help that begins on the next line
    options = [line.strip() for line in text.splitlines() if line.startswith("  --")]
    assert len(options) == 15
    for line in options:
        assert re.search(r" .+ \(.+\)$|by default", line), line
    for name in ("--eps ", "--step_size "):
        assert "in grey levels of 255" in next(line for line in options if line.startswith(name))
    assert "pixels in [0, 1]" in next(line for line in options if line.startswith("--eps_l2 "))


def test_killed_at_several_moments_it_ends_with_the_same_json(tmp_path, whole):
    folder = make_run(tmp_path / "run")
    for files in (1, 2, 3):
        child = run(tmp_path, str(folder), *LONG)
        wait_for(folder / "evaluation", files)
        os.kill(child.process.pid, signal.SIGKILL)
        assert child.end()[0] == -signal.SIGKILL
    assert list((folder / "evaluation").glob("*.json")) == []
    code, output = run(tmp_path, str(folder), *LONG).end()
    assert code == 0, output
    assert record_of(folder) == whole


def test_two_at_once_do_not_spoil_each_other(tmp_path, whole):
    folder = make_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    children = [run(path, str(folder), *LONG) for path in (tmp_path, tmp_path / "other")]
    for child in children:
        code, output = child.end()
        assert code == 0, output
    assert record_of(folder) == whole


def interrupted(*argv: str) -> None:
    """The script, with a Ctrl-C after its second batch."""
    save, saved = checkpoint.save, []

    def save_and_interrupt(*args):
        save(*args)
        saved.append(None)
        if len(saved) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    checkpoint.save = save_and_interrupt
    # Shells start what runs in the background, the tests perhaps, with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    script("evaluate_cls.py", *argv)


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path):
    make_run(tmp_path / "run")
    argv = [str(tmp_path / "run"), *LONG, "--device=cpu"]
    code, output = Child(tmp_path / "output.txt", interrupted, *argv).end()
    assert code == 130, output
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "interrupted; the same command goes on where it was"


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """A folder of everything that can be given for a run and is none."""
    tmp_path = tmp_path_factory.mktemp("broken")
    make_run(tmp_path / "good")
    make_run(tmp_path / "last").joinpath("best.pt").rename(tmp_path / "last" / "last.pt")
    make_run(
        tmp_path / "other",
        network=build(tiny_classifier({"model.options.width": 8}), 10, (0.5,), (0.5,)).state_dict(),
    )
    make_run(tmp_path / "gan_file", format="convnorm-suite/gan/1")
    make_run(tmp_path / "gan", format="convnorm-suite/gan/2").joinpath("best.pt").rename(
        tmp_path / "gan" / "last.pt"
    )
    make_run(tmp_path / "blocked").joinpath("evaluation").write_text("in the way")
    make_run(tmp_path / "few", classes=tuple("01234"), network=None)
    few = build(tiny_classifier(), 5, (0.5,), (0.5,)).state_dict()
    state = torch.load(tmp_path / "few" / "best.pt")
    checkpoint.save(tmp_path / "few" / "best.pt", state | {"network": few})
    config = asdict(tiny_classifier())
    make_run(tmp_path / "odd", config={**config, "split": {**config["split"], "newkey": 1}})
    make_run(tmp_path / "old", config={k: v for k, v in config.items() if k != "noise"})
    make_run(tmp_path / "torn", classes=None)
    make_run(tmp_path / "cut").joinpath("best.pt").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("run_name", "argv", "message"),
    [
        ("absent", [], "absent: no such checkpoint"),
        (
            "empty",
            [],
            "empty/best.pt: no such checkpoint; expected a run folder of train_cls.py or",
        ),
        ("last", [], "last/best.pt: no such checkpoint; expected a run folder of train_cls.py"),
        ("good", ["--checkpoint", "last"], "good/last.pt: no such checkpoint; expected a run"),
        ("cut", [], "cut/best.pt: damaged or not a checkpoint"),
        ("gan", [], "gan/last.pt: a GAN; expected a classifier of train_cls.py. What scores a GAN"),
        ("gan/last.pt", [], "gan/last.pt: a GAN; expected a classifier of train_cls.py."),
        ("gan", ["--checkpoint=last"], "is scripts/fid.py"),
        ("gan_file", [], "gan_file/best.pt: a GAN; expected a classifier of train_cls.py."),
        ("blocked", [], "evaluation: cannot be made (File exists)"),
        ("odd", [], "odd/best.pt: not a complete checkpoint (config of another version"),
        ("old", [], "old/best.pt: not a complete checkpoint (config of another version"),
        ("torn", [], "torn/best.pt: not a complete checkpoint ("),
        ("good", ["--seed", "9" * 20], "seed: 99999999999999999999 is not allowed"),
        ("other", [], "other/best.pt: not a complete checkpoint (Error(s) in loading"),
        (
            "few",
            [],
            "few/best.pt: a network for the 5 classes 0, 1, 2, 3, 4; the images have the 10",
        ),
        ("good", ["--attacks", "pgd"], "attacks: no attack is named 'pgd'; expected fgsm, pgd<"),
        ("good", ["--eps", "300"], "eps: 300 is not allowed; expected grey levels of 255"),
        ("good", ["--eps", "0.0314"], "eps: 0.0314 is not allowed; expected grey levels of 255"),
        ("good", ["--eps=-8/255"], "eps: -8/255 is not allowed; expected grey levels of 255"),
        ("good", ["--step_size", "0.008"], "step_size: 0.008 is not allowed; expected grey levels"),
        ("good", ["--step_size", "17"], "expected at most 16 grey levels, twice the eps of 8"),
        ("good", ["--eps_l2", "128"], "eps_l2: 128.0 is not allowed; expected at most 4, within"),
        ("good", ["--eps_l2", "x"], "eps_l2: x is not allowed; expected the Euclidean norm"),
        ("good", ["--attacks", "PGD20"], "no attack is named 'PGD20'; expected pgd20"),
        ("good", ["--attacks", "fgsm,pgd20"], "expected fgsm and pgd20, each by itself"),
        ("good", ["--attacks", "pgd1000000000"], "is not allowed; expected 1 to 10,000 steps"),
        ("good", ["--num", "0"], "num: 0 is not allowed; expected 1 or more"),
        ("good", ["--num", "1" + "0" * 24], "expected at most the 360 images of the test split"),
        ("good", ["--num", "many"], "--num: invalid int value: 'many'"),
        ("good", ["--batch_size", "1" + "0" * 24], "is not allowed; expected 1 to 100,000"),
        ("good", ["--max_queries", "0"], "max_queries: 0 is not allowed; expected 1 to 1,000,000"),
        ("good", ["--seed=-1"], "seed: -1 is not allowed; expected 0 to 2**63 - 1"),
        ("good", ["--restarts=3"], "restarts: no such key; expected "),
        (
            "good/best.pt",
            ["--checkpoint=last"],
            "--checkpoint: last is not allowed; expected it with the folder of a run",
        ),
        (
            "good",
            ["--split=train"],
            "--split: 'train' is not allowed; expected one of test, validation",
        ),
        ("good", ["--corruptions_dir", "x"], "corruptions_dir: 'x' is not allowed; expected corr"),
        (
            "good",
            ["--attacks", "corruptions", "--corruptions_dir", "x"],
            "corruptions_dir: x has no corruption in it",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(broken, capsys, run_name, argv, message):
    """And leaves what was there: no folder, no file of another kind."""
    before = sorted(broken.rglob("*"))
    assert here(str(broken / run_name), *argv) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(broken.rglob("*")) == before


def test_an_error_leaves_the_record_that_was_there(tmp_path):
    folder = make_run(tmp_path / "run") / "evaluation"
    assert here(str(tmp_path / "run"), "--attacks", "fgsm") == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert here(str(tmp_path / "run"), "--attacks", "fgsm", "nonsense") == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_damaged_record_is_told_kept_and_replaced(tmp_path, capsys):
    file = make_run(tmp_path / "run") / "evaluation" / "best.json"
    assert here(str(tmp_path / "run"), "--attacks") == 0
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    capsys.readouterr()
    assert here(str(tmp_path / "run"), "--attacks") == 0
    error = capsys.readouterr().err
    assert error.startswith(f"{file}: not readable as JSON; expected what evaluate_cls.py writes;")
    assert file.read_bytes() == whole
    assert [kept.read_bytes() for kept in file.parent.glob("best.json-*")] == [whole[:-9]]
