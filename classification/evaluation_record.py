"""From results of single images to accuracies with intervals, and to doubts about them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from classification.autoattack import STAGES
from classification.calibration import calibration_error, mean_nll
from classification.corruption_sources import Corruption
from classification.corruptions import FIFTEEN, SEVERITIES
from classification.named_attacks import Attack, stages_of
from classification.per_image import Rows
from classification.records import (
    Accuracy,
    AttackRecord,
    AttackSettings,
    Check,
    Clean,
    Corruptions,
    CorruptionSource,
    Norm,
    Queries,
    SweepPoint,
    WorstCase,
    WorstOfBoth,
)
from convnorm.experiment.report import formats
from convnorm.experiment.statistics import wilson_interval

Found = Sequence[tuple[Attack, Rows]]


def accuracy(correct: int, n: int) -> Accuracy:
    """Of `n` images, with its 95 % Wilson interval."""
    return Accuracy(correct / n, wilson_interval(correct, n), correct, n)


def chance_of(labels: Tensor) -> float:
    """The accuracy of always guessing the largest class of `labels`, (N,): the best blind guess."""
    return accuracy(int(labels.bincount().max()), len(labels)).value


def clean_record(rows: Rows) -> Clean:
    """Of the images as they are."""
    n = len(rows["right"])
    top1, top5 = (
        None if right is None else accuracy(int(right.sum()), n)
        for right in (rows["right"], rows.get("right5"))
    )
    ece = calibration_error(rows["confidence"], rows["right"])
    return Clean(top1, top5, ece, mean_nll(rows["nll"]))


def settings_of(attack: Attack) -> AttackSettings:
    eps = attack.settings["eps"]
    return AttackSettings(**attack.settings | {"eps": tuple(eps) if _is_sweep(attack) else eps})


def _is_sweep(attack: Attack) -> bool:
    return isinstance(attack.settings["eps"], list)


def attack_record(attack: Attack, rows: Rows, n: int) -> AttackRecord:
    """One attack on the images among `n` that were right before: `rows` are of these alone."""
    fooled_at, eps = rows["fooled_at"], attack.settings["eps"]
    record = AttackRecord(attack.name, settings_of(attack), len(fooled_at), None, (), {}, None)
    if _is_sweep(attack):
        points = (SweepPoint(each, accuracy(_survivors(fooled_at, each), n)) for each in eps)
        return replace(record, points=tuple(points))
    fooled, stages, queries = fooled_at.isfinite(), {}, None
    if "stage" in rows:
        later = {name: rows["stage"] > k for k, name in enumerate(stages_of(attack.name))}
        stages = {name: accuracy(int((left | ~fooled).sum()), n) for name, left in later.items()}
    if "queries" in rows:
        queries = _queries(rows["queries"][fooled])
    survived = accuracy(_survivors(fooled_at, eps), n)
    return replace(record, accuracy=survived, stages=stages, queries=queries)


def _survivors(fooled_at: Tensor, eps: float) -> int:
    return int((fooled_at > eps).sum())


def _queries(queries: Tensor) -> Queries:
    n = len(queries)
    mean = queries.double().mean().item() if n else None
    median = queries.double().quantile(0.5).item() if n else None
    return Queries(n, mean, median)


def right_about(clean: Rows, found: Found) -> dict[str, Tensor]:
    """Which images the network is right about, (N,) bool, as they are and under each attack.

    By "clean" and the names of the attacks, without a sweep, which has no eps of its own.
    """
    right = {"clean": clean["right"]}
    for attack, rows in found:
        if not _is_sweep(attack):
            withstood = rows["fooled_at"] > attack.settings["eps"]
            right[attack.name] = among(clean["right"], withstood)
    return right


def among(right: Tensor, flags: Tensor) -> Tensor:
    """Return flags (M,) of the M images that are right, (N,), as flags (N,) of all."""
    found = right.clone()
    found[right] = flags
    return found


def worst_cases(found: Found, n: int) -> tuple[WorstCase, ...]:
    """The images that withstood every attack, for each budget that an attack was run with."""
    cases = []
    for norm, eps in _budgets(found).items():
        names, withstood = _withstood(found, norm, eps)
        cases.append(WorstCase(norm, eps, names, accuracy(int(withstood.sum()), n)))
    return tuple(cases)


def worst_of_both(found: Found, n: int) -> WorstOfBoth | None:
    """The images that withstood every attack of both norms; None where one has no attack."""
    eps = _budgets(found)
    if len(eps) < 2:
        return None
    names, withstood = zip(*(_withstood(found, *each) for each in eps.items()), strict=True)
    both = torch.stack(withstood).all(0)
    return WorstOfBoth(eps, sum(names, ()), accuracy(int(both.sum()), n))


def _budgets(found: Found) -> dict[Norm, float]:
    """Norm -> eps, of the norms under which there is an attack that has one eps."""
    attacks = (attack for attack, _ in found if not _is_sweep(attack))
    return dict(sorted((attack.settings["norm"], attack.settings["eps"]) for attack in attacks))


def _withstood(found: Found, norm: Norm, eps: float) -> tuple[tuple[str, ...], Tensor]:
    """The attacks under a norm, and which of the attacked images withstood them all."""
    within = [(attack, rows) for attack, rows in found if attack.settings["norm"] == norm]
    flags = torch.stack([rows["fooled_at"] > eps for _, rows in within]).all(0)
    return tuple(attack.name for attack, _ in within), flags


def corruption_record(right: dict[str, Tensor], sources: Sequence[Corruption]) -> Corruptions:
    """Accuracies by corruption and severity, and their means.

    right: name -> (N, severities) bool. The mean is over those of CIFAR-10-C's fifteen that are
    there; all others have a mean of their own, which is the only one where none of the fifteen is
    there. A mean is about N images and not about N times so many independent ones: its interval is
    that of one look at each image, which is not too narrow.
    """
    averaged = [name for name in right if name in FIFTEEN] or list(right)
    extra = [name for name in right if name not in averaged]
    each = _share(right, averaged)
    n = len(each)
    return Corruptions(
        severities=tuple(SEVERITIES),
        accuracies={
            name: tuple(accuracy(count, n) for count in flags.sum(0).tolist())
            for name, flags in right.items()
        },
        mean_by_corruption={name: _mean(flags.double().mean(1)) for name, flags in right.items()},
        mean_over=tuple(averaged),
        mean_by_severity=tuple(_mean(values) for values in each.T),
        mean=_mean(each.mean(1)),
        sources=tuple(CorruptionSource(source.name, **source.settings) for source in sources),
        mean_extra=_mean(_share(right, extra).mean(1)) if extra else None,
    )


def _share(right: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """Return under what share of the corruptions the network is right, (N, severities)."""
    return torch.stack([right[name] for name in names]).double().mean(0)


def _mean(values: Tensor) -> Accuracy:
    """Of values in [0, 1], whose variance is at most that of flags with the same mean."""
    n, mean = len(values), values.mean().item()
    return Accuracy(mean, wilson_interval(round(mean * n), n), None, n)


def checks(attacks: Sequence[AttackRecord], chance: float) -> tuple[Check, ...]:
    """What robustness that is real would pass, as far as attacks can tell.

    Masked gradients look like robustness to attacks that follow them. Athalye et al. (2018) name
    their signs: a large eps does not fool every image, many small steps fool fewer images than one
    large step, a search without gradients fools more.
    """
    found = []
    for attack in attacks:
        if attack.points:
            last = attack.points[-1]
            detail = (
                f"{formats.accuracy(last.accuracy.value)} at eps {255 * last.eps:g}/255, "
                f"chance is {formats.accuracy(chance)}"
            )
            found.append(Check("sweep ends at chance", last.accuracy.value <= chance, detail))
    one_step = [attack for attack in attacks if attack.name == "fgsm"]
    many_steps = [attack for attack in attacks if _can_cross_the_ball(attack)]
    searches = [attack for attack in attacks if attack.name.startswith("simba")]
    pairs = [(pgd, fgsm) for pgd in many_steps for fgsm in one_step]
    if gradient := one_step + many_steps:
        strongest = min(gradient, key=lambda attack: attack.accuracy.value)
        pairs += [(strongest, search) for search in searches]
    accuracies = [((one.name, one.accuracy), (two.name, two.accuracy)) for one, two in pairs]
    for attack in attacks:
        if set(STAGES[-2:]) <= attack.stages.keys():
            fab, square = ((f"{attack.name}'s {it}", attack.stages[it]) for it in STAGES[-2:])
            accuracies.append((fab, square))
    return (*found, *(_not_beaten(*stronger, *weaker) for stronger, weaker in accuracies))


def _can_cross_the_ball(attack: AttackRecord) -> bool:
    """Whether it is a PGD under linf whose steps reach from one side of the ball to the other."""
    given = attack.settings
    is_pgd = attack.name.startswith("pgd") and given.norm == "linf"
    return is_pgd and given.steps * given.step_size >= 2 * given.eps


def _not_beaten(stronger: str, strong: Accuracy, weaker: str, weak: Accuracy) -> Check:
    low = strong.interval[0]
    detail = (
        f"{formats.accuracy(strong.value)} (interval from {formats.accuracy(low)}) against "
        f"{formats.accuracy(weak.value)}"
    )
    return Check(f"{stronger} is not beaten by {weaker}", weak.value >= low, detail)
