"""What a benchmark's results say and do not say, in sentences.

No sentence is stronger than the test behind it. `results` is everywhere the content of
results.json. Sentences are plain text: labels in them are not escaped.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from convnorm.experiment.report.formats import interval, number, points
from convnorm.experiment.statistics import LEVEL

Results = dict[str, Any]
Comparison = dict[str, Any]

NOTABLE = 1.2  # times as long
FULLY = 4  # comparisons, above which the table says it better than sentences
FEW = 10  # seeds, below which nobody can see whether differences are normal


def score_name(results: Results) -> str:
    """The primary score with its moment, for instance "final FD (digits)"."""
    return f"{results['score']['at']} {results['score']['name']}"


def answer(results: Results) -> list[str]:
    """The answer: the verdict on all comparisons, what was tested, each of them, what to doubt."""
    comparisons = results["comparisons"]
    return [
        _verdict(results),
        _fixed(results),
        *_unfinished(results),
        *_collapsed(results),
        *_doubts(results),
        *(_comparison(it, results) for it in comparisons if len(comparisons) <= FULLY),
        *_single_runs(results),
        *_mcnemar(results),
    ]


def _verdict(results: Results) -> str:
    comparisons, against = results["comparisons"], results["compare"]["against"]
    tested = [c for c in comparisons if c["verdict"] != "not tested"]
    if not comparisons:
        return f"Nothing is compared: {results['compare']['axis']} has one value."
    if not any(comparison["n"] for comparison in comparisons):
        return f"Nothing is compared: no cell shares a finished seed with {against}."
    if not tested:
        n = max(comparison["n"] for comparison in comparisons)
        why = f"n = {n}" if n < 2 else "the differences have no spread"
        return f"No difference from {against} in {score_name(results)} was tested: {why}."
    found = defaultdict(list)
    for comparison in comparisons:
        found[comparison["verdict"]].append(comparison["cell"])
    score = f" in {score_name(results)}"
    words = {
        "better": f"Better than {against}{score}",
        "worse": f"Worse than {against}{score}",
        "not distinguishable": f"Not distinguishable from {against}{score}",
        "not tested": "Not tested",
    }
    told = ". ".join(f"{words[key]}: {'; '.join(found[key])}" for key in words if key in found)
    return (
        f"{told} (paired t-tests, n = {_range(c['n'] for c in tested)} seeds, Holm-adjusted, "
        f"{100 * LEVEL:g} %)."
    )


def _fixed(results: Results) -> str:
    score = results["score"]
    when = {
        "final": "at the end of training",
        "selected": "at the step that did best on held-out data",
    }
    better = results["measures"][score["name"]]["better"]
    named = f"{score['name']} {when[score['at']]} ({better} is better)"
    changed, left_out = results["changed"], results["left_out"]
    if changed is None:
        told = f"{named} is the only score whose means are tested; when it was chosen is not known"
    elif changed:
        told = (
            f"{named} is the only score whose means are tested, and the grid was changed after its "
            f"first start: {'; '.join(changed)}"
        )
    else:
        told = (
            f"{named} was fixed before the first run, with what is compared, and is the only score "
            "whose means are tested"
        )
    rest = f". Finished runs that the grid leaves out: {', '.join(left_out)}" if left_out else ""
    return f"{told}{rest}."


def _comparison(comparison: Comparison, results: Results) -> str:
    cell, against, n = (comparison[key] for key in ("cell", "against", "n"))
    percent = results["measures"][results["score"]["name"]]["percent"]
    if n == 0:
        return f"{cell} and {against} have no finished seed in common: not compared."
    difference = points(comparison["difference"], percent)
    if comparison["verdict"] == "not tested":
        if n == 1:
            seed = comparison["seeds"][0]
            why = f"n = 1 (seed {seed}), and a single pair does not show what chance does"
        else:
            why = f"all {n} differences are the same, and without a spread there is no test"
        return f"{cell} against {against} is not tested: {why}; the difference is {difference}."
    low, high = comparison["interval"]
    if comparison["verdict"] == "not distinguishable":
        return (
            f"{cell} and {against} are not distinguishable at n = {n}: difference {difference} "
            f"(95 % interval {interval([low, high], 100 if percent else 1)}), "
            f"{_p(comparison)}; {_untold(low, high, percent)}."
        )
    low, high = sorted((abs(low), abs(high)))
    return (
        f"{cell} is {comparison['verdict']} than {against} by {difference.removeprefix('-')} "
        f"(95 % interval {interval([low, high], 100 if percent else 1)}), {_p(comparison)}, "
        f"n = {n}."
    )


def _untold(low: float, high: float, percent: bool) -> str:
    """Why a difference with this interval was not told from none."""
    if low < 0 < high:
        least = points((high - low) / 2, percent)
        return f"with this spread no difference below {least} could have been told"
    return "the interval, which is not adjusted, leaves out 0, but one of several tests may"


def _p(comparison: Comparison) -> str:
    p, adjusted = comparison["p"], comparison["p_holm"]
    if p == adjusted:
        return f"p = {number(p)}"
    return f"adjusted p = {number(adjusted)} ({number(p)} alone)"


def _single_runs(results: Results) -> list[str]:
    single = [cell["name"] for cell in results["cells"] if cell["n"] == 1]
    return [f"Of a single run (n = 1), so without any spread: {'; '.join(single)}."] * bool(single)


def _collapsed(results: Results) -> list[str]:
    done = [run for run in results["runs"] if run["state"] == "done"]
    collapsed = [_run(run) for run in done if run["collapsed"]]
    if not collapsed:
        return []
    return [
        f"{len(collapsed)} of {_count(len(done), 'finished run')} collapsed: "
        f"{'; '.join(collapsed)}. They are in every mean, interval and test."
    ]


def _unfinished(results: Results) -> list[str]:
    runs, sentences = results["runs"], []
    of = _count(len(runs), "planned run")
    if failed := [run for run in runs if run["state"] == "failed"]:
        reasons = "; ".join(f"{_run(run)}: {run['reason']}" for run in failed)
        sentences.append(
            f"{len(failed)} of {of} failed and count in no mean, interval or test: {reasons}."
        )
    if left := [run for run in runs if run["state"] in ("cut", "not begun")]:
        states = "; ".join(f"{_run(run)}: {run['state']}" for run in left)
        sentences.append(
            f"The grid is not complete, {len(left)} of {of} have not finished: {states}."
        )
    return sentences


def _doubts(results: Results) -> list[str]:
    doubted = {
        _run(run): run["doubts"]
        for run in results["runs"]
        if run["state"] == "done" and run["doubts"]
    }
    if not doubted:
        return []
    told = "; ".join(f"{name}: {', '.join(doubts)}" for name, doubts in doubted.items())
    return [f"{_count(len(doubted), 'run')} failed a check of its measurement: {told}."]


def _run(run: dict[str, Any]) -> str:
    return f"{run['cell']} (seed {run['seed']})"


def _mcnemar(results: Results) -> list[str]:
    """What the tests on the same images say, summed up over the seeds of a comparison."""
    groups = defaultdict(list)
    for test in results["mcnemar"]:
        groups[test["measure"], test["cell"], test["against"]].append(test)
    if not groups:
        return []
    sentences = [
        "McNemar's exact test compares two trained networks on the same images, seed by seed. It "
        "speaks of these networks, not of the normalizers: other seeds give other networks."
    ]
    for (measure, cell, against), tests in groups.items():
        told = [test for test in tests if test["p_holm"] < LEVEL]
        more = sum(test["only_cell"] > test["only_against"] for test in told)
        sentences.append(
            f"{measure}, {cell} against {against}: of {_count(len(tests), 'pair')} of networks, "
            f"{cell} is right on more images in {more}, on fewer in {len(told) - more}, and "
            f"{len(tests) - len(told)} cannot be told apart (Holm-adjusted, {100 * LEVEL:g} %)."
        )
    return sentences


def limits(results: Results) -> list[str]:
    """What the numbers cannot say, of what applies to these results."""
    tested = [c for c in results["comparisons"] if c["verdict"] != "not tested"]
    found = [
        "Everything but the axes was the same for all cells: nothing is said of other networks, "
        "data, training lengths or, where they are no axis, learning rates that suit a cell better."
    ]
    few = min((comparison["n"] for comparison in tested), default=FEW)
    if few < FEW:
        found.append(
            f"A t-test takes the differences to be normal, which {few} of them cannot show, and "
            "its interval is as wide as it is because their spread is hardly known; it knows no "
            "bounds of a score. That a difference is not distinguishable does not mean that there "
            "is none."
        )
    if tested:
        found.append(
            f"Only {score_name(results)} is tested. The other columns describe these runs; to "
            "pick one of them afterwards would find something by chance sooner or later. "
            "Intervals are not adjusted for the number of comparisons; p-values (Holm) are."
        )
    if digits := [name for name in results["measures"] if name.endswith("(digits)")]:
        found.append(
            f"{', '.join(digits)}: of the features of a small network for handwritten digits. "
            "These are not FID, KID or IS and cannot be compared with published ones."
        )
    if any(cell["summaries"].get("selected") for cell in results["cells"]):
        found.append(
            "Selected scores are of the step that did best on data held out from these scores; "
            "final scores are of the last step, whatever came before."
        )
    if slower := _slower(results):
        found.append(slower)
    if results["protocol"].get("split") == "train" and results["pipeline"] == "gan":
        found.append(
            "Distances are to the images that were trained on: a copy of them would score well."
        )
    if any(len(versions) > 1 for versions in results["versions"].values()):
        found.append("Not all runs are of the same code and libraries: see the versions.")
    attacks = results["grid"]["attacks"]
    if attacks and not any(name.startswith("autoattack") for name in attacks):
        found.append(
            f"Accuracy under {', '.join(attacks)} is an upper bound of robustness. A stronger "
            "attack, AutoAttack for instance, can lower it, and not for all cells alike."
        )
    if any(run["state"] == "failed" for run in results["runs"]):
        found.append(
            "Failed runs are left out of the means, which flatters a normalizer whose runs fail."
        )
    if any(cell["collapsed"]["count"] for cell in results["cells"]):
        found.append(
            "A mean over runs of which some collapsed describes neither kind: see every run."
        )
    found.append(
        "Time was measured where other runs may have worked beside: no benchmark of speed."
        + (" Nor is it all of the same hardware." if len(results["hardware"]) > 1 else "")
    )
    return found


def _slower(results: Results) -> str:
    """That equal training is not equal time, of the compared cells for which it is least so."""
    seconds = {
        cell["name"]: cell["cost"]["seconds"]["mean"] for cell in results["cells"] if cell["cost"]
    }
    pairs = [(it["cell"], it["against"]) for it in results["comparisons"] if it["n"]]
    if not pairs:
        return ""
    ordered = [sorted(pair, key=seconds.__getitem__) for pair in pairs]
    fast, slow = max(ordered, key=lambda pair: seconds[pair[1]] / seconds[pair[0]])
    ratio = seconds[slow] / seconds[fast]
    if ratio < NOTABLE:
        return ""
    return (
        f"Scores are compared after equal training, not after equal time: {slow} took "
        f"{number(ratio, 2)} times as long as {fast}. See the figure against time."
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _range(values: Iterable[int]) -> str:
    found: Sequence[int] = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
