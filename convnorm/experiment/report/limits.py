"""What a benchmark's results do not say, in sentences."""

from convnorm.experiment.records import Report
from convnorm.experiment.report.formats import number
from convnorm.experiment.report.gains import EQUAL, are_equal, compared_gains

NOTABLE = 1.2  # times as long
FEW = 10  # seeds; with fewer, nobody can see whether differences are normal


def limits(report: Report) -> list[str]:
    """What the numbers cannot say, as far as it applies to these results."""
    return [
        "All cells had everything in common but the axes. Nothing is said of other networks, data, "
        "training lengths or, where the learning rate is no axis, rates that suit a cell better.",
        *_limits_of_tests(report),
        *_limits_of_gains(report),
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


def _limits_of_gains(report: Report) -> list[str]:
    """That a normalizer sets the gain too, and where that may be what was compared."""
    known = {it: gains for it in report.comparisons if (gains := compared_gains(report, it))}
    if not known:
        return []
    differing = [
        f"{it.cell} ({number(gains[0])}) and {it.against} ({number(gains[1])})"
        for it, gains in known.items()
        if not are_equal(gains)
    ]
    if differing:
        return [
            f"The plateau gains of {len(differing)} of {len(known)} compared pairs differ by more "
            f"than a factor of {EQUAL}: {'; '.join(differing)}. What differs in their scores may "
            "be the gain, which a constant can set, and not what else the normalizer does."
        ]
    return [
        f"Compared cells have equal plateau gains, to within a factor of {EQUAL}. They may differ "
        "within it, at other times of the training, and in the directions that carry the gain."
    ]


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
    if reports := [run.taken_from for run in report.runs if run.taken_from]:
        found.append(
            f"{len(reports)} of {len(report.runs)} runs were taken over from "
            f"{', '.join(dict.fromkeys(reports))}: their numbers are here, their weights and "
            "pictures are not."
        )
    attacks = [name for name in report.attacks if name != "certified"]  # which is a lower bound
    if attacks and not any(name.startswith("autoattack") for name in attacks):
        found.append(
            f"Accuracy under {', '.join(attacks)} is an upper bound of robustness. A "
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
    drawn = any(run.result.curve for run in report.done)
    return (
        f"Scores are compared after equal training, not after equal time: {slow} took "
        f"{number(ratio, 2)} times as long as {fast}."
        f"{' See the figure against time.' if drawn else ''}"
    )
