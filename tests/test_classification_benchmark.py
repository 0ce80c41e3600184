"""How the benchmark evaluates and reads a classifier's run: from files, of the right weights."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import classifier_run, script, tiny_classifier

import classification.benchmark
from classification import corruptions
from classification.benchmark import CLASSIFICATION
from classification.config import ClassifierConfig
from classification.evaluation_record import accuracy
from classification.named_attacks import Budget, attack_named
from classification.trainer import Trainer
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import CurvePoint, NormPoint

ATTACKS = ("fgsm", "pgd2x2", "corruptions")
# Six epochs of six steps; log lines between them, norms after three and six.
CHANGES = {
    "noise.kind": "symmetric",
    "noise.rate": 0.4,
    "split.validation": 0.1,
    "split.train_fraction": 0.2,
    "optim.schedule": "constant",
    "optim.lr": 0.1,
    "train.epochs": 6,
    "train.flip": False,
    "train.crop": 0,
    "log.every": 4,
    "log.norms_every": 3,
    "seed": 1,
}


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def measure(
    run_dir: Path, attacks: tuple[str, ...], *options: str, num: int | None = None
) -> list[str]:
    """Carry out what a run still needs, and return of which checkpoints that was."""
    commands = CLASSIFICATION.remaining_evaluations(run_dir, attacks, num)
    for command in commands:
        with pytest.MonkeyPatch.context() as patch:
            few = {name: corruptions.CORRUPTIONS[name] for name in ("contrast", "brightness")}
            patch.setattr("classification.corruption_sources.CORRUPTIONS", few)
            patch.setattr("sys.argv", [])
            with pytest.raises(SystemExit) as end:
                script(*command, "--device=cpu", *options)
        assert end.value.code == 0
    return [command[3] for command in commands]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with wrong labels, trained and measured; the best after five epochs of six."""
    run_dir = tmp_path_factory.mktemp("made") / "run"
    descend = Trainer.descend

    def misled(self, x, labels, *rest):
        """The last epoch learns other classes: rounding decides nothing about which was best."""
        descend(self, x, (labels + 1) % 10 if self.state.step >= 30 else labels, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "descend", misled)
        summary = classifier_run(run_dir, CHANGES)
    assert summary["best"]["step"] == 30 < summary["steps"] == 36
    assert measure(run_dir, ATTACKS) == ["last", "best"]
    return run_dir


