"""From run folders to one record: the right runs in the right cells, tests and refusals."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import toy

from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.results import gather
from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.config import to_yaml
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import (
    Count,
    CurvePoint,
    GainPoint,
    Metric,
    NormPoint,
    Report,
    Summary,
)
from convnorm.experiment.report import page, tables

KINDS = {"axes": {"kind": ["good", "bad"]}, "seeds": [0, 1, 2]}


def done(benchmark: Benchmark, **scores: list[float]) -> Benchmark:
    """Finish runs by hand: a score for each seed of a cell, None for a run that never was."""
    for run in benchmark.runs:
        score = scores[run.cell.slug.replace("-", "_")][benchmark.grid.seeds.index(run.seed)]
        if score is not None:
            run.folder.mkdir(parents=True)
            (run.folder / "config.yaml").touch()
            (run.folder / "summary.json").write_text(json.dumps({"score": score}))
    return benchmark


def changing(benchmark: Benchmark, change) -> Benchmark:
    """The same with another way of reading runs: change(folder, result) -> result."""
    read = benchmark.pipeline.read
    pipeline = replace(
        benchmark.pipeline, read=lambda folder, *asked: change(folder, read(folder, *asked))
    )
    return replace(benchmark, pipeline=pipeline)


def report_of(benchmark: Benchmark) -> Report:
    report = gather(benchmark)
    assert from_json(Report, json.loads(json.dumps(to_json(report))), "results.json") == report
    return report


def test_every_cell_gets_the_runs_that_are_its_own(tmp_path):
    report = report_of(done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, None, 7]))
    good, bad = report.cells
    assert (good.name, good.n, bad.n, bad.planned) == ("good", 3, 2, 3)
    assert good.scores["final"]["FD"].mean == pytest.approx(4)
    assert good.scores["selected"]["FD"].mean == pytest.approx(3)
    assert good.area.mean == pytest.approx(3.5)
    assert bad.scores["final"]["FD"].sd == pytest.approx(math.sqrt(2))
    assert good.cost.steps_per_second.mean == 2
    assert [run.state for run in report.runs].count("done") == len(report.done) == 5
    assert report.metrics == {"FD": Metric("lower")}


def test_a_score_of_some_cells_alone_is_in_the_report(tmp_path):
    """As "memorized" is, which only runs with wrong labels have: not those of the first cell."""

    def change(folder, result):
        if folder.parent.name == "good":
            return result
        metrics = {**result.metrics, "memorized": Metric("lower", percent=True)}
        scores = {when: {**found, "memorized": 0.5} for when, found in result.scores.items()}
        return replace(result, metrics=metrics, scores=scores)

    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    report = report_of(changing(benchmark, change))
    assert report.metrics == {"FD": Metric("lower"), "memorized": Metric("lower", percent=True)}
    assert ["memorized" in cell.scores["final"] for cell in report.cells] == [False, True]
    shown = "\n".join(tables.scores(report))
    assert "| bad | 3 | 8.00 ± 1.0 | 50.0 ± 0 |" in shown


def test_every_place_and_version_of_a_training_is_listed(tmp_path):
    """Catches those of the last start alone."""

    def resumed(folder, result):
        (part,) = result.segments
        other = replace(part, step=2, torch="2.12.0", hardware="other", world_size=2)
        return replace(result, segments=(part, other), versions={"torch": "2.13.0"})

    report = report_of(
        changing(done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7]), resumed)
    )
    assert report.hardware == ("other, in 2 processes", "toy")
    assert report.versions["torch"] == ("2.11.0", "2.12.0", "2.13.0")
    assert report.versions["commit"] == ("unknown",)
    assert len(report.runs[0].result.segments) == 2


def test_seeds_are_paired_and_only_those_that_both_have(tmp_path):
    report = report_of(done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[None, 9, 8]))
    (comparison,) = report.comparisons
    assert (comparison.cell, comparison.against) == ("bad", "good")
    assert (comparison.seeds, comparison.n) == ((1, 2), 2)
    assert comparison.difference == pytest.approx(4)  # 5 and 3


@pytest.mark.parametrize(("better", "verdict"), [("lower", "worse"), ("higher", "better")])
def test_the_direction_of_a_score_decides_what_is_better(tmp_path, better, verdict):
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 10.1, 11])
    changes = {"metrics": {"FD": Metric(better)}, "curve": (), "floor": {}}
    benchmark = changing(benchmark, lambda folder, result: replace(result, **changes))
    assert report_of(benchmark).comparisons[0].verdict == verdict


def test_what_no_test_tells_apart_has_no_verdict(tmp_path):
    report = report_of(done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 3, 5.5]))
    assert report.comparisons[0].verdict == "not distinguishable"


def test_one_seed_is_not_tested(tmp_path):
    report = report_of(done(toy(tmp_path, **KINDS), good=[3, None, None], bad=[9, 3, 5]))
    (comparison,) = report.comparisons
    assert (comparison.n, comparison.verdict) == (1, "not tested")
    assert comparison.p is comparison.p_holm is comparison.interval is None
    assert report.cells[0].scores["final"]["FD"] == Summary(3.0, None, 1, None)


def test_all_tests_of_a_benchmark_are_one_family(tmp_path):
    """Catches a correction within each group of the other axis only."""
    axes = {"steps": [4, 5], "kind": ["good", "bad"]}
    compare = {"axis": "kind", "against": "good"}
    benchmark = toy(tmp_path, axes=axes, seeds=[0, 1, 2], compare=compare)
    scores = {"steps_4_good": [1, 2, 3], "steps_4_bad": [2, 3.1, 4]}
    scores |= {"steps_5_good": [1, 2, 3], "steps_5_bad": [5, 2, 4]}
    first, second = report_of(done(benchmark, **scores)).comparisons
    assert (first.cell, first.against) == ("steps 4 / bad", "steps 4 / good")
    assert (second.cell, second.against) == ("steps 5 / bad", "steps 5 / good")
    assert first.p_holm == pytest.approx(2 * first.p)
    assert second.p_holm == pytest.approx(second.p)


def test_a_run_that_fell_from_its_best_has_collapsed(tmp_path):
    def fell(folder, result):
        final = result.scores["final"]["FD"]
        return replace(result, curve=(CurvePoint(2, 1.0, final / 3), CurvePoint(4, 2.0, final)))

    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 0.2])
    report = report_of(changing(benchmark, fell))
    # 0.2 after 0.07, with a floor of 0.1 between real images, is no collapse
    assert [cell.collapsed for cell in report.cells] == [Count(3, 3), Count(2, 3)]


@pytest.mark.parametrize(("floor", "expected"), [(-0.1, 2), (0.0, 3)])
def test_a_floor_of_either_sign_is_as_good_as_its_size(floor, expected, tmp_path):
    """KID is unbiased: of real images against real ones it is below 0 in one half of the cases."""

    def fell(folder, result):
        final = result.scores["final"]["FD"]
        curve = (CurvePoint(2, 1.0, final / 3), CurvePoint(4, 2.0, final))
        return replace(result, curve=curve, floor={"FD": floor})

    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 0.2])
    report = report_of(changing(benchmark, fell))
    assert report.cells[1].collapsed == Count(expected, 3)


def test_a_run_that_never_learned_anything_has_collapsed_too(tmp_path):
    """Twenty steps get a GAN nowhere from which it could fall."""

    def at_chance(folder, result):
        curve = () if folder.match("good/seed2") else result.curve
        return replace(result, curve=curve, learned=not folder.match("*/seed[12]"))

    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    report = report_of(changing(benchmark, at_chance))
    assert [cell.collapsed for cell in report.cells] == [Count(2, 3), Count(2, 3)]


def test_numbers_of_two_protocols_are_refused_with_both_named(tmp_path):
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])

    def other(folder, result):
        protocol = {"name": "fid10k_test"} if folder.match("bad/seed1") else result.protocol
        return replace(result, protocol=protocol)

    expected = r"\(good, seed 0\) and \(bad, seed 1\) .*name: 'toy' there, 'fid10k_test' here"
    with pytest.raises(InputError, match=expected):
        gather(changing(benchmark, other))


def test_a_score_that_is_no_number_is_a_failed_run_and_no_traceback(tmp_path):
    benchmark = done(toy(tmp_path, **KINDS), good=[3, math.nan, 5], bad=[9, 8, 7])
    report = report_of(benchmark)
    (failed,) = report.failed
    assert (failed.cell, failed.seed) == ("good", 1)
    assert failed.reason == "the final FD is nan; expected a number"
    assert report.cells[0].n == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"curve": (CurvePoint(2, 1.0, math.nan), CurvePoint(4, 2.0, 3.0))}, "FD at step 2 is nan"),
        (
            {"norms": {"rms": {"0": (NormPoint(3, math.inf),)}}},
            "rms norm of layer 0 at step 3 is inf",
        ),
        (
            {"norms": {"stable_rank": {"0": (NormPoint(3, math.nan),)}}},
            "stable rank of layer 0 at step 3 is nan",
        ),
        (
            {"gain": (GainPoint(0, 1.0, 1.0, 0.0), GainPoint(1, math.nan, 1.0, 0.0))},
            "gain on real images at step 1 is nan",
        ),
        (
            {"gain": (GainPoint(1, 1.0, math.inf, 0.0),)},
            "gain on generated images at step 1 is inf",
        ),
        ({"gain": (GainPoint(1, 1.0, 1.0, -math.inf),)}, "margin at step 1 is -inf"),
    ],
)
def test_a_number_during_training_that_is_none_is_a_failed_run(tmp_path, changes, reason):
    """It was a traceback that took the report of all other runs with it."""
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])

    def diverged(folder, result):
        return replace(result, **changes) if folder.match("bad/seed1") else result

    (failed,) = report_of(changing(benchmark, diverged)).failed
    assert failed.reason == f"the {reason}; expected a number"


def test_the_plateau_gain_of_a_cell_is_the_geometric_mean_of_its_runs(tmp_path):
    """Over the part of the run's own steps; runs without one, as all of `bad`, do not count."""
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    gains = {"good/seed0": 1.0, "good/seed2": 100.0}

    def probed(folder, result):
        gain = gains.get("/".join(folder.parts[-2:]))
        points = ((0, 9.0), (5, gain), (9, gain), (12, 9.0), (40, 9.0)) if gain else ((0, 9.0),)
        gained = tuple(GainPoint(step, 2 * value, value / 2, 0.5) for step, value in points)
        return replace(result, gain=gained, cost=replace(result.cost, steps=50))

    report = report_of(changing(benchmark, probed))
    found = [run.result.plateau_gain for run in report.runs if run.cell == "good"]
    assert found == pytest.approx([1, None, 100])
    good, bad = report.cells
    assert (good.plateau_gain.mean, good.plateau_gain.n) == (pytest.approx(10), 2)
    assert bad.plateau_gain is None
    assert len(report.runs[0].result.gain) == 5


