"""scripts/evaluate_cls.py in processes of its own: killed, stopped, resumed, and misused."""

import os
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
LONG = ("--attacks", "pgd3", "simba_dct", "--batch_size", "4", "--max_queries", "40")


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
    return (folder / "evaluation" / "best.json").read_text()


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
    assert "written to run/evaluation/best.json" in output
    for name in ("clean", "fgsm", "pgd20", "sweep", "worst case"):
        assert f"\n{name} " in output
    first = (tmp_path / "run/evaluation/best.json").read_text()
    code, output = run(tmp_path, str(tmp_path / "run" / "best.pt"), "--num=60").end()
    assert code == 0, output
    assert "images\n" not in output.split("best.pt, epoch")[0]  # nothing was computed again
    assert (tmp_path / "run/evaluation/best.json").read_text() == first
    assert (tmp_path / "run/evaluation/best.png").stat().st_size > 10_000


def test_a_run_is_attacked_with_the_eps_of_its_own_config_unless_told(tmp_path):
    """8/255 is nothing to a digit and much to a photograph."""
    make_run(tmp_path / "run", {"adversary.eps": 24.0})
    code, output = run(tmp_path, str(tmp_path / "run"), "--num=20", "--attacks=fgsm").end()
    assert code == 0, output
    assert "linf 24/255" in output
    code, output = run(
        tmp_path, str(tmp_path / "run"), "--num=20", "--attacks=fgsm", "--eps=4"
    ).end()
    assert code == 0, output
    assert "linf 4/255" in output


def test_killed_at_several_moments_it_ends_with_the_same_json(tmp_path, whole):
    folder = make_run(tmp_path / "run")
    for files in (1, 2, 3):
        child = run(tmp_path, str(folder), *LONG)
        wait_for(folder / "evaluation", files)
        os.kill(child.process.pid, signal.SIGKILL)
        assert child.end()[0] == -signal.SIGKILL
    assert not (folder / "evaluation" / "best.json").exists()
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


def broken(tmp_path: Path) -> dict[str, Path]:
    """Everything that can be given for a run and is none."""
    make_run(tmp_path / "good")
    make_run(tmp_path / "last").joinpath("best.pt").rename(tmp_path / "last" / "last.pt")
    make_run(
        tmp_path / "other",
        network=build(tiny_classifier({"model.options.width": 8}), 10, (0.5,), (0.5,)).state_dict(),
    )
    make_run(tmp_path / "gan", format="convnorm-suite/gan/1")
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
    return {path.name: path for path in tmp_path.iterdir()}


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
        ("gan", [], "gan/best.pt: holds 'convnorm-suite/gan/1'; expected"),
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
        ("good", ["--corruptions_dir", "x"], "corruptions_dir: 'x' is not allowed; expected corr"),
        (
            "good",
            ["--attacks", "corruptions", "--corruptions_dir", "x"],
            "corruptions_dir: x has no corruption in it",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(tmp_path, run_name, argv, message):
    """And leaves what was there: no folder, no file of another kind."""
    broken(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, output = run(tmp_path, str(tmp_path / run_name), *argv).end()
    (tmp_path / "output.txt").unlink()
    assert code == 2, output
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert message in output
    assert sorted(tmp_path.rglob("*")) == before


def test_an_error_leaves_the_record_that_was_there(tmp_path):
    folder = make_run(tmp_path / "run") / "evaluation"
    assert run(tmp_path, str(tmp_path / "run"), "--attacks", "fgsm").end()[0] == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run(tmp_path, str(tmp_path / "run"), "--attacks", "fgsm", "nonsense").end()[0] == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_folder_that_cannot_be_written_is_told(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "evaluation").write_text("in the way")
    code, output = run(tmp_path, str(tmp_path / "run")).end()
    assert (code, output.count("\n")) == (2, 1)
    assert "evaluation: cannot be made (File exists)" in output