@pytest.fixture
def run_dir(made, tmp_path) -> Path:
    """A copy of it to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def read(run_dir: Path, attacks: tuple[str, ...] = ATTACKS):
    return CLASSIFICATION.read(run_dir, attacks)


def record_of(run_dir: Path, stem: str) -> dict:
    return json.loads((run_dir / "evaluation" / f"{stem}.json").read_text())


# ------------------------------------------------------------------------------------ reading


def test_scores_are_those_of_the_evaluations_and_of_the_look_at_their_step(made):
    """Catches last.pt's numbers as best.pt's, and shares of wrong labels of another epoch."""
    result = read(made)
    looks = {look["step"]: look["scores"] for look in lines_of(made, "metrics.jsonl")}
    assert result.selected_step == 30
    assert result.scores["final"] != result.scores["selected"]
    for when, stem, step in (("final", "last", 36), ("selected", "best", 30)):
        record, scores = record_of(made, stem), result.scores[when]
        assert scores.keys() == {"clean", *ATTACKS, "ECE", "NLL", "memorized", "recovered"}
        assert set(CLASSIFICATION.scores(tiny_classifier(CHANGES), ATTACKS)[when]) == set(scores)
        assert scores["clean"] == record["clean"]["top1"]["value"]
        values = [attack["accuracy"]["value"] for attack in record["attacks"]]
        assert [scores["fgsm"], scores["pgd2x2"]] == values
        assert scores["ECE"] == record["clean"]["ece"]
        assert scores["NLL"] == record["clean"]["nll"]["mean"]
        assert scores["corruptions"] == record["corruptions"]["mean"]["value"]
        for name in ("memorized", "recovered"):
            assert scores[name] == looks[step][name]


def lines_of(run_dir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def test_images_are_right_as_often_as_the_scores_say(made):
    result = read(made)
    for when, right in result.right.items():
        assert right.keys() == {"clean", "fgsm", "pgd2x2"}
        for name, flags in right.items():
            assert flags.dtype == bool
            assert flags.mean() == result.scores[when][name]
        assert not (right["fgsm"] & ~right["clean"]).any()


@pytest.mark.parametrize(("right", "learned"), [(36, False), (47, False), (48, True), (300, True)])
def test_a_classifier_that_may_be_guessing_has_learned_nothing(
    run_dir, monkeypatch, right, learned
):
    """Of 360 images, with a tenth in the largest class, 47 right is within what chance does."""

    def judged(*asked):
        record, per_image = evaluation(*asked)
        clean = replace(record.clean, top1=accuracy(right, 360))
        return replace(record, clean=clean, chance=0.1), per_image

    evaluation = classification.benchmark._evaluation
    monkeypatch.setattr("classification.benchmark._evaluation", judged)
    assert read(run_dir).learned == learned


def test_curve_is_the_selection_metric_at_seconds_of_training(made):
    """Looks are at other steps than log.every's."""
    result = read(made)
    looks = lines_of(made, "metrics.jsonl")
    assert result.curve_name == "validation accuracy"
    seconds = {line["step"]: line["seconds"] for line in lines_of(made, "log.jsonl")}
    assert result.curve == tuple(
        CurvePoint(look["step"], seconds[look["step"]], look["scores"]["accuracy"])
        for look in looks
    )
    assert [point.step for point in result.curve] == [6, 12, 18, 24, 30, 36]
    times = [point.seconds for point in result.curve]
    assert 0 < times[0] < times[-1]
    assert times == sorted(times)


def test_norms_are_of_every_layer_at_every_look(made):
    norms, log = read(made).norms, lines_of(made, "log.jsonl")
    keys = {"operator": "operator_norm", "matrix": "matrix_norm", "rms": "rms_singular_value"}
    keys |= {"stable_rank": "stable_rank"}
    assert norms.keys() == keys.keys()
    for norm, layers in norms.items():
        assert len(layers) == 4
        for layer, values in layers.items():
            looked = [line for line in log if line["step"] in (18, 36)]
            assert values == tuple(
                NormPoint(line["step"], line[f"{keys[norm]}/{layer}"]) for line in looked
            )


def test_costs_and_versions_are_the_runs(made):
    result, summary = read(made), json.loads((made / "summary.json").read_text())
    last = lines_of(made, "log.jsonl")[-1]
    assert asdict(result.cost) == {
        "network": "classifier",
        **{key: summary[key] for key in ("parameters", "macs", "steps")},
        **{key: last[key] for key in ("seconds", "peak_memory")},
    }
    assert all(value > 0 for value in asdict(result.cost).values() if not isinstance(value, str))
    assert [asdict(segment) for segment in result.segments] == summary["segments"]


def test_a_check_that_failed_is_told(run_dir):
    file = run_dir / "evaluation" / "best.json"
    failed = {"name": "pgd2x2 is not beaten by fgsm", "passed": False, "detail": "9 % against 8 %"}
    edit(file, checks=[failed, failed | {"passed": True}])
    (doubt,) = [d for d in read(run_dir).doubts if d.startswith("selected")]
    assert doubt == "selected weights, pgd2x2 is not beaten by fgsm: 9 % against 8 %"


def test_protocol_holds_every_setting_and_nothing_of_the_training_or_the_result(made):
    """Columns that part by accuracy, or by an axis of the grid, would hold one run each."""
    protocol = read(made).protocol
    budget = Budget(tiny_classifier().adversary.eps)
    expected = {name: attack_named(name, budget).settings for name in ATTACKS[:2]}
    assert protocol["attacks"] == expected
    assert protocol["data"].keys() == {"name", "split", "n", "images_sha256", "positions_sha256"}
    assert (protocol["batch_size"], protocol["seed"]) == (250, 0)
    assert protocol["chance"] == 37 / 360  # the share of the largest class
    assert list(protocol["corruptions"]["sources"]) == ["contrast", "brightness"]
    assert protocol.keys() == {"data", "chance", "batch_size", "seed", "attacks", "corruptions"}
    json.dumps(protocol)


