"""What the benchmark reads of a GAN's run, and what it says about one that it cannot read."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from runs import SCORED, SELECTED, run, tiny

from convnorm.experiment.errors import InputError
from gan.benchmark import GAN
from gan.extractor import ExtractorSpec
from gan.extractors import EXTRACTORS
from gan.protocols import PROTOCOLS
from gan.score_names import FROM_FEATURES, renamed

NAMES = ("FD", "FD corrected", "KID", "precision", "recall", "coverage")
SCORES = {f"{name} (digits)" for name in (*NAMES, "CS")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("gan") / "run"
    scored = {**SELECTED, "score.every": 1}
    run(run_dir, {**scored, "log.every": 2, "log.norms_every": 2, "log.samples_every": 2})
    return run_dir


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """A copy to write in."""
    return shutil.copytree(trained, tmp_path / "run")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewrite(path: Path, change) -> None:
    """Change every line of a .jsonl file."""
    lines = lines_of(path)
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(run_dir: Path):
    return GAN.read(run_dir, [])


def test_a_run_is_read(run_dir):
    """Catches a spread or a size among the scores, another network's cost, the first picture."""
    result = read(run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    last_log, record = (lines_of(run_dir / name)[-1] for name in ("log.jsonl", "metrics.jsonl"))
    assert set(result.scores["final"]) == set(result.scores["selected"]) == SCORES
    config = tiny(SELECTED)
    promised = GAN.scores(config, ())
    assert {when: set(names) for when, names in promised.items()} == {
        "final": SCORES,
        "selected": SCORES,
    }
    assert set(result.floor) == SCORES
    assert promised["final"] == result.metrics
    assert record["scores"] == result.scores["final"]
    assert record["floor"]["scores"] == result.floor
    assert result.curve_name == "FD (digits)"
    assert [point.step for point in result.curve] == [1, 2, 3, 4]
    assert result.curve[-1].value == result.scores["final"]["FD (digits)"]
    assert asdict(result.cost) == {
        "network": "discriminator",
        "parameters": summary["parameters"]["discriminator"],
        "macs": summary["macs"]["discriminator"],
        "steps": 4,
        "seconds": last_log["seconds"],
        "peak_memory": last_log["peak_memory"],
    }
    assert [asdict(segment) for segment in result.segments] == summary["segments"]
    assert set(result.versions) == {"torch", "torch_fidelity", "python"}
    assert result.picture == run_dir / "samples" / "step0000004.png"


def test_real_images_are_never_shown_as_samples(run_dir):
    assert (run_dir / "samples" / "real.png").is_file()
    for file in (run_dir / "samples").glob("step*.png"):
        file.unlink()
    assert read(run_dir).picture is None


def test_norms_are_read_by_layer(run_dir):
    norms = read(run_dir).norms
    last = lines_of(run_dir / "log.jsonl")[-1]
    names = {"operator": "operator_norm", "matrix": "matrix_norm", "rms": "rms_singular_value"}
    names |= {"stable_rank": "stable_rank"}
    assert norms.keys() == names.keys()
    for kind, layers in norms.items():
        assert len(layers) == 2
        for layer, points in layers.items():
            assert [point.step for point in points] == [2, 4]
            assert points[-1].value == last[f"{names[kind]}/{layer}"]


def test_gains_are_read_from_before_the_first_step(run_dir):
    result, (first, *_, last) = read(run_dir), lines_of(run_dir / "log.jsonl")
    assert [point.step for point in result.gain] == [0, 4]
    for point, line in zip(result.gain, (first, last), strict=True):
        assert (point.real, point.fake) == (line["gain/real"], line["gain/fake"])
        assert point.margin == line["margin"]


def test_a_run_that_never_measured_its_gain_is_read(run_dir):
    """As one of a version before."""

    def forget(line):
        for key in ("gain/real", "gain/fake", "margin"):
            line.pop(key, None)

    rewrite(run_dir / "log.jsonl", forget)
    assert read(run_dir).gain == ()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("gain/fake", None, "damaged"), ("gain/real", "high", "damaged"), ("margin", ..., "lacks")],
)
def test_a_damaged_gain_is_named(run_dir, key, value, reason):
    def damage(line):
        if line.pop(key, None) is not None and value is not ...:
            line[key] = value

    rewrite(run_dir / "log.jsonl", damage)
    with pytest.raises(InputError, match=f"log.jsonl: {reason}"):
        read(run_dir)


