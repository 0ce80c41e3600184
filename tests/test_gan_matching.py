"""The gain of a GAN's discriminator, set by `normalizer.scale`: measured, reached, and reported."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import (
    ALONE,
    SCORED,
    TINY,
    changed,
    differing,
    rough_measurements,
    run,
    script,
    state_of,
    tiny,
)

from convnorm.experiment.benchmark import local, matching
from convnorm.experiment.benchmark.attempt import AttemptRecord, Ended
from convnorm.experiment.benchmark.loading import load
from convnorm.experiment.benchmark.targets import Target, goal_of
from convnorm.experiment.config import RunOptions
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Match
from gan.benchmark import GAN
from gan.gain import probe_of
from gan.matching import SEEDS, check, depth, gain_at_start, pilot, plateau_of, relevant
from gan.models import build
from gan.train import train

RESNET = {"model.arch": "sngan_resnet"}
SETTINGS = {**TINY, **SCORED, "steps": 20}


class Here:
    """Trains in this process; `trained` are the folders, in their order."""

    workers, seconds_left = 1, math.inf

    def __init__(self):
        self.trained: list[Path] = []
        self._waiting = []

    def has_room(self) -> bool:
        return True

    def submit(self, attempt) -> None:
        self._waiting.append(attempt)

    def wait(self, seconds) -> None: ...

    def ended(self):
        while self._waiting:
            one = self._waiting.pop(0).run
            with rough_measurements():
                train(one.config, RunOptions(run_dir=str(one.folder), device="cpu"), ALONE)
            self.trained.append(one.folder)
            yield Ended(AttemptRecord(one.name, "done", "", 1.0, 0.0, 0.0, 1.0), "here")

    def stop(self) -> None: ...


@pytest.fixture
def here(monkeypatch) -> Here:
    """What carries out the runs of a script that is run in this process."""
    executor = Here()
    monkeypatch.setattr(local, "LocalExecutor", lambda *args: executor)
    return executor


def carry_out(name: str, *argv: str) -> None:
    with pytest.raises(SystemExit) as error:
        script(name, *argv)
    assert error.value.code == 0


def write(folder: Path, name: str, content: dict[str, Any]) -> str:
    file = folder / name
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(file)


def grid(folder: Path, **changes: Any) -> str:
    """A grid of spectral norm at a gain during training, and at one before it."""
    gains = [{"plateau_matched": 0.8}, {"init_matched": 0.6}]
    content = {
        "question": "Is a tiny GAN better where its discriminator is louder?",
        "pipeline": "gan",
        "base": "digits_convnorm",
        "set": {**SETTINGS, "normalizer.kind": "spectral"},
        "axes": {"normalizer.scale": gains},
        "seeds": [0],
        "score": {"name": "FD (digits)"},
        "compare": {"axis": "normalizer.scale", "against": gains[0].copy()},
        **changes,
    }
    return write(folder, "loud.yaml", content)


def gains_of(config) -> list[float]:
    """The gain at the first step for each of the seeds."""
    found = []
    for seed in SEEDS:
        seeded = replace(config, seed=seed)
        images = load_images(config.data)
        generator, discriminator = build(seeded, 1)
        found.append(probe_of(seeded, config.data, images, "cpu")(discriminator, generator).mean)
    return found


@pytest.mark.parametrize("kind", ["none", "weight"])
def test_in_a_stack_the_gain_grows_by_a_power_of_the_factor(kind):
    """The closed form by which the second factor is guessed; biases are 0 at the first step."""
    config = tiny({"normalizer.kind": kind})
    assert depth(config) == 3
    louder = changed(config, {"normalizer.scale": 1.5})
    assert gain_at_start(louder) / gain_at_start(config) == pytest.approx(1.5**3, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [*((kind, {}) for kind in ("none", "spectral", "weight", "convnorm")), ("spectral", RESNET)],
)
def test_the_gain_at_the_start_is_within_two_percent_of_the_target(tmp_path, kind, changes):
    settings = {**SETTINGS, **changes, "normalizer.kind": kind}
    axes = {"normalizer.scale": [{"init_matched": 0.6}]}
    compare = {"axis": "normalizer.scale", "against": {"init_matched": 0.6}}
    cfg = grid(tmp_path, set=settings, axes=axes, compare=compare)
    benchmark = load(cfg, tmp_path / "out", {"gan": GAN})
    (found,) = matching.match(benchmark, lambda folder: None, 1, "cpu")
    gains = gains_of(changed(benchmark.wanted[0].config, {"normalizer.scale": found.scale}))
    mean = math.exp(sum(map(math.log, gains)) / len(gains))
    assert mean == pytest.approx(0.6, rel=0.02)
    assert found.gain == pytest.approx(mean, rel=1e-6)


def test_one_command_matches_keeps_trains_and_reports(tmp_path, monkeypatch, here, capsys):
    """And the same command again does nothing of it a second time."""
    monkeypatch.chdir(tmp_path)
    argv = ("--cfg", grid(tmp_path), "--folder", "out", "--device", "cpu")
    carry_out("benchmark.py", *argv, "--print_plan")
    plan = capsys.readouterr().out
    assert "2 cells is matched: 1 at the first step, without a run, and 1 by pilot runs" in plan
    assert "scale 1, seed 1000003  not begun" in plan
    assert not Path("out").exists()
    carry_out("benchmark.py", *argv)
    names = [folder.relative_to("out").parts[0] for folder in here.trained]
    pilots = names.count("pilots")
    assert names == ["pilots"] * pilots + ["plateau_matched-0.8", "init_matched-0.6"]
    matches = json.loads(Path("out/matched.json").read_text())["matches"]
    results = json.loads(Path("out/results.json").read_text())
    assert [match["how"] for match in results["matched"]] == ["plateau_matched", "init_matched"]
    assert sorted(map(str, matches)) == sorted(map(str, results["matched"]))
    scale = results["matched"][0]["scale"]
    saved = yaml.safe_load(Path("out/plateau_matched-0.8/seed0/config.yaml").read_text())
    assert saved["normalizer"]["scale"] == scale
    assert f"--normalizer.scale={scale}" in results["runs"][0]["commands"][0]
    assert "## Matched gain" in Path("out/report.md").read_text()
    del here.trained[:]
    carry_out("benchmark.py", *argv)
    assert here.trained == []


def test_a_single_config_is_matched_as_a_cell_of_a_grid_is(tmp_path, monkeypatch, here, capsys):
    monkeypatch.chdir(tmp_path)
    nested: dict[str, Any] = {"normalizer": {"kind": "spectral"}}
    for key, value in SETTINGS.items():
        *groups, name = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    cfg = write(tmp_path, "tiny.yaml", nested)
    argv = ("--cfg", cfg, "--target", "0.8", "--device", "cpu")
    carry_out("match_gain.py", *argv, "--kinds", "none", "spectral", "--out", "found.json")
    lines = capsys.readouterr().out.splitlines()
    found = {
        match["cell"]: match for match in json.loads(Path("found.json").read_text())["matches"]
    }
    assert [*found] == ["none", "spectral"]
    for kind, match in found.items():
        (line,) = [line for line in lines if line.split()[:2] == [kind, f"{match['scale']:g}"]]
        assert all(f"{trial['scale']:g}" in line for trial in match["trials"])
    done = {folder.parts[:4] for folder in here.trained}
    assert ("runs", "match", "tiny", "pilots") in done
    del here.trained[:]
    carry_out("match_gain.py", *argv)
    assert here.trained == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--cfg", "digits_convnorm"], "error: --target: missing; expected a gain"),
        (["--target", "1"], "error: --cfg: nothing given"),
        (["--cfg", "no", "--target", "1"], "error: --cfg no: no such file"),
        *(
            (["--cfg", "digits_convnorm", "--target", target], f"--target: '{target}' is not all")
            for target in ("0", "-1", "1e6", "nan", "inf", "loud")
        ),
        (["--cfg", "digits_convnorm", "--target", "1", "--kinds", "no"], "error: --kinds: 'no' is"),
        (["--cfg", "digits_convnorm", "--target", "1", "--at", "end"], "error: --at: 'end' is not"),
        (
            ["--cfg", "digits_convnorm", "--target", "1", "--at", "init", "--kinds", "batch"],
            "error: batch: init_matched: normalizer.kind 'batch' brings BatchNorm",
        ),
        (["--cfg", "digits_convnorm", "--target", "1", "--out", "no/o.json"], "error: --out: no/o"),
    ],
)
def test_what_cannot_be_matched_is_one_line(tmp_path, monkeypatch, capsys, argv, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        script("match_gain.py", *argv)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert expected in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "how", "expected"),
    [
        ({"normalizer.kind": "batch"}, "init_matched", "at the first step has seen no data"),
        ({"normalizer.batch_norm": True}, "init_matched", "brings BatchNorm"),
        ({"steps": 4}, "plateau_matched", "steps: 4 is too few; expected 5 or more"),
        *(
            ({"model.gradient_normalization": True}, how, "normalizer.scale changes nothing")
            for how in ("init_matched", "plateau_matched")
        ),
    ],
)
def test_gains_that_no_factor_sets_are_refused(changes, how, expected):
    with pytest.raises(InputError, match=expected):
        check(tiny({"normalizer.kind": "spectral", "steps": 2000, **changes}), how)


@pytest.mark.parametrize(
    ("changes", "how", "doubt"),
    [
        ({"normalizer.kind": "spectral"}, "init_matched", None),
        ({"normalizer.kind": "convnorm"}, "init_matched", None),
        ({"normalizer.kind": "none"}, "init_matched", "the weights of none have a scale of their"),
        ({"normalizer.affine": True}, "init_matched", "can undo the factor"),
        ({"normalizer.kind": "weight", "normalizer.multiplier": True}, "init_matched", "undo"),
        ({"normalizer.kind": "none"}, "plateau_matched", None),
        ({"steps": 100}, "plateau_matched", "the plateau is a mean over 11 steps only"),
        ({"steps": 190}, "plateau_matched", None),
    ],
)
def test_what_a_matched_gain_does_not_say_is_said(changes, how, doubt):
    found = check(tiny({"normalizer.kind": "convnorm", "steps": 2000, **changes}), how)
    assert len(found) == (doubt is not None)
    assert doubt is None or doubt in found[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("normalizer.generator", "spectral"), ("train.accumulate", 2), ("data.image_size", 32)],
)
def test_a_match_of_before_an_option_holds_where_the_option_is_off(key, value):
    """Else every new option of a config would void the matched gains, and with them the runs."""
    target = Target("plateau_matched", 0.6)
    goals = [
        goal_of("cell", target, tiny({"steps": 2000, **it}), GAN.matching)
        for it in ({}, {key: value})
    ]
    saved = json.loads(json.dumps(goals[0].relevant))
    for group, option in (
        ("normalizer", "generator"),
        ("model", "conditional"),
        ("train", "accumulate"),
    ):
        del saved[group][option]
    match = Match("cell", target.how, target.gain, 1.5, 0.6, (), (), saved, ())
    assert goals[0].differences(match) == []
    (found,) = goals[1].differences(match)
    assert found.startswith(f"{key}: ")


IRRELEVANT = {
    "seed": 5,
    "score.protocol": "digits",
    "log.gain_every": 7,
    "log.samples_every": 7,
    "checkpoints.every": 2,
    "data.root": "elsewhere",
    "normalizer.scale": 2.0,
}


def test_all_that_a_pilot_run_depends_on_is_relevant_and_nothing_else():
    """Or a pilot run would stand for another cell, or none be found again."""
    one, other = (tiny({"steps": 500, **each}) for each in ({}, IRRELEVANT))
    assert relevant(one, "plateau_matched") == relevant(other, "plateau_matched")
    plain = {"seed": 0, "data.root": one.data.root, "normalizer.scale": 1.0}
    assert changed(one, pilot(one)) == changed(changed(other, pilot(other)), plain)
    for key, value in {"optim.lr": 1.0, "train.n_dis": 3, "steps": 600}.items():
        assert relevant(changed(one, {key: value}), "plateau_matched") != relevant(
            one, "plateau_matched"
        )
        assert relevant(one, "init_matched") == relevant(changed(one, {key: value}), "init_matched")
    at_start = [relevant(tiny(it), "init_matched") for it in ({}, {"model.z_dim": 9})]
    assert at_start[0] != at_start[1]


def test_the_steps_of_a_pilot_run_are_the_first_ones_of_the_run(tmp_path):
    """Its learning rate falls as that of the whole run does."""
    whole = {"steps": 10, "checkpoints.every": 2, "normalizer.kind": "spectral"}
    run(tmp_path / "whole", whole)
    run(tmp_path / "pilot", {**whole, **pilot(tiny(whole))})
    at = "checkpoints/step_0000002.pt"
    weights = [state_of(tmp_path / "whole", at), state_of(tmp_path / "pilot")]
    assert differing(*(each["generator"] for each in weights)) == []
    assert weights[1]["step"] == 2


def test_a_plateau_is_read_from_the_steps_that_count(tmp_path):
    config = tiny({"steps": 100})
    gains = {5: 100.0, 10: 1.0, 15: 2.0, 20: 4.0, 21: 100.0}
    lines = [
        {"step": step, "gain/real": gain / 2, "gain/fake": gain * 2, "margin": 0.0}
        for step, gain in gains.items()
    ]
    lines.insert(2, {"step": 12, "loss_d": 1.0})
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plateau_of(config, tmp_path) == pytest.approx(2.0)
    file.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(InputError, match="has no gain at 10 to 20 % of 100 steps"):
        plateau_of(config, tmp_path)
    file.write_text(json.dumps({**lines[1], "gain/real": 0.0}) + "\n")
    with pytest.raises(InputError, match=r"step 10: the gain is 0\.0; expected a number above 0"):
        plateau_of(config, tmp_path)


@pytest.mark.parametrize(("given", "decay_steps"), [(None, 700), (500, 500)])
@pytest.mark.parametrize("decay", ["linear", "none"])
def test_a_pilot_run_knows_how_long_the_run_is(decay, given, decay_steps):
    """What begins late in a run must not begin early in its pilot run."""
    config = tiny({"steps": 700, "optim.decay": decay, "optim.decay_steps": given})
    assert changed(config, pilot(config)).optim.decay_steps == decay_steps


def test_a_pilot_run_logs_enough_gains():
    for steps in (199, 200, 1000, 12_345, 100_000):
        config = tiny({"steps": steps, "log.gain_every": 10**6})
        short = changed(config, pilot(config))
        due = range(short.log.gain_every, short.steps + 1, short.log.gain_every)
        assert sum(steps <= 10 * step for step in due) >= 20
        assert short.steps == steps // 5
        assert asdict(short.optim) == {**asdict(config.optim), "decay_steps": steps}
