"""How runs of both pipelines go on: longer than planned, with data that moved, elsewhere."""

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import (
    Crash,
    classifier_run,
    crash_before,
    differing,
    run,
    state_of,
    tiny,
    tiny_classifier,
)
from test_pipelines import CLASSIFICATION, PIPELINES, Pipeline, each_pipeline, trained

from convnorm.experiment.config import parse
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.hardware import hardware
from gan.config import GanConfig


def shorter(pipeline: Pipeline) -> dict[str, Any]:
    """The changes of `longer` but for the length, which is the tiny run's."""
    kept = dict(pipeline.longer)
    kept.pop(next(key for key in kept if key in ("steps", "train.epochs")))
    return kept


@each_pipeline
def test_a_longer_run_goes_on_from_the_end_of_a_short_one(pipeline, tmp_path):
    """Bit by bit where the schedule does not depend on the length; the summary is remade."""
    changes = {"normalizer.kind": "spectral", "train.ema_decay": 0.5}
    pipeline.run(tmp_path / "whole", {**changes, **pipeline.longer})
    short = pipeline.run(tmp_path / "run", {**changes, **shorter(pipeline)})
    summary = pipeline.run(tmp_path / "run", {**changes, **pipeline.longer})
    assert summary["steps"] > short["steps"]
    assert [part["step"] for part in summary["segments"]] == [0, short["steps"]]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    states = [state_of(tmp_path / name) for name in ("run", "whole")]
    assert differing(*states) == []
    configs = [(tmp_path / name / "config.yaml").read_text() for name in ("run", "whole")]
    assert configs[0] == configs[1]
    with pytest.raises(InputError, match=r"(steps|train.epochs): \d there, \d here"):
        pipeline.run(tmp_path / "run", {**changes, **shorter(pipeline)})


@each_pipeline
def test_an_extension_that_was_killed_at_its_start_is_not_finished(pipeline, tmp_path, monkeypatch):
    """The old summary.json would say so."""
    pipeline.run(tmp_path, shorter(pipeline))
    step = state_of(tmp_path)["step"]
    with monkeypatch.context() as patch:
        crash_before(step, pipeline.trainer, patch)
        with pytest.raises(Crash):
            pipeline.run(tmp_path, pipeline.longer)
    assert not (tmp_path / "summary.json").exists()
    assert pipeline.run(tmp_path, pipeline.longer)["steps"] > step


def test_a_slip_in_making_a_run_longer_leaves_it_as_it_was(on_npz, tmp_path):
    """Its data are not found: it is still finished, with its own config."""
    (pipeline, changes), run_dir = on_npz, tmp_path / "run"
    short = {**changes, **shorter(pipeline)}
    summary = pipeline.run(run_dir, short)
    files = [run_dir / name for name in ("config.yaml", "last.pt", "summary.json")]
    before = [file.read_bytes() for file in files]
    for slip in ({"data_root": str(tmp_path / "nowhere")}, {}):
        longer = {**changes, **pipeline.longer}
        longer |= {} if slip else {"data.root": str(tmp_path / "nowhere")}
        with pytest.raises(InputError, match="nowhere"):
            pipeline.run(run_dir, longer, **slip)
        assert [file.read_bytes() for file in files] == before
    assert pipeline.run(run_dir, short) == summary


@each_pipeline
def test_a_longer_run_of_another_schedule_is_refused(pipeline, tmp_path):
    """Its first steps would have had other learning rates."""
    pipeline.run(tmp_path, {**shorter(pipeline), **pipeline.fading})
    files = [tmp_path / name for name in ("config.yaml", "last.pt", "summary.json")]
    before = [file.read_bytes() for file in files]
    refused = r"another config \((steps|train.epochs): \d there, \d here\)"
    with pytest.raises(InputError, match=refused):
        pipeline.run(tmp_path, {**pipeline.longer, **pipeline.fading})
    assert [file.read_bytes() for file in files] == before


def test_an_end_that_a_longer_run_would_not_validate_is_no_beginning(tmp_path):
    """What is selected there would not be selected in a run that was long from the start."""
    changes = {**shorter(CLASSIFICATION), "select.every": 3}
    classifier_run(tmp_path, changes)
    with pytest.raises(InputError, match=r"train.epochs: 2 there, 4 here"):
        classifier_run(tmp_path, {**changes, **CLASSIFICATION.longer})


