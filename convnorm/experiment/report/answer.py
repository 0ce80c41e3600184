"""What a benchmark's results say and do not say, in sentences.

No sentence is stronger than the test behind it. Sentences are plain text: labels in them are not
escaped.
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from convnorm.experiment.records import Comparison, Report, Segment
from convnorm.experiment.report.formats import interval, number, points
from convnorm.experiment.statistics import LEVEL

NOTABLE = 1.2  # times as long
FULLY = 4  # comparisons; for more, the table says it better than sentences
FEW = 10  # seeds; with fewer, nobody can see whether differences are normal


def answer(report: Report) -> list[str]:
    """The answer: the verdict on all comparisons, what was tested, each of them, what to doubt."""
    comparisons = report.comparisons
    return [
        _verdict(report),
        _fixed(report),
        *_unfinished(report),
        *_collapsed(report),
        *_doubts(report),
        *_mixed(report),
        *(_comparison(it, report) for it in comparisons if len(comparisons) <= FULLY),
        *_single_runs(report),
        *_mcnemar(report),
    ]


def _verdict(report: Report) -> str:
    comparisons, against, score = report.comparisons, report.reference, report.score_name
    tested = [comparison for comparison in comparisons if comparison.is_tested]
    if not comparisons:
        return f"Nothing is compared: {report.compared_axis} has one value."
    if not any(comparison.n for comparison in comparisons):
        return f"Nothing is compared: no cell shares a finished seed with {against}."
    if not tested:
        n = max(comparison.n for comparison in comparisons)
        why = f"n = {n}" if n < 2 else "the differences have no spread"
        return f"No difference from {against} in {score} was tested: {why}."
    found = defaultdict(list)
    for comparison in comparisons:
        found[comparison.verdict].append(comparison.cell)
    words = {
        "better": f"Better than {against} in {score}",
        "worse": f"Worse than {against} in {score}",
        "not distinguishable": f"Not distinguishable from {against} in {score}",
        "not tested": "Not tested",
    }
    told = ". ".join(f"{words[key]}: {'; '.join(found[key])}" for key in words if key in found)
    return (
        f"{told} (paired t-tests, n = {_range(c.n for c in tested)} seeds, Holm-adjusted, "
        f"{100 * LEVEL:g} %)."
    )


def _fixed(report: Report) -> str:
    when = {
        "final": "at the end of training",
        "selected": "at the step that did best on held-out data",
    }
    better = report.metric.better
    score = f"{report.score.name} {when[report.score.at]} ({better} is better)"
    only = "is the only score whose means are tested"
    if report.changed is None:
        told = f"{score} {only}; it is not known when it was chosen"
    elif report.changed:
        changes = "; ".join(report.changed)
        told = f"{score} {only}, and the grid was changed after its first start: {changes}"
    else:
        told = f"{score} {only}; it and what is compared were fixed before the first run"
    if report.left_out:
        told += f". The grid leaves out these finished runs: {', '.join(report.left_out)}"
    return f"{told}."


def _comparison(comparison: Comparison, report: Report) -> str:
    cell, against, n = comparison.cell, comparison.against, comparison.n
    percent, scale = report.metric.percent, report.metric.scale
    if comparison.difference is None:
        return f"{cell} and {against} have no finished seed in common: not compared."
    difference = points(comparison.difference, percent)
    if comparison.interval is None or not comparison.is_tested:
        if n == 1:
            seed = comparison.seeds[0]
            why = f"n = 1 (seed {seed}), and a single pair does not show what chance does"
        else:
            why = f"all {n} differences are the same, and without a spread there is no test"
        return f"{cell} against {against} is not tested: {why}; the difference is {difference}."
    low, high = comparison.interval
    if comparison.verdict == "not distinguishable":
        return (
            f"{cell} and {against} are not distinguishable at n = {n}: difference {difference} "
            f"(95 % interval {interval((low, high), scale)}), {_p(comparison)}; "
            f"{_untold(low, high, percent)}."
        )
    low, high = sorted((abs(low), abs(high)))
    return (
        f"{cell} is {comparison.verdict} than {against} by {difference.removeprefix('-')} "
        f"(95 % interval {interval((low, high), scale)}), {_p(comparison)}, n = {n}."
    )


def _untold(low: float, high: float, percent: bool) -> str:
    """Why a test did not tell a difference with this interval from none."""
    if low < 0 < high:
        least = points((high - low) / 2, percent)
        return f"with this spread, the test could not have told a difference below {least}"
    return "the interval, which is not adjusted, leaves out 0, but one of several tests may"


def _p(comparison: Comparison) -> str:
    p, adjusted = comparison.p, comparison.p_holm
    if p == adjusted:
        return f"p = {number(p)}"
    return f"adjusted p = {number(adjusted)} ({number(p)} alone)"


def _single_runs(report: Report) -> list[str]:
    single = [cell.name for cell in report.cells if cell.n == 1]
    if not single:
        return []
    return [f"These cells have a single run and so no spread (n = 1): {'; '.join(single)}."]


def _collapsed(report: Report) -> list[str]:
    collapsed = [run.name for run in report.done if run.has_collapsed]
    if not collapsed:
        return []
    return [
        f"{len(collapsed)} of {_count(len(report.done), 'finished run')} collapsed: "
        f"{'; '.join(collapsed)}. They are in every mean, interval and test."
    ]


def _unfinished(report: Report) -> list[str]:
    sentences, of = [], _count(len(report.runs), "planned run")
    if failed := report.failed:
        reasons = "; ".join(f"{run.name}: {run.reason}" for run in failed)
        sentences.append(
            f"{len(failed)} of {of} failed and count in no mean, interval or test: {reasons}."
        )
    if left := [run for run in report.runs if run.state in ("cut", "not begun")]:
        states = "; ".join(f"{run.name}: {run.state}" for run in left)
        sentences.append(
            f"The grid is not complete: {len(left)} of {of} have not finished: {states}."
        )
    return sentences


def _doubts(report: Report) -> list[str]:
    doubted = {run.name: run.result.doubts for run in report.done if run.result.doubts}
    if not doubted:
        return []
    told = "; ".join(f"{name}: {', '.join(doubts)}" for name, doubts in doubted.items())
    return [f"The scores of {_count(len(doubted), 'run')} failed a check: {told}."]


def _mixed(report: Report) -> list[str]:
    """Which runs were not trained in one place, with one code, from beginning to end."""
    told = {run.name: _changes(run.result.segments) for run in report.done}
    mixed = {name: changes for name, changes in told.items() if changes}
    if not mixed:
        return []
    which = "; ".join(f"{name}: {', '.join(changes)}" for name, changes in mixed.items())
    return [
        f"{len(mixed)} of {_count(len(report.done), 'finished run')} went on in another place or "
        f"with other code than before, and may have ended elsewhere for it: {which}."
    ]


def _changes(segments: tuple[Segment, ...]) -> list[str]:
    """What changed between two parts of a training, and at which step."""
    found = []
    for before, after in pairwise(segments):
        old, new = before.facts, after.facts
        found += [
            f"{name} {old.get(name, 'none')} to step {after.step}, then {new.get(name, 'none')}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
    return found


def _mcnemar(report: Report) -> list[str]:
    """What the tests on the same images say, summed up over the seeds of a comparison."""
    groups = defaultdict(list)
    for test in report.mcnemar:
        groups[test.score, test.cell, test.against].append(test)
    if not groups:
        return []
    sentences = [
        "McNemar's exact test compares two trained networks on the same images, seed by seed. It "
        "speaks of these networks, not of the normalizers: other seeds give other networks."
    ]
    for (score, cell, against), tests in groups.items():
        told = [test for test in tests if test.p_holm < LEVEL]
        more = sum(test.only_cell > test.only_against for test in told)
        sentences.append(
            f"{score}, {cell} against {against}: of {_count(len(tests), 'pair')} of networks, "
            f"{cell} is right on more images in {more}, on fewer in {len(told) - more}, and "
            f"{len(tests) - len(told)} cannot be told apart (Holm-adjusted, {100 * LEVEL:g} %)."
        )
    return sentences


def limits(report: Report) -> list[str]:
    """What the numbers cannot say, as far as it applies to these results."""
    return [
        "All cells had everything in common but the axes. Nothing is said of other networks, data, "
        "training lengths or, where the learning rate is no axis, rates that suit a cell better.",
        *_limits_of_tests(report),
        *_limits_of_scores(report),
        *_limits_of_runs(report),
        "Time was measured while other runs may have shared the machine: this is no benchmark of "
        "speed."
        + (" Nor did all runs have the same hardware." if len(report.hardware) > 1 else ""),
    ]


def _limits_of_tests(report: Report) -> list[str]:
    tested, found = [comparison.n for comparison in report.comparisons if comparison.is_tested], []
    few = min(tested, default=FEW)
    if few < FEW:
        found.append(
            f"A t-test takes the differences to be normal, which {few} of them cannot show. Its "
            "interval is wide because so few differences say little about their spread, and it "
            "ignores the bounds of a score. That a difference is not distinguishable does not mean "
            "that there is none."
        )
    if tested:
        found.append(
            f"Only {report.score_name} is tested. The other columns describe these runs: picking "
            "one of them afterwards would find something by chance sooner or later. p-values are "
            "adjusted for the number of comparisons (Holm), intervals are not."
        )
    return found


def _limits_of_scores(report: Report) -> list[str]:
    found = []
    if digits := [name for name in report.metrics if name.endswith("(digits)")]:
        found.append(
            f"{', '.join(digits)}: computed from the features of a small network for handwritten "
            "digits. These are not FID, KID or IS and cannot be compared with published ones."
        )
    if any(cell.scores.get("selected") for cell in report.cells):
        found.append(
            "Selected scores are of the step that did best on data held out from these scores; "
            "final scores are of the last step, whatever came before."
        )
    if slower := _slower(report):
        found.append(slower)
    if report.protocol.get("split") == "train" and report.pipeline == "gan":
        found.append(
            "Distances are to the images that were trained on: a copy of them would score well."
        )
    return found


def _limits_of_runs(report: Report) -> list[str]:
    found = []
    if any(len(versions) > 1 for versions in report.versions.values()):
        found.append("Not all runs used the same code and libraries: see the versions.")
    if report.attacks and not any(name.startswith("autoattack") for name in report.attacks):
        found.append(
            f"Accuracy under {', '.join(report.attacks)} is an upper bound of robustness. A "
            "stronger attack, AutoAttack for instance, can lower it, and not for all cells alike."
        )
    if report.failed:
        found.append("Means leave out failed runs, which flatters a normalizer whose runs fail.")
    if any(cell.collapsed.count for cell in report.cells):
        found.append(
            "A mean over runs of which some collapsed describes neither kind: see every run."
        )
    return found


def _slower(report: Report) -> str:
    """That equal training is not equal time, for the two compared cells that differ most in it."""
    seconds = {cell.name: cell.cost.seconds.mean for cell in report.cells if cell.cost}
    pairs = [(it.cell, it.against) for it in report.comparisons if it.n]
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
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
