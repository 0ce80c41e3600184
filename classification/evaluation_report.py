"""An evaluation as a table to print and as a picture."""

from collections.abc import Collection
from textwrap import fill

from matplotlib import rc_context
from matplotlib.axes import Axes

from classification.calibration import BINS
from classification.corruptions import FIFTEEN
from classification.records import Accuracy, AttackRecord, Clean, Corruptions, Evaluation
from convnorm.experiment.report import formats
from convnorm.experiment.report.canvas import (
    as_png,
    draw_errors,
    draw_legend,
    draw_reference,
    theme,
    with_panels,
)
from convnorm.experiment.report.palette import INK, PAPER, style
from convnorm.experiment.report.tables import aligned

Row = tuple[str, str, str, str, str]
BLACK = {"color": INK[False]}


def table(record: Evaluation) -> str:
    """Return the record as aligned text: an accuracy a line, then the checks."""
    checkpoint = record.checkpoint
    header = ("attack", "settings", "n", "accuracy", "95 % interval")
    lines = [f"{checkpoint.file}, epoch {checkpoint.epoch}, {_subject(record)}", ""]
    lines += [aligned(header, _rows(record), words=2), ""]
    lines += [_calibration(record.clean), ""] if record.clean.nll else []
    lines += [_what_mean(record.corruptions), ""] if record.corruptions else []
    for check in record.checks:
        lines.append(f"{'ok' if check.passed else 'DOUBT'}: {check.name}: {check.detail}")
    if not record.checks:
        lines.append("not checked for masked gradients; --attacks sweep fgsm pgd20 does")
    return "\n".join(lines)


def _calibration(clean: Clean) -> str:
    ends = clean.nll.interval
    interval = "" if ends is None else f", 95 % interval {formats.interval(ends)}"
    return (
        f"calibration, clean: ECE {formats.accuracy(clean.ece)} in {BINS} bins (biased upwards, so "
        f"without an interval); NLL {formats.number(clean.nll.mean)} nats{interval}"
    )


def told_apart(record: Evaluation, computed: Collection[str]) -> str:
    """Say what of the record was measured now, by the names in `computed`, and what before."""
    parts = {"clean": {"clean"}} | {attack.name: {attack.name} for attack in record.attacks}
    if record.certified:
        parts["certified"] = {"certified"}
    if record.corruptions:
        parts["corruptions"] = set(record.corruptions.accuracies)
    now = [name for name, own in parts.items() if own & set(computed)]
    before = [name for name in parts if name not in now]
    told = {"measured now": now, "measured before": before}
    return "\n".join(f"{when}: {', '.join(names)}" for when, names in told.items() if names)


def _subject(record: Evaluation) -> str:
    checkpoint, data = record.checkpoint, record.data
    return (
        f"{checkpoint.arch} with {checkpoint.normalizer}, seed {checkpoint.seed}, trained "
        f"{checkpoint.adversary}: {data.n} {data.split} images of {data.name}, "
        f"chance {formats.accuracy(record.chance)}"
    )


def _rows(record: Evaluation) -> list[Row]:
    clean = record.clean
    rows = [_row("clean", "top1", clean.top1)]
    rows += [_row("clean", "top5", clean.top5)] if clean.top5 else []
    for attack in record.attacks:
        for point in attack.points:
            rows.append(_row(attack.name, _settings(attack, point.eps), point.accuracy))
        if attack.accuracy:
            rows.append(_row(attack.name, _settings(attack, attack.settings.eps), attack.accuracy))
        rows += [_row("", f"after {stage}", each) for stage, each in attack.stages.items()]
    for case in record.worst_cases:
        if len(case.attacks) > 1:
            within = f"{ball(case.norm, case.eps)}, all of these"
            rows.append(_row("worst case", within, case.accuracy))
    if both := record.worst_of_both:
        balls = " and ".join(ball(norm, eps) for norm, eps in both.eps.items())
        rows.append(_row("worst case", f"{balls}, all of these", both.accuracy))
    if certified := record.certified:
        bound = certified.lipschitz
        how = certified.proof if bound is None else f"Lipschitz bound {formats.number(bound)}"
        for point in certified.points:
            radius = f"l2 {255 * point.radius:.4g}/255"
            rows.append(_row("certified", f"{radius}, {how}", point.accuracy))
    return rows + (_corruption_rows(record.corruptions) if record.corruptions else [])


def _corruption_rows(corruptions: Corruptions) -> list[Row]:
    """Those of the mean and the mean, then the others, below a heading, and theirs."""
    own = [
        (name, _row(_labelled(corruptions, name), "mean of severities 1 to 5", mean))
        for name, mean in corruptions.mean_by_corruption.items()
    ]
    source, over = corruptions.sources[0].source, _mean_of(corruptions)
    rows = [row for name, row in own if name in corruptions.mean_over]
    means = zip(corruptions.severities, corruptions.mean_by_severity, strict=True)
    name = f"corruptions, {source}"
    rows += [_row(name, f"severity {severity}, {over}", mean) for severity, mean in means]
    rows.append(_row(name, f"severities 1 to 5, {over}", corruptions.mean))
    extra = [row for name, row in own if name not in corruptions.mean_over]
    if extra:
        rows += [("extra corruptions, not in the mean above:", "", "", "", ""), *extra]
    if corruptions.mean_extra:  # a record of before has none
        over = f"severities 1 to 5, mean of {len(extra)} extra"
        rows.append(_row(name, over, corruptions.mean_extra))
    return rows


def _labelled(corruptions: Corruptions, name: str) -> str:
    """The name of a corruption, and in which way it is not the original's."""
    notes = {source.name: source.note for source in corruptions.sources}
    return f"{name} ({notes[name]})" if notes.get(name) else name