def npz(path: Path, seed: int = 0) -> dict[str, Any]:
    """Write sixty images, and return the changes for a run on them."""
    random = np.random.default_rng(seed)
    np.savez(path, images=random.integers(0, 256, (60, 16, 16), np.uint8), labels=np.arange(60) % 3)
    return {"data.name": "npz", "data.root": str(path), "data.image_size": 16}


@pytest.fixture(params=PIPELINES)
def on_npz(request, tmp_path) -> tuple[Pipeline, dict[str, Any]]:
    """A pipeline with the changes by which it trains on the sixty images."""
    more = {"split.train_fraction": 1.0, "split.validation": 0.1, "train.batch_size": 20}
    more = more if request.param == "classification" else {}
    return PIPELINES[request.param], {**npz(tmp_path / "data.npz"), **more}


def test_the_same_data_at_another_path_are_those_of_the_run(on_npz, tmp_path, monkeypatch):
    """Told by --data.root as well as by --data_root; the checkpoint has their hash."""
    (pipeline, changes), run_dir = on_npz, tmp_path / "run"
    pipeline.run(tmp_path / "whole", changes)
    with monkeypatch.context() as patch:
        crash_before(2, pipeline.trainer, patch)
        with pytest.raises(Crash):
            pipeline.run(run_dir, changes, checkpoint_every=1)
    moved = str((tmp_path / "data.npz").rename(tmp_path / "moved.npz"))
    with monkeypatch.context() as patch:
        crash_before(3, pipeline.trainer, patch)
        with pytest.raises(Crash):
            pipeline.run(run_dir, changes, checkpoint_every=1, data_root=moved)
    assert f"root: {moved}" not in (run_dir / "config.yaml").read_text()
    pipeline.run(run_dir, {**changes, "data.root": moved})
    assert f"root: {moved}" in (run_dir / "config.yaml").read_text()
    pipeline.run(run_dir, changes, data_root=moved)  # it is finished
    states = [trained(pipeline, state_of(folder)) for folder in (run_dir, tmp_path / "whole")]
    assert differing(*states) == []


@pytest.mark.parametrize("what", ["images", "labels"])
def test_other_data_at_another_path_are_not(what, on_npz, tmp_path, monkeypatch):
    pipeline, changes = on_npz
    with monkeypatch.context() as patch:
        crash_before(1, pipeline.trainer, patch)
        with pytest.raises(Crash):
            pipeline.run(tmp_path / "run", changes, checkpoint_every=1)
        crash_before(1, pipeline.trainer, patch)
    with np.load(tmp_path / "data.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "other.npz", **{**arrays, what: arrays[what][::-1]})
    with pytest.raises(InputError, match=r"last.pt: the run began with other training data"):
        pipeline.run(tmp_path / "run", changes, data_root=str(tmp_path / "other.npz"))


def test_the_digits_are_in_no_other_place(tmp_path):
    with pytest.raises(InputError, match=r"data_root: 'x' is not allowed; .* digits come with"):
        run(tmp_path, data_root="x")


def test_options_of_a_resumed_run_are_given_on_the_command_line(tmp_path):
    """--allow_other_hardware alone is a yes; neither is a field of the config."""
    argv = ["--data_root", "moved", "--allow_other_hardware", "--run_dir", str(tmp_path)]
    config, options = parse(GanConfig, "gan", "digits_convnorm", argv)
    assert (options.data_root, options.allow_other_hardware) == ("moved", True)
    plain, options = parse(GanConfig, "gan", "digits_convnorm", [])
    assert (options.data_root, options.allow_other_hardware) == ("", False)
    assert config == plain


# Where a run was trained


@pytest.fixture(scope="module", params=PIPELINES)
def cut_run(request, tmp_path_factory) -> tuple[Pipeline, Path]:
    """A pipeline and a run of it that was cut after two steps."""
    pipeline, folder = PIPELINES[request.param], tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as patch:
        crash_before(2, pipeline.trainer, patch)
        with pytest.raises(Crash):
            pipeline.run(folder, checkpoint_every=1)
    return pipeline, folder


@pytest.fixture
def cut(cut_run, tmp_path) -> tuple[Pipeline, Path]:
    """The same with a copy of the run, to be changed or gone on with."""
    pipeline, folder = cut_run
    return pipeline, Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True))