def test_time_between_two_log_lines_is_shared_by_their_steps(run_dir):
    def slow(line):
        line["seconds"] = {0: 0.0, 2: 10.0, 4: 40.0}[line["step"]]

    rewrite(run_dir / "log.jsonl", slow)
    assert [point.seconds for point in read(run_dir).curve] == [5.0, 10.0, 25.0, 40.0]


@pytest.mark.parametrize(
    ("other", "step"), [([9.0, 7.0, 8.0, 9.0], 2), ([None, 9.0, 8.0, None], 3)]
)
def test_a_step_is_selected_by_the_other_draw(run_dir, other, step):
    """Selected by what is reported, every run looks as good as its luckiest step."""
    reported = [5.0, 6.0, 7.0, 1.0]

    def change(record):
        index = record["step"] - 1
        record["scores"]["FD (digits)"] = reported[index]
        record["selection"]["scores"]["FD (digits)"] = other[index]

    rewrite(run_dir / "metrics.jsonl", change)
    result = read(run_dir)
    assert result.selected_step == step
    assert result.scores["selected"]["FD (digits)"] == reported[step - 1]
    assert result.scores["final"]["FD (digits)"] == 1.0


@pytest.mark.parametrize(("precision", "learned"), [(0.0, False), (0.005, True), (None, True)])
def test_a_generator_whose_images_are_nothing_like_real_ones_has_learned_nothing(
    run_dir, precision, learned
):
    """It counts at the end alone: every generator begins there."""

    def change(record):
        last = record["step"] == 4
        record["scores"]["precision (digits)"] = precision if last else 0.0

    rewrite(run_dir / "metrics.jsonl", change)
    assert read(run_dir).learned == learned


def test_without_a_second_draw_nothing_is_selected(run_dir):
    rewrite(run_dir / "metrics.jsonl", lambda record: record.update(selection=None))
    result = read(run_dir)
    assert result.selected_step is None
    assert result.scores.keys() == {"final"}
    assert result.protocol["selection"] is None


def test_the_protocol_tells_apart_what_does_not_compare(run_dir):
    """Catches two columns in one: other real images, other weights, other numbers of images."""
    known = read(run_dir).protocol
    assert json.loads(json.dumps(known)) == known
    assert (known["name"], known["split"]) == ("digits[real=200,fake=200]", "train")
    assert (known["selection"]["name"], known["selection"]["split"]) == (
        "digits_test[real=200,fake=200]",
        "test",
    )

    def changed(*keys):
        def change(record):
            for key in keys[:-1]:
                record = record[key]
            record[keys[-1]] = "other"

        rewrite(run_dir / "metrics.jsonl", change)
        return read(run_dir).protocol

    for keys in (
        ("protocol", "num_fake"),
        ("protocol", "coverage_neighborhood"),
        ("extractor", "weights_sha256"),
        ("real", "sha256"),
        ("selection", "protocol", "name"),
    ):
        before, known = known, changed(*keys)
        assert before != known


def test_doubts_of_what_is_reported_reach_the_report(run_dir):
    """Of the last step and of the selected one; what an earlier step had is over."""

    def change(record):
        step = record["step"]
        record["doubts"] = [f"few at {step}", "few"]
        record["floor"]["doubts"] = ["halves"]
        record["selection"]["doubts"] = [f"few to select by at {step}"]
        record["selection"]["floor"]["doubts"] = ["halves to select by"]
        record["selection"]["scores"]["FD (digits)"] = abs(step - 2)

    rewrite(run_dir / "metrics.jsonl", change)
    assert read(run_dir).doubts == (
        *("few at 4", "few", "floor: halves", "selection: few to select by at 4"),
        *("few at 2", "selection: few to select by at 2"),
    )