def test_attacks_that_are_not_asked_for_change_nothing(made):
    """A record with more in it is as good as one with less."""
    assert CLASSIFICATION.remaining_evaluations(made, ["fgsm"]) == []
    result = read(made, ("fgsm",))
    assert result.protocol["attacks"].keys() == {"fgsm"}
    assert "corruptions" not in result.protocol
    assert result.scores["final"].keys() == {
        *("clean", "fgsm", "ECE", "NLL", "memorized", "recovered")
    }
    assert result.right["final"].keys() == {"clean", "fgsm"}


def test_a_certified_accuracy_is_a_score_at_the_radius_of_the_protocol(run_dir):
    assert measure(run_dir, ("certified",)) == ["last", "best"]
    result = read(run_dir, ("certified",))
    assert result.protocol["certified"] == {"norm": "l2", "radius": 36 / 255}
    for when, stem in (("final", "last"), ("selected", "best")):
        (point, *_) = record_of(run_dir, stem)["certified"]["points"]
        assert result.scores[when]["certified"] == point["accuracy"]["value"]
        assert result.right[when]["certified"].mean() == point["accuracy"]["value"]
    assert not any("certified" in doubt for doubt in result.doubts)
    file = run_dir / "evaluation" / "best.json"
    unproven = record_of(run_dir, "best")["certified"] | {"lipschitz": None, "proof": "no bound: x"}
    edit(file, certified=unproven)
    assert "selected weights, certified: no bound: x" in read(run_dir, ("certified",)).doubts


def test_the_gap_between_last_and_best_is_told_by_whichever_is_evaluated(run_dir, capsys):
    """Catches a difference with the wrong sign, and one of a record of other settings."""
    right = {stem: np.load(run_dir / "evaluation" / f"{stem}.npz") for stem in ("last", "best")}
    gaps = {n: 100 * (right["last"][n].mean() - right["best"][n].mean()) for n in ("clean", "fgsm")}
    for which in ("last", "best"):
        evaluate_by_hand(run_dir, "--checkpoint", which, "--attacks", "fgsm")
        output = capsys.readouterr().out
        assert f"clean accuracy: last - best = {gaps['clean']:+.2f} points [" in output
        assert f"robust overfitting: last - best = {gaps['fgsm']:+.2f} points [" in output
        assert "under fgsm (epoch 6 against 5, 360 images)" in output
    evaluate_by_hand(run_dir, "--attacks", "fgsm", "--num=20")
    assert "last - best" not in capsys.readouterr().out