def test_the_drift_of_a_cell_is_that_of_its_runs_that_selected(tmp_path):
    """A mean over all finals less one over some selected scores would be of different runs."""
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    selected = {"good/seed0": 1.0, "good/seed2": 9.0}

    def chosen(folder, result):
        found = selected.get("/".join(folder.parts[-2:]))
        scores = {"final": result.scores["final"]} | ({"selected": {"FD": found}} if found else {})
        return replace(result, scores=scores)

    good, bad = report_of(changing(benchmark, chosen)).cells
    assert good.final_minus_selected.n == 2
    assert good.final_minus_selected.mean == pytest.approx((3 - 1 + 5 - 9) / 2)
    assert bad.final_minus_selected is None


def test_a_grid_that_was_changed_after_its_first_start_is_told(tmp_path):
    """The score, the reference and the seeds could be chosen by what the runs gave."""
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    assert report_of(benchmark).changed is None
    (benchmark.folder / "grid.yaml").write_text(to_yaml(benchmark.grid))
    report = report_of(benchmark)
    assert (report.changed, report.left_out) == ((), ())
    again = toy(
        tmp_path, axes=KINDS["axes"], seeds=[0, 1], compare={"axis": "kind", "against": "bad"}
    )
    report = report_of(again)
    assert report.changed == (
        "seeds: [0, 1, 2] there, [0, 1] here",
        "compare.against: 'good' there, 'bad' here",
    )
    assert report.left_out == ("bad/seed2", "good/seed2")