def test_a_run_that_was_not_scored_is_one_line(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match=r"metrics.jsonl: holds no score; .*score.protocol"):
        read(tmp_path)


def without(name, key):
    return lambda run_dir: rewrite(run_dir / name, lambda line: line.pop(key))


def summary_without_macs(run_dir):
    file = run_dir / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "macs": {}}))


def older_scores(run_dir):
    """The form before records had types: spreads among the scores, a floor without rooms."""

    def change(line):
        del line["format"], line["metrics"], line["headline"]
        line["scores"] |= line.pop("spreads")
        floor = line["floor"]
        line["floor"] = {"n": floor["num_images"], **floor["scores"], **floor["spreads"]}
        if line["selection"] is not None:
            change(line["selection"])

    rewrite(run_dir / "metrics.jsonl", change)


def summary_without(*keys):
    def change(run_dir):
        file = run_dir / "summary.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **dict.fromkeys(keys)}))
        for name in keys:
            (run_dir / f"{name}.jsonl").write_text("")

    return change


def cut_line(name, number):
    """Cut a line of a file short, and leave those behind it out if there are no others."""

    def change(run_dir):
        lines = (run_dir / name).read_bytes().splitlines(keepends=True)
        lines[number] = lines[number][:20] + (b"" if number == len(lines) - 1 else b"\n")
        (run_dir / name).write_bytes(b"".join(lines))

    return change


@pytest.mark.parametrize(
    ("damage", "doubts"),
    [
        (cut_line("metrics.jsonl", 3), ()),
        (cut_line("log.jsonl", 2), ()),
        (cut_line("metrics.jsonl", 1), ("metrics.jsonl lacks 1 of 4 records (step 2)",)),
        (
            lambda run_dir: (run_dir / "metrics.jsonl").unlink(),
            ("metrics.jsonl lacks 3 of 4 records (steps 1 to 3)",),
        ),
        (
            lambda run_dir: (run_dir / "log.jsonl").unlink(),
            ("log.jsonl lacks 1 of 2 records (step 2)",),
        ),
    ],
)
def test_a_finished_run_whose_files_were_cut_is_reported(run_dir, damage, doubts):
    """The last lines are in summary.json too; of what is lost the report has to say so."""
    whole = read(run_dir)
    damage(run_dir)
    result = read(run_dir)
    assert result.scores["final"] == whole.scores["final"]
    assert result.cost == whole.cost
    assert set(result.curve) <= set(whole.curve) or doubts[0].startswith("log")
    assert tuple(it for it in result.doubts if it not in whole.doubts) == doubts


def test_a_finished_run_that_lost_its_score_is_measured_again(run_dir):
    """To the same bits, and summary.json with it; the other lines stay as they are."""
    before = [(run_dir / n).read_bytes() for n in ("metrics.jsonl", "summary.json", "last.pt")]
    cut_line("metrics.jsonl", 3)(run_dir)
    scored = {**SELECTED, "score.every": 1}
    run(run_dir, {**scored, "log.every": 2, "log.norms_every": 2, "log.samples_every": 2})
    after = [(run_dir / n).read_bytes() for n in ("metrics.jsonl", "summary.json", "last.pt")]
    assert after == before


