"""What a benchmark's results say, in sentences.

No sentence is stronger than the test behind it. Sentences are plain text: labels in them are not
escaped.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

from convnorm.experiment.records import Comparison, Report, Segment
from convnorm.experiment.report.formats import interval, number, points
from convnorm.experiment.report.gains import with_gains
from convnorm.experiment.statistics import LEVEL

FULLY = 4  # comparisons; for more, the table says it better than sentences


def answer(report: Report) -> list[str]:
    """The answer: the verdict on all comparisons, what was tested, each of them, what to doubt."""
    return [
        _verdict(report),
        _fixed(report),
        *_unfinished(report),
        *_collapsed(report),
        *_doubts(report),
        *_mixed(report),
        *_comparisons(report),
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


def _comparisons(report: Report) -> list[str]:
    if len(report.comparisons) > FULLY:
        return []
    return [with_gains(_comparison(it, report), report, it) for it in report.comparisons]


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
    alike: dict[str, list[str]] = {}  # those that differ in numbers alone
    for name, doubts in doubted.items():
        for doubt in doubts:
            alike.setdefault(re.sub(r"\d+", "#", doubt), []).append(f"{name}: {doubt}")
    more = {kind: f" ({len(each) - 1} more alike)" for kind, each in alike.items() if each[1:]}
    told = "; ".join(each[0] + more.get(kind, "") for kind, each in alike.items())
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
    return [
        f"{name} {old or 'none'} to step {after.step}, then {new or 'none'}"
        for before, after in pairwise(segments)
        for name, (old, new) in after.changes(before).items()
    ]


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


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