def test_a_training_begins_with_what_it_is(tmp_path, capsys):
    run(tmp_path, {"steps": 1})
    block = capsys.readouterr().err.split("\nstep 0/1")[0]
    state = state_of(tmp_path)
    sizes = {
        name: sum(state[name][key].numel() for key in state[name] if is_parameter(key))
        for name in ("generator", "discriminator")
    }
    assert block.splitlines() == [
        f"run: {tmp_path}",
        f"device: cpu: {hardware(torch.device('cpu'))}",
        f"data: {load_images(tiny().data).found}",
        "data.stream: memory (0.351 MiB)",
        "parameters: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
        "steps: 1",
    ]


def is_parameter(key: str) -> bool:
    return not any(name in key for name in ("running_", "num_batches"))


def test_a_classifiers_training_says_what_it_trains_on(tmp_path, capsys):
    classifier_run(tmp_path, {"train.epochs": 1})
    lines = capsys.readouterr().err.splitlines()
    found = load_images(tiny_classifier().data).found
    assert f"data: {found}; 140 to train on, 20 held out" in lines


def test_a_resumed_training_says_from_where_and_what_has_changed(cut, capsys):
    pipeline, folder = cut
    trained_elsewhere(folder, torch="2.6.0", hardware="other")
    capsys.readouterr()
    pipeline.run(folder)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.endswith(", resuming from step 2") for line in lines)
    assert f"another torch: {torch.__version__}; the steps before had 2.6.0" in lines
    assert len([line for line in lines if line.startswith("another ")]) == 2
    pipeline.run(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("steps were done before")


def trained_elsewhere(folder: Path, **changes: Any) -> None:
    """Let the checkpoint of a run say that it was trained with other things than here."""
    state = torch.load(folder / "last.pt", weights_only=True)
    state["segments"][-1].update(changes)
    checkpoint.save(folder / "last.pt", state)


def test_a_run_remembers_what_each_of_its_starts_had(cut):
    pipeline, folder = cut
    trained_elsewhere(folder, commit="abc", torch="2.6.0", hardware="other")
    summary = pipeline.run(folder)
    before, after = summary["segments"]
    assert (before["step"], before["commit"], before["torch"]) == (0, "abc", "2.6.0")
    assert (after["step"], after["torch"], after["python"]) == (
        2,
        torch.__version__,
        platform.python_version(),
    )
    assert (after["device"], after["world_size"]) == ("cpu", 1)
    assert after["hardware"] == hardware(torch.device("cpu"))
    saved = torch.load(folder / "last.pt", weights_only=True)["segments"]
    assert saved == summary["segments"]
    assert pipeline.run(folder)["segments"] == saved  # a finished run is not trained again


@pytest.mark.parametrize(
    ("there", "told"),
    [({"world_size": 2}, "2 processes on cpu"), ({"device": "cuda"}, "1 process on cuda")],
)
def test_other_processes_or_another_kind_of_device_are_refused(there, told, cut):
    """Draws on a GPU are others, and sums over other parts round otherwise."""
    pipeline, folder = cut
    trained_elsewhere(folder, **there)
    before = (folder / "last.pt").read_bytes()
    expected = rf"last.pt: was trained by {told}; expected the same, not 1 process on cpu"
    with pytest.raises(InputError, match=expected):
        pipeline.run(folder)
    assert (folder / "last.pt").read_bytes() == before
    summary = pipeline.run(folder, allow_other_hardware=True)
    assert [part["step"] for part in summary["segments"]] == [0, 2]


@pytest.mark.parametrize("step", [-5, None, "x", 10**6, 1.0, True])
def test_a_step_that_cannot_be_is_one_line(step, cut):
    pipeline, folder = cut
    state = torch.load(folder / "last.pt", weights_only=True)
    checkpoint.save(folder / "last.pt", {**state, "step": step})
    with pytest.raises(InputError, match=r"last.pt: step: .*; expected one of 0 to \d$"):
        pipeline.run(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": None}, "holds no config"),
        ({"config": torch.zeros(1)}, "holds no config"),
        ({"segments": None}, "not a complete checkpoint"),
        ({"segments": [{}]}, "step: is missing"),
        ({"meter": None}, "not a complete checkpoint"),
        ({"meter": {"sums": []}}, "not a complete checkpoint"),
        ({"rng": []}, "not a complete checkpoint"),
    ],
)
def test_parts_of_a_checkpoint_that_cannot_be_are_one_line(change, told, cut):
    pipeline, folder = cut
    state = torch.load(folder / "last.pt", weights_only=True)
    checkpoint.save(folder / "last.pt", {**state, **change})
    with pytest.raises(InputError, match=f"last.pt: .*{told}"):
        pipeline.run(folder)