def evaluate_by_hand(run_dir: Path, *options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        with pytest.raises(SystemExit) as end:
            script("evaluate_cls.py", str(run_dir), "--device=cpu", *options)
    assert end.value.code == 0


def test_a_run_that_held_nothing_out_has_no_curve_and_no_selected_scores(tmp_path):
    classifier_run(tmp_path / "run", {"split.validation": 0.0, "train.epochs": 1})
    assert measure(tmp_path / "run", ()) == ["last"]
    result = read(tmp_path / "run", ())
    assert result.scores.keys() == result.right.keys() == {"final"}
    assert result.scores["final"].keys() == {"clean", "ECE", "NLL"}
    assert (result.selected_step, result.curve, result.norms, result.floor) == (None, (), {}, {})


# -------------------------------------------------------------------- measuring what is missing


def test_what_is_measured_is_not_measured_again_and_the_rest_is(run_dir):
    """Catches an evaluation for every start, and one that is never repeated."""
    assert CLASSIFICATION.remaining_evaluations(run_dir, ATTACKS) == []
    command = ["evaluate_cls.py", str(run_dir), "--checkpoint"]
    assert CLASSIFICATION.remaining_evaluations(run_dir, ["fgsm", "pgd3"]) == [
        [*command, "last", "--attacks", "fgsm", "pgd3"],
        [*command, "best", "--attacks", "fgsm", "pgd3"],
    ]
    (run_dir / "evaluation" / "last.json").unlink()
    assert measure(run_dir, ("fgsm",)) == ["last"]
    assert measure(run_dir, ATTACKS) == []  # of what was measured nothing is lost
    read(run_dir)


def test_a_grid_that_asks_for_few_images_has_a_record_of_its_own(run_dir):
    """The record of all images taken for it, or the other way round."""
    of_all = json.loads((run_dir / "evaluation" / "last.json").read_text())
    command = ["evaluate_cls.py", str(run_dir), "--checkpoint", "last", "--num", "9"]
    found = CLASSIFICATION.remaining_evaluations(run_dir, ["fgsm"], 9)
    assert found[0] == [*command, "--attacks", "fgsm"]
    assert measure(run_dir, ("fgsm",), num=9) == ["last", "best"]
    assert CLASSIFICATION.read(run_dir, ["fgsm"], 9).protocol["data"]["n"] == 9
    assert CLASSIFICATION.read(run_dir, ["fgsm"]).protocol["data"]["n"] == of_all["data"]["n"] > 9


def test_an_evaluation_of_other_weights_is_not_read_but_made_anew(run_dir):
    """A run that was begun anew, or trained on, with the record of before beside it."""
    shutil.copy(run_dir / "best.pt", run_dir / "last.pt")
    stale = record_of(run_dir, "last")["checkpoint"]["sha256"]
    with pytest.raises(InputError, match=r"last\.json: is of a checkpoint that was there before"):
        read(run_dir)
    assert measure(run_dir, ATTACKS) == ["last"]
    assert record_of(run_dir, "last")["checkpoint"]["sha256"] != stale


def test_images_of_another_checkpoint_are_not_read_but_made_anew(run_dir):
    """McNemar's test would compare a network with itself."""
    folder = run_dir / "evaluation"
    shutil.copy(folder / "last.npz", folder / "best.npz")
    with pytest.raises(InputError, match=r"best\.npz: is of another evaluation than best\.json"):
        read(run_dir)
    assert measure(run_dir, ATTACKS) == ["best"]
    final, selected = read(run_dir).right.values()
    assert not np.array_equal(final["fgsm"], selected["fgsm"])


# ------------------------------------------------------------------------------------- errors


def test_two_checkpoints_that_were_measured_differently_are_refused(run_dir):
    """final and selected are columns of one table, with one protocol."""
    edit(run_dir / "evaluation" / "best.json", seed=1)
    with pytest.raises(InputError, match=r"evaluated differently .*seed: 0 there, 1 here"):
        read(run_dir, ("fgsm",))


def test_an_evaluation_of_other_settings_is_another(run_dir):
    """A quick look at few images by hand was taken for the benchmark's own, and its numbers too."""
    before = read(run_dir)
    evaluate_by_hand(run_dir, "--attacks", "fgsm", "--eps=4", "--num=50")
    assert (run_dir / "evaluation" / "best_num=50_eps=4.json").exists()
    assert CLASSIFICATION.remaining_evaluations(run_dir, ATTACKS) == []
    after = read(run_dir)
    assert (after.scores, after.protocol) == (before.scores, before.protocol)


def test_a_best_that_is_not_the_one_of_the_summary_is_refused(run_dir):
    """Its numbers would stand at a step that was not selected."""
    edit(run_dir / "summary.json", best={"step": 24, "scores": {}})
    with pytest.raises(InputError, match=r"best\.pt: is of step 30; expected that of summary.*24"):
        read(run_dir)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.yaml", None, "config.yaml: not readable"),
        ("summary.json", None, "summary.json: No such file"),
        ("summary.json", ("steps", "parts"), "summary.json: lacks 'steps'"),
        ("summary.json", ("macs", "mack"), "summary.json: lacks 'macs'"),
        ("summary.json", ("{", "["), "summary.json: damaged"),
        ("log.jsonl", ("seconds", "centuries"), "log.jsonl: lacks 'seconds'"),
        ("metrics.jsonl", ("scores", "notes"), "metrics.jsonl, line 1: holds no scores"),
        ("last.pt", None, "last.pt: No such file"),
        ("best.pt", None, "best.pt: No such file"),
        ("evaluation/last.json", None, "last.json: No such file"),
        ("evaluation/best.npz", None, "best.npz: No such file"),
        ("evaluation/best.json", ("pgd2x2", "pgd4x2"), "best.npz: lacks pgd4x2"),
        ("evaluation/best.json", ("num_attacked", "attack"), "attacks.0.attack: no such key"),
    ],
)
def test_what_a_folder_lacks_is_told_in_one_line_that_names_the_file(
    run_dir, name, change, message
):
    file = run_dir / name
    text = file.read_text() if change else ""
    file.unlink()
    if change:
        file.write_text(text.replace(*change))
    with pytest.raises(InputError, match=message) as error:
        read(run_dir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["log.jsonl", "metrics.jsonl"])