def test_areas_over_other_steps_are_not_compared(tmp_path):
    def shorter(folder, result):
        return replace(result, curve=result.curve[1:]) if folder.match("bad/*") else result

    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    report = report_of(changing(benchmark, shorter))
    assert all(cell.area is None for cell in report.cells)
    assert all(run.result.area is None for run in report.runs)


def test_a_report_over_nothing_is_refused(tmp_path):
    benchmark = toy(tmp_path)
    with pytest.raises(InputError, match="nothing to report: none of 4 runs is done"):
        gather(benchmark)


def test_a_score_that_was_not_measured_is_refused(tmp_path):
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    nothing = changing(benchmark, lambda folder, result: replace(result, scores={"final": {}}))
    with pytest.raises(InputError, match=r"'FD' \(final\) was not measured of \(good, seed 0\)"):
        gather(nothing)


def test_classifiers_are_compared_image_by_image(tmp_path):
    """Of the score's own kind, and the cell's images are not mixed up with the other's."""
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, None], bad=[9, 8, 7])

    def flags(folder, result):
        right = np.arange(10) < (8 if folder.match("bad/*") else 3)
        return replace(result, right={"final": {"FD": right, "clean": ~right}, "selected": {}})

    found = report_of(changing(benchmark, flags)).mcnemar
    assert [(test.cell, test.against, test.seed) for test in found] == [
        ("bad", "good", 0),
        ("bad", "good", 1),
    ]
    assert all((t.only_cell, t.only_against, t.images) == (5, 0, 10) for t in found)
    assert found[0].p == pytest.approx(2 * 0.5**5)
    assert found[0].p_holm == pytest.approx(4 * 0.5**5)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"axes: [", b"", b"3", b"seeds: " + b"[" * 5000, b"a: &a [1]\nb: *a\n"],
)
def test_a_damaged_grid_of_the_first_start_is_named_in_one_line(tmp_path, content):
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    file = benchmark.folder / "grid.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"^{file}: ") as error:
        gather(benchmark)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, None])