def test_the_end_of_a_run_that_was_made_longer_is_no_point_of_its_curve(tmp_path):
    """It is none of a run that was long from the start, and could be selected."""
    changes = {**SCORED, "score.every": 2, "optim.decay": "none"}
    run(tmp_path, {**changes, "steps": 3})
    run(tmp_path, {**changes, "steps": 5})
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [2, 3, 4, 5]
    assert [point.step for point in read(tmp_path).curve] == [2, 4, 5]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run_dir: (run_dir / "summary.json").unlink(), "summary.json: No such file"),
        (lambda run_dir: (run_dir / "summary.json").write_text("{"), "summary.json: damaged"),
        (lambda run_dir: (run_dir / "summary.json").write_text("[]"), "summary.json: damaged"),
        (
            lambda run_dir: (run_dir / "summary.json").write_text("[" * 30_000),
            "summary.json: damaged",
        ),
        (summary_without_macs, "summary.json: lacks 'discriminator'"),
        (summary_without("log"), "log.jsonl: lacks the line of step 4"),
        (summary_without("segments"), "summary.json: damaged"),
        (lambda run_dir: (run_dir / "metrics.jsonl").write_text("null\n"), "metrics.jsonl, line 1"),
        (without("log.jsonl", "seconds"), "log.jsonl: lacks 'seconds'"),
        (without("log.jsonl", "peak_memory"), "log.jsonl: lacks 'peak_memory'"),
        (without("metrics.jsonl", "floor"), "metrics.jsonl: floor: is missing; expected keys"),
        (
            without("metrics.jsonl", "format"),
            "holds no format; expected '.*/score/4'",
        ),
        (older_scores, "metrics.jsonl: holds no format; expected 'convnorm-suite/score/4'"),
        (summary_without("metrics"), "metrics.jsonl: holds no score"),
    ],
)
def test_a_run_that_lacks_something_is_one_line(run_dir, damage, message):
    """An older version's run, or a cut one: a KeyError would stop the report of all others."""
    damage(run_dir)
    with pytest.raises(InputError, match=message) as caught:
        read(run_dir)
    assert str(run_dir) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        ("digits", [f"{name} (digits)" for name in NAMES]),
        ("fid50k_train", [name.replace("FD", "FID") for name in NAMES]),
    ],
)
def test_metrics_know_what_is_better(protocol, names):
    """A sign the wrong way round makes the worst GAN the winner."""
    scores = GAN.scores(tiny({"score.protocol": protocol}), [])["final"]
    lower = {name: metric.better == "lower" for name, metric in scores.items()}
    score = "CS (digits)" if protocol == "digits" else "IS"
    assert lower == dict(zip(names, [True] * 3 + [False] * 3, strict=True)) | {score: False}
    assert not any(metric.percent for metric in scores.values())


def test_an_extractor_without_logits_is_read(run_dir, monkeypatch):
    """Catches a table of names in the reader, and a score that such a run cannot have."""
    toy = ExtractorSpec("toy", renamed("{}-toy", FROM_FEATURES), "frechet", load=None)
    monkeypatch.setitem(EXTRACTORS, "toy", toy)
    monkeypatch.setitem(PROTOCOLS, "toy", replace(PROTOCOLS["digits"], extractor="toy"))
    names = {name.replace(" (digits)", "-toy") for name in SCORES - {"CS (digits)"}}
    config = replace(tiny(), score=replace(tiny().score, protocol="toy"))
    promised = GAN.scores(config, [])["final"]
    assert promised.keys() == names

    def change(record):
        for part in (record, record["floor"]):
            part["scores"] = {
                name.replace(" (digits)", "-toy"): value
                for name, value in part["scores"].items()
                if not name.startswith("CS")
            }
        record |= {"headline": "FD-toy", "spreads": {}, "selection": None}
        record["metrics"] = {name: asdict(metric) for name, metric in promised.items()}

    rewrite(run_dir / "metrics.jsonl", change)
    result = read(run_dir)
    assert result.metrics == promised
    assert result.scores["final"].keys() == result.floor.keys() == names
    assert result.curve_name == "FD-toy"


def test_a_run_needs_no_evaluation_and_tells_how_far_it_is(tmp_path):
    assert GAN.remaining_evaluations(tmp_path, [], None) == []
    assert GAN.fraction_done(tiny({"steps": 8}), {"step": 2}) == 0.25
