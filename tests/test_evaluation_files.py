"""Records of evaluations as files: none is lost, mixed with another, or believed when damaged."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import CPU, as_of_a_run, evaluated, text

from classification.evaluate import evaluate
from classification.evaluation_files import load, others, read, record_file, save
from classification.evaluation_options import Options
from classification.evaluation_report import table
from classification.models import LoadedClassifier
from classification.named_attacks import Budget
from classification.records import Evaluation
from convnorm.experiment.codec import from_json
from convnorm.experiment.errors import InputError


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    """It takes longer than all the rest."""

    def draw(record: Evaluation) -> bytes | None:
        return b"a picture" if record.attacks else None

    monkeypatch.setattr("classification.evaluation_files.plot", draw)


@pytest.fixture
def loaded(tmp_path) -> LoadedClassifier:
    return as_of_a_run(tmp_path)


def test_record_and_picture_lie_beside_the_checkpoint(loaded):
    """Catches a picture that stays from another record."""
    record, right = evaluated(loaded, "fgsm", "sweep")
    file = record_of(loaded)
    save(record, right, file)
    written = from_json(Evaluation, json.loads(file.read_text()), file)
    assert replace(written, right_sha256=None) == record
    assert file.with_suffix(".png").read_bytes() == b"a picture"
    file.unlink()
    save(*evaluated(loaded, num=59), file)
    assert not file.with_suffix(".png").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> LoadedClassifier:
    """It with a checkpoint file, and the record of an evaluation beside that."""
    made = as_of_a_run(tmp_path_factory.mktemp("made"))
    made.file.write_bytes(b"weights")
    made = replace(made, sha256=hashlib.sha256(b"weights").hexdigest())
    save(*evaluated(made, "fgsm", "sweep"), record_of(made))
    return made


@pytest.fixture
def saved(made, tmp_path) -> LoadedClassifier:
    """A copy to be spoilt."""
    folder = shutil.copytree(made.file.parent, tmp_path / "run")
    return replace(made, file=folder / made.file.name)


def record_of(loaded: LoadedClassifier) -> Path:
    """Where the record of the usual settings lies, which these tests take theirs for."""
    return loaded.file.parent / "evaluation" / "best.json"


def test_what_was_saved_is_loaded(saved):
    record, right = evaluated(saved, "fgsm", "sweep")
    record_again, right_again = load(saved.file)
    assert replace(record_again, right_sha256=None) == record
    assert right_again.keys() == right.keys()
    for name, values in right.items():
        assert right_again[name].dtype == values.numpy().dtype
        assert np.array_equal(right_again[name], values)


def test_killed_between_its_files_an_evaluation_is_not_taken_for_another(saved, monkeypatch):
    """The record of one and the images of the other would be paired."""

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("classification.evaluation_files.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save(*evaluated(saved, "fgsm", "pgd1"), record_of(saved))
    with pytest.raises(InputError, match=r"best\.npz: is of another evaluation than best\.json"):
        load(saved.file)


def test_a_record_of_weights_that_have_changed_is_not_loaded(saved):
    saved.file.write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"best\.json: is of a checkpoint that was there before"):
        load(saved.file)


def test_flags_that_are_not_what_the_record_counts_are_noticed(saved):
    """Though the hash is right: whoever wrote them was wrong."""
    record, right = load(saved.file)
    right["fgsm"][right["fgsm"].argmax()] = False
    content = io.BytesIO()
    np.savez(content, **right)
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    record = replace(record, right_sha256=sha256)
    file = record_of(saved)
    file.with_suffix(".npz").write_bytes(content.getvalue())
    file.write_text(text(record))
    with pytest.raises(InputError, match=r"best\.npz: fgsm: right about \d+ of 60 images;"):
        load(saved.file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("best.pt", None, "best.pt: No such file"),
        ("evaluation/best.json", None, "best.json: No such file"),
        ("evaluation/best.npz", None, "best.npz: No such file"),
        ("evaluation/best.json", '{"checkpoint": ', "best.json: not readable as JSON"),
        ("evaluation/best.json", "[]", "best.json: a list of 0; expected keys and values"),
        ("evaluation/best.npz", "", "best.npz: is of another evaluation"),
    ],
)
def test_an_evaluation_that_is_not_whole_is_told_in_one_line(saved, name, content, message):
    file = saved.file.parent / name
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load(saved.file)
    assert "\n" not in str(error.value)


def test_a_record_of_an_older_version_is_told(saved):
    """They had no format: misread, they would be compared with those of today."""
    file = record_of(saved)
    record = json.loads(file.read_text())
    del record["format"]
    file.write_text(json.dumps(record))
    expected = r"best\.json: holds no format; expected 'convnorm-suite/evaluation/2'"
    with pytest.raises(InputError, match=expected):
        load(saved.file)


def test_a_record_from_before_calibration_is_read_and_replaced(saved, capsys):
    """And is not kept beside the new one, which has all of it."""
    file = record_of(saved)
    whole, right = load(saved.file)
    content = json.loads(file.read_text())
    for key in ("ece", "nll"):
        del content["clean"][key]
    del content["worst_of_both"]
    file.write_text(json.dumps(content))
    old = load(saved.file)[0]
    assert (old.clean.ece, old.clean.nll, old.worst_of_both) == (None, None, None)
    assert replace(old, clean=whole.clean) == whole
    assert "calibration" in table(whole)
    assert "calibration" not in table(old)
    save(whole, {key: torch.from_numpy(values) for key, values in right.items()}, file)
    assert load(saved.file)[0] == whole
    assert capsys.readouterr().err == ""


def test_an_archive_that_is_none_is_told(saved):
    """Its hash may be right: what wrote it was wrong."""
    record, _ = load(saved.file)
    file = record_of(saved)
    for content in (b"PK\x03\x04", b"no archive"):
        file.with_suffix(".npz").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        file.write_text(text(replace(record, right_sha256=sha256)))
        with pytest.raises(InputError, match=r"best\.npz: damaged; expected what evaluate_cls"):
            load(saved.file)


# -------------------------------------------------------------------- records beside each other


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Options(), "best"),
        (Options(("pgd50x10", "corruptions")), "best"),
        (Options(budget=Budget("8/255")), "best"),
        (Options(data_root="elsewhere"), "best"),
        (Options(num=60), "best_num=60"),
        (Options(batch_size=25), "best_batch_size=25"),
        (Options(split="validation"), "best_validation"),
        (Options(budget=Budget(4)), "best_eps=4"),
        (Options(budget=Budget("4.5/255", eps_l2=0.25)), "best_eps=4.5_eps_l2=0.25"),
        (
            Options(budget=Budget(step_size=2, seed=10**18 + 1)),
            "best_step_size=2_seed=1000000000000000001",
        ),
        (Options(num=9, budget=Budget(max_queries=40)), "best_num=9_max_queries=40"),
        (Options(("corruptions",), corruptions_dir=Path("x")), "best_official"),
    ],
)
def test_the_name_of_a_record_tells_its_settings(tmp_path, options, name):
    file = record_file(tmp_path / "best.pt", options, own_eps=8.0)
    assert file == tmp_path / "evaluation" / f"{name}.json"


def save_as_named(loaded: LoadedClassifier, *attacks: str, **changes: Any) -> Path:
    """Evaluate, and write where evaluate_cls.py does."""
    options = Options(attacks, **{"num": 60, "batch_size": 25, **changes})
    file = record_file(loaded.file, options, loaded.config.adversary.eps)
    found = evaluate(loaded, options, CPU)
    save(found.record, found.right, file)
    return file


def contents(loaded: LoadedClassifier) -> dict[str, bytes]:
    folder = loaded.file.parent / "evaluation"
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "change",
    [
        *({"num": 20}, {"num": None}, {"split": "validation"}, {"batch_size": 26}),
        *({"budget": Budget(**{key: 3})} for key in ("eps", "step_size", "max_queries", "seed")),
    ],
    ids=str,
)
def test_an_evaluation_of_other_settings_replaces_nothing(loaded, change):
    """A quick look at 20 images replaced hours of attacks on 10,000."""
    save_as_named(loaded, "fgsm", "sweep")
    before = contents(loaded)
    file = save_as_named(loaded, "fgsm", **change)
    assert file.name not in before
    assert before.items() <= contents(loaded).items()
    (other,) = others(file, read(file)).values()
    assert [attack.name for attack in other.attacks] == ["fgsm", "sweep"]


def test_other_attacks_are_added_to_a_record(loaded, capsys):
    first = read(save_as_named(loaded, "fgsm"))
    file = save_as_named(loaded, "pgd1")
    record = read(file)
    assert [attack.name for attack in record.attacks] == ["fgsm", "pgd1"]
    assert record.attacks[0] == first.attacks[0]
    assert list(np.load(file.with_suffix(".npz"))) == ["positions", "clean", "fgsm", "pgd1"]
    save_as_named(loaded)
    assert read(file) == record
    assert "kept as" not in capsys.readouterr().err
    assert len(list(file.parent.glob("*.json"))) == 1


@pytest.mark.parametrize("sha256", ["e" * 64, "c" * 64], ids=["other weights", "lost measurements"])
def test_a_record_that_has_what_the_new_one_lacks_is_kept(loaded, capsys, sha256):
    file = save_as_named(loaded, "fgsm", "sweep")
    before = contents(loaded)
    for measurement in file.parent.glob("*.pt"):
        measurement.unlink()
    assert save_as_named(replace(loaded, sha256=sha256), "fgsm") == file
    digest = hashlib.sha256(before[file.name]).hexdigest()[:8]
    after = contents(loaded)
    for suffix in (".json", ".npz", ".png"):
        assert after[f"{file.stem}-{digest}{suffix}"] == before[f"{file.stem}{suffix}"]
    assert f"kept as {file.stem}-{digest}.json" in capsys.readouterr().err
    assert len(others(file, read(file))) == (sha256 == loaded.sha256)


# What a file can hold that is no record: bytes, or keys that are changed in one.
DAMAGED = {
    "nothing": b"",
    "cut": b'{"format": "convnorm-suite/ev',
    "null": b"null",
    "a number": b"1",
    "a list": b"[]",
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "long": b"1" * 10_000,
    "no number": {"chance": float("nan")},
    "a huge number": {"chance": 10**400},
    "a lacking key": {"checkpoint": {}},
    "an odd key": {"odd": 1},
    "another type": {"attacks": {"fgsm": 1}},
    "another format": {"format": "convnorm-suite/evaluation/1"},
    "another value": {
        "clean": {
            "top1": {"value": 0.99, "interval": [0.9, 1.0], "correct": 30, "n": 60},
            "top5": None,
        }
    },
    "more than all": {
        "clean": {
            "top1": {"value": 2.0, "interval": [0.9, 1.0], "correct": 120, "n": 60},
            "top5": None,
        }
    },
    "of nothing": {
        "clean": {
            "top1": {"value": 1.0, "interval": [0.9, 1.0], "correct": 0, "n": 0},
            "top5": None,
        }
    },
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_named_kept_and_written_anew(saved, capsys, damage):
    """What was measured is in files of its own; what somebody may want to mend is not deleted."""
    file, damage = record_of(saved), DAMAGED[damage]
    whole = load(saved.file)[0]
    right = {key: torch.from_numpy(values) for key, values in load(saved.file)[1].items()}
    if isinstance(damage, dict):
        damage = json.dumps(json.loads(file.read_text()) | damage).encode()
    file.write_bytes(damage)
    images = file.with_suffix(".npz").read_bytes()

    with pytest.raises(InputError) as error:
        load(saved.file)
    assert str(error.value).startswith(f"{file}: ")
    assert "expected" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(file)) + 250
    assert others(file.with_name("best_num=60.json"), whole) == {}
    assert capsys.readouterr().err == f"left out: {error.value}\n"

    save(whole, right, file)
    assert load(saved.file)[0] == whole
    (kept,) = file.parent.glob("best.json-*")
    assert kept.read_bytes() == damage
    (kept_images,) = file.parent.glob("best.npz-*")  # they may be of attacks that are not here
    assert kept_images.read_bytes() == images
    assert capsys.readouterr().err == f"{error.value}; kept as {kept.name}\n"


@pytest.mark.parametrize("name", ["best.json", "best.npz"])
def test_a_folder_in_the_place_of_a_file_is_told(saved, name):
    file = record_of(saved).with_name(name)
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=rf"{file}: not a file; expected what evaluate_cls"):
        load(saved.file)
    with pytest.raises(InputError, match=rf"{file}: "):
        save(*evaluated(saved), record_of(saved))


@pytest.mark.parametrize(
    "flags",
    [np.array(1), np.array("text"), np.zeros(60), np.zeros((60, 1), bool), np.zeros(0, bool)],
    ids=["0-d", "text", "floats", "columns", "none"],
)
def test_flags_of_another_form_are_noticed(saved, flags):
    record, right = load(saved.file)
    content = io.BytesIO()
    np.savez(content, **right | {"fgsm": flags})
    file = record_of(saved)
    file.with_suffix(".npz").write_bytes(content.getvalue())
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    file.write_text(text(replace(record, right_sha256=sha256)))
    with pytest.raises(InputError, match=r"best\.npz: fgsm: right about \d+ of \d+ images;"):
        load(saved.file)