def test_a_damaged_picture_is_left_out_and_its_run_is_kept(tmp_path, content, capsys):
    def with_picture(folder: Path, result):
        picture = folder / "samples.png"
        if content is None:
            Image.effect_noise((64, 64), 50).save(picture)
            picture.write_bytes(picture.read_bytes()[:1000])
        else:
            picture.write_bytes(content)
        return replace(result, picture=picture)

    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    report = report_of(changing(benchmark, with_picture))
    assert [run.result.picture for run in report.done] == [None] * 6
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    expected = f"{benchmark.runs[0].folder}/samples.png: damaged; the report leaves it out"
    assert lines[0] == f"warning: {expected}"


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_no_text_in_the_table_is_a_formula(tmp_path, start):
    """Spreadsheets carry out a cell that begins like one; a number stays a number."""
    evil = f"{start}HYPERLINK(1)"
    axes = {"kind": {evil: {"kind": "good"}, "-3": {"kind": "bad"}}}
    benchmark = toy(tmp_path, axes=axes, seeds=[0], compare={"axis": "kind", "against": evil})
    for run in benchmark.runs:
        run.folder.mkdir(parents=True)
        (run.folder / "summary.json").write_text('{"score": -3.5}')
    table = io.StringIO(page._csv(gather(benchmark)), newline="")
    rows = list(csv.DictReader(table))
    assert {row["kind"] for row in rows} == {f"'{evil}", "-3"}
    assert "-3.5" in {row["value"] for row in rows}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("\t=1", "'\t=1"), ("\r=1", "' =1"), ("a\rb", "a b"), ("-1e-3", "-1e-3"), (-2, -2), ("", "")],
)
def test_a_cell_is_one_cell_and_no_formula(cell, expected):
    assert page._harmless(cell) == expected
