"""From run folders to one record: the right runs in the right cells, tests and refusals."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from toy import toy

from convnorm.experiment.benchmark.grid import Benchmark
from convnorm.experiment.benchmark.results import gather
from convnorm.experiment.config import to_yaml
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import Measure

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
        benchmark.pipeline, read=lambda folder, attacks: change(folder, read(folder, attacks))
    )
    return replace(benchmark, pipeline=pipeline)


def record_of(benchmark: Benchmark) -> dict:
    record = gather(benchmark)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    return record


def test_every_cell_gets_the_runs_that_are_its_own(tmp_path):
    record = record_of(done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, None, 7]))
    good, bad = record["cells"]
    assert (good["name"], good["n"], bad["n"], bad["planned"]) == ("good", 3, 2, 3)
    assert good["summaries"]["final"]["FD"]["mean"] == pytest.approx(4)
    assert good["summaries"]["selected"]["FD"]["mean"] == pytest.approx(3)
    assert good["summaries"]["area"]["FD"]["mean"] == pytest.approx(3.5)
    assert bad["summaries"]["final"]["FD"]["sd"] == pytest.approx(math.sqrt(2))
    assert good["cost"]["steps_per_second"]["mean"] == 2
    assert [run["state"] for run in record["runs"]].count("done") == 5
    assert record["measures"] == {"FD": {"better": "lower", "percent": False}}


def test_seeds_are_paired_and_only_those_that_both_have(tmp_path):
    record = record_of(done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[None, 9, 8]))
    (comparison,) = record["comparisons"]
    assert (comparison["cell"], comparison["against"]) == ("bad", "good")
    assert (comparison["seeds"], comparison["n"]) == ([1, 2], 2)
    assert comparison["difference"] == pytest.approx(4)  # 5 and 3


@pytest.mark.parametrize(("better", "verdict"), [("lower", "worse"), ("higher", "better")])
def test_the_direction_of_a_score_decides_what_is_better(tmp_path, better, verdict):
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 10.1, 11])
    changes = {"measures": {"FD": Measure(better)}, "curve": [], "floor": {}}
    benchmark = changing(benchmark, lambda folder, result: replace(result, **changes))
    assert record_of(benchmark)["comparisons"][0]["verdict"] == verdict


def test_what_no_test_tells_apart_has_no_verdict(tmp_path):
    record = record_of(done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 3, 5.5]))
    assert record["comparisons"][0]["verdict"] == "not distinguishable"


def test_one_seed_is_not_tested(tmp_path):
    record = record_of(done(toy(tmp_path, **KINDS), good=[3, None, None], bad=[9, 3, 5]))
    (comparison,) = record["comparisons"]
    assert (comparison["n"], comparison["verdict"]) == (1, "not tested")
    assert comparison["p"] is comparison["p_holm"] is comparison["interval"] is None
    assert record["cells"][0]["summaries"]["final"]["FD"] == {
        "mean": 3.0,
        "sd": None,
        "n": 1,
        "interval": None,
    }


def test_all_tests_of_a_benchmark_are_one_family(tmp_path):
    """Catches a correction within each group of the other axis only."""
    axes = {"steps": [4, 5], "kind": ["good", "bad"]}
    compare = {"axis": "kind", "against": "good"}
    benchmark = toy(tmp_path, axes=axes, seeds=[0, 1, 2], compare=compare)
    scores = {"steps_4_good": [1, 2, 3], "steps_4_bad": [2, 3.1, 4]}
    scores |= {"steps_5_good": [1, 2, 3], "steps_5_bad": [5, 2, 4]}
    first, second = record_of(done(benchmark, **scores))["comparisons"]
    assert (first["cell"], first["against"]) == ("steps 4 / bad", "steps 4 / good")
    assert (second["cell"], second["against"]) == ("steps 5 / bad", "steps 5 / good")
    assert first["p_holm"] == pytest.approx(2 * first["p"])
    assert second["p_holm"] == pytest.approx(second["p"])


def test_a_run_that_fell_from_its_best_has_collapsed(tmp_path):
    def fell(folder, result):
        final = result.scores["final"]["FD"]
        return replace(result, curve=[(2, 1.0, final / 3), (4, 2.0, final)])

    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 0.2])
    record = record_of(changing(benchmark, fell))
    # 0.2 after 0.07, with a floor of 0.1 between real images, is no collapse
    assert [cell["collapsed"] for cell in record["cells"]] == [
        {"count": 3, "n": 3},
        {"count": 2, "n": 3},
    ]


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
    record = record_of(benchmark)
    (failed,) = [run for run in record["runs"] if run["state"] == "failed"]
    assert (failed["cell"], failed["seed"]) == ("good", 1)
    assert failed["reason"] == "the final FD is nan; expected a number"
    assert record["cells"][0]["n"] == 2


def test_a_grid_that_was_changed_after_its_first_start_is_told(tmp_path):
    """The score, the reference and the seeds could be chosen by what the runs gave."""
    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    assert record_of(benchmark)["changed"] is None
    (benchmark.folder / "grid.yaml").write_text(to_yaml(benchmark.grid))
    record = record_of(benchmark)
    assert (record["changed"], record["left_out"]) == ([], [])
    again = toy(
        tmp_path, axes=KINDS["axes"], seeds=[0, 1], compare={"axis": "kind", "against": "bad"}
    )
    record = record_of(again)
    assert record["changed"] == [
        "seeds: [0, 1, 2] there, [0, 1] here",
        "compare.against: 'good' there, 'bad' here",
    ]
    assert record["left_out"] == ["bad/seed2", "good/seed2"]


def test_areas_over_other_steps_are_not_compared(tmp_path):
    def shorter(folder, result):
        return replace(result, curve=result.curve[1:]) if folder.match("bad/*") else result

    benchmark = done(toy(tmp_path, **KINDS), good=[3, 4, 5], bad=[9, 8, 7])
    record = record_of(changing(benchmark, shorter))
    assert all(cell["summaries"]["area"] == {} for cell in record["cells"])


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

    found = record_of(changing(benchmark, flags))["mcnemar"]
    assert [(test["cell"], test["against"], test["seed"]) for test in found] == [
        ("bad", "good", 0),
        ("bad", "good", 1),
    ]
    assert all((t["only_cell"], t["only_against"], t["images"]) == (5, 0, 10) for t in found)
    assert found[0]["p"] == pytest.approx(2 * 0.5**5)
    assert found[0]["p_holm"] == pytest.approx(4 * 0.5**5)