def test_a_finished_run_without_its_lines_is_reported(run_dir, name):
    """What summary.json has of them is enough; of what is lost the report has to say so."""
    whole = read(run_dir)
    (run_dir / name).unlink()
    result = read(run_dir)
    assert result.scores == whole.scores
    assert result.cost == whole.cost
    assert [doubt for doubt in result.doubts if "records" in doubt] == [
        {
            "log.jsonl": "log.jsonl lacks 8 of 9 records (steps 4 to 32)",
            "metrics.jsonl": "metrics.jsonl lacks 5 of 6 records (steps 6 to 30)",
        }[name]
    ]
    edit(run_dir / "summary.json", **{name.removesuffix(".jsonl"): None, "best": None})
    if name == "log.jsonl":
        with pytest.raises(InputError, match=r"log.jsonl: lacks the line of step 36"):
            read(run_dir)


def test_a_finished_run_that_lost_its_scores_is_validated_again(run_dir):
    file, summary = run_dir / "metrics.jsonl", (run_dir / "summary.json").read_bytes()
    lines, best = lines_of(run_dir, "metrics.jsonl"), (run_dir / "best.pt").read_bytes()
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    classifier_run(run_dir, CHANGES)
    assert lines_of(run_dir, "metrics.jsonl") == lines
    assert (run_dir / "summary.json").read_bytes() == summary
    assert (run_dir / "best.pt").read_bytes() == best


def test_an_attack_that_was_not_run_is_named(made):
    with pytest.raises(InputError, match=r"last\.pt: not evaluated with pgd20, simba_dct;"):
        read(made, ("fgsm", "pgd20", "simba_dct"))


# -------------------------------------------------------------------------------------- scores


def test_which_way_a_score_is_better():
    """A sign the wrong way round makes the worst classifier the winner; a sweep is no score."""
    pytest.importorskip("pyautoattack")
    attacks = ("fgsm", "pgd50x10_l2", "apgd_ce_t", "sweep", "certified", "corruptions")
    scores = CLASSIFICATION.scores(tiny_classifier({"noise.kind": "pair"}), attacks)["final"]
    better = dict.fromkeys(("clean", "recovered", *attacks), "higher")
    del better["sweep"]
    assert {name: metric.better for name, metric in scores.items()} == {
        **better,
        **dict.fromkeys(("memorized", "ECE", "NLL"), "lower"),
    }
    assert {name for name, metric in scores.items() if not metric.percent} == {"NLL"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("PGD20", "pgd20"),
        ("fgsm,pgd20", "fgsm and pgd20, each by itself"),
        ("Corruptions", "corruptions"),
        ("pgd1000000000", "1 to 10,000 steps"),
        ("nonsense", "fgsm, pgd<STEPS>"),
    ],
)
def test_an_attack_of_a_grid_that_does_not_exist_is_told_with_the_one_that_does(name, expected):
    with pytest.raises(InputError, match=f"attacks: .*{name}.*; expected {expected}"):
        CLASSIFICATION.scores(tiny_classifier(), ["fgsm", name])


def test_the_fraction_that_is_done_counts_epochs():
    config = tiny_classifier({"train.epochs": 8})
    assert CLASSIFICATION.fraction_done(config, {"step": 99, "epoch": 2.0}) == 0.25
    assert CLASSIFICATION.config is ClassifierConfig