def _is_official(corruptions: Corruptions) -> bool:
    return all(source.source == "official" for source in corruptions.sources)


def _is_whole(corruptions: Corruptions) -> bool:
    return set(corruptions.mean_over) == set(FIFTEEN)


def _mean_of(corruptions: Corruptions) -> str:
    """What the mean is over: "official" is all fifteen of CIFAR-10-C, from its own files."""
    over = f"mean of {len(corruptions.mean_over)}"
    if not _is_official(corruptions):
        return f"local {over}"
    return f"official {over}" if _is_whole(corruptions) else over


def _what_mean(corruptions: Corruptions) -> str:
    """Say of the mean over corruptions whether it compares with published ones."""
    over = f"the mean is over CIFAR-10-C's {len(FIFTEEN)}"
    if not _is_whole(corruptions):
        names = ", ".join(corruptions.mean_over)
        over = f"the mean is over {names}, not over CIFAR-10-C's {len(FIFTEEN)}"
    if _is_official(corruptions):
        return f"corruptions: of the official files; {over}"
    notes = [f"{source.name} is {source.note}" for source in corruptions.sources if source.note]
    made = ", ".join([f"made here ({corruptions.sources[0].source})", *notes])
    return f"corruptions: {made}; {over}; published numbers are of other images"


def _row(name: str, settings: str, accuracy: Accuracy) -> Row:
    shown = formats.accuracy(accuracy.value), formats.accuracy_interval(accuracy.interval)
    return name, settings, str(accuracy.n), *shown


def _settings(attack: AttackRecord, eps: float) -> str:
    """The settings of an attack that are worth a place in the table."""
    given = attack.settings
    parts = [ball(given.norm, eps)]
    if given.steps is not None:
        size = given.step_size or given.step_size_of_eps * eps
        parts.append(f"{given.steps} steps of {_length(given.norm, size)}")
    if given.version not in (None, "standard"):
        parts.append(given.version)
    if (given.restarts or 1) > 1:
        parts.append(f"{given.restarts} restarts")
    if attack.queries:
        parts.append(f"at most {given.max_queries} queries")
        if attack.queries.n:
            parts.append(f"median {attack.queries.median:g} to fool")
    return ", ".join(parts)


def ball(norm: str, eps: float) -> str:
    """Return a budget in words: "linf 8/255" or "l2 0.5"."""
    return f"{norm} {_length(norm, eps)}"


def _length(norm: str, length: float) -> str:
    return f"{255 * length:.4g}/255" if norm == "linf" else f"{length:.4g}"


def plot(record: Evaluation) -> bytes | None:
    """Draw accuracy against eps (linf) and against severity, as PNG; None if there is neither."""
    panels = []
    if any(attack.settings.norm == "linf" for attack in record.attacks):
        panels.append(_draw_eps)
    if record.corruptions:
        panels.append(_draw_severity)
    if not panels:
        return None
    with rc_context(theme(INK[False], PAPER[False])):
        figure, all_axes = with_panels(len(panels), height=4, columns=1)
        for draw, axes in zip(panels, all_axes, strict=True):
            draw(axes, record)
            axes.set_ylim(-3, 103)
            axes.set_ylabel("accuracy (%)")
        draw_legend(figure, all_axes)
        title = f"{_subject(record)}; bars are 95 % intervals"
        figure.suptitle(fill(title, 72), fontsize="medium")
        return as_png(figure)


def _draw_eps(axes: Axes, record: Evaluation) -> None:
    clean = record.clean.top1
    _draw(axes, [0.0], [clean], BLACK | {"marker": "x", "linestyle": ""}, "clean")
    attacks = [attack for attack in record.attacks if attack.settings.norm == "linf"]
    attacks.sort(key=lambda attack: not attack.points)  # single points lie on the curve
    ticks = {0.0}
    for index, attack in enumerate(attacks):
        if attack.points:
            eps = [0.0, *(255 * point.eps for point in attack.points)]
            accuracies, look = [clean, *(point.accuracy for point in attack.points)], style(index)
        else:
            eps = [255 * attack.settings.eps]
            accuracies, look = [attack.accuracy], style(index) | {"linestyle": ""}
        _draw(axes, eps, accuracies, look, attack.name)
        ticks.update(eps)
    draw_reference(axes, "y", 100 * record.chance, "chance")
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xlim(-0.2, 1.3 * max(ticks))
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axes.set_xlabel("eps of the attack under linf, in grey levels of 1/255")


def _draw_severity(axes: Axes, record: Evaluation) -> None:
    """Looks go on after those of the attacks: the two panels have one legend."""
    corruptions, clean = record.corruptions, record.clean.top1
    severities = [0, *corruptions.severities]
    for index, (name, own) in enumerate(corruptions.accuracies.items(), len(record.attacks)):
        percent = [100 * accuracy.value for accuracy in (clean, *own)]
        look = style(index) | {"linewidth": 0.9, "markersize": 3}
        axes.plot(severities, percent, **look, label=_labelled(corruptions, name))
    means, look = [clean, *corruptions.mean_by_severity], BLACK | {"marker": "o", "linewidth": 2.2}
    _draw(axes, severities, means, look, _mean_of(corruptions))
    axes.set_xticks(severities, ["clean", *map(str, severities[1:])])
    axes.set_xlabel(f"severity of the corruption ({corruptions.sources[0].source})")


def _draw(
    axes: Axes, x: list[float], accuracies: list[Accuracy], look: dict[str, object], label: str
) -> None:
    """Accuracies in percent with their intervals."""
    percent = [100 * accuracy.value for accuracy in accuracies]
    intervals = [tuple(100 * end for end in accuracy.interval) for accuracy in accuracies]
    draw_errors(axes, x, percent, intervals, look, label)
