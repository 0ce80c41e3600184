"""From results of single images to numbers with intervals, and to doubts about them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from classification.autoattack import STAGES
from classification.corruptions import SEVERITIES
from classification.named_attacks import Attack
from classification.per_image import Rows
from convnorm.experiment.statistics import wilson_interval

# Those of CIFAR-10-C that its mean leaves out.
EXTRA = ("gaussian_blur", "saturate", "spatter", "speckle_noise")

Record = dict[str, Any]  # JSON-able
Found = Sequence[tuple[Attack, Rows]]


def accuracy(correct: int, n: int) -> Record:
    """Of `n` images, with its 95 % Wilson interval."""
    return {
        "correct": correct,
        "n": n,
        "accuracy": correct / n,
        "interval": list(wilson_interval(correct, n)),
    }


def clean_record(rows: Rows) -> Record:
    """top5 is None where a network has no more than 5 classes."""
    n = len(rows["right"])
    counts = {f"top{k}": rows.get(name) for k, name in ((1, "right"), (5, "right5"))}
    return {
        name: None if right is None else accuracy(int(right.sum()), n)
        for name, right in counts.items()
    }


def attack_record(attack: Attack, rows: Rows, n: int) -> Record:
    """One attack with all its settings.

    attacked: images of the `n` that were right before; the others count as wrong. points: of a
    sweep, one accuracy for each eps. stages: of AutoAttack, the accuracy after each.
    queries: of SimBA, to those images that it fooled.
    """
    fooled_at = rows["fooled_at"]
    record = {"name": attack.name, **attack.settings, "attacked": len(fooled_at)}
    if isinstance(attack.settings["eps"], list):
        points = [
            {"eps": eps, **accuracy(_survivors(fooled_at, eps), n)}
            for eps in attack.settings["eps"]
        ]
        return record | {"points": points}
    record |= accuracy(_survivors(fooled_at, attack.settings["eps"]), n)
    fooled = fooled_at.isfinite()
    if "stage" in rows:
        left = {name: rows["stage"] > k for k, name in enumerate(STAGES)}
        record["stages"] = {
            name: accuracy(int((later | ~fooled).sum()), n) for name, later in left.items()
        }
    if "queries" in rows:
        record["queries"] = _queries(rows["queries"][fooled])
    return record


def _survivors(fooled_at: Tensor, eps: float) -> int:
    return int((fooled_at > eps).sum())


def _queries(queries: Tensor) -> Record:
    n = len(queries)
    mean = queries.double().mean().item() if n else None
    median = queries.double().quantile(0.5).item() if n else None
    return {"n": n, "mean": mean, "median": median}


def settings_of(record: Record) -> Record:
    """The settings in the record of an attack: what has to agree before two are compared."""
    others = {"name", "attacked", "points", "stages", "queries", *accuracy(0, 1)}
    return {key: value for key, value in record.items() if key not in others}


def right_about(clean: Rows, found: Found) -> dict[str, Tensor]:
    """Which images the network is right about, (N,) bool, as they are and under each attack.

    By "clean" and the names of the attacks, without a sweep, which has no eps of its own.
    """
    right = {"clean": clean["right"]}
    for attack, rows in found:
        eps = attack.settings["eps"]
        if not isinstance(eps, list):
            withstood = clean["right"].clone()
            withstood[clean["right"]] = rows["fooled_at"] > eps
            right[attack.name] = withstood
    return right


def worst_cases(found: Found, n: int) -> list[Record]:
    """The images that withstood every attack, for each budget that an attack was run with."""
    budgets = {
        (attack.settings["norm"], attack.settings["eps"])
        for attack, _ in found
        if not isinstance(attack.settings["eps"], list)
    }
    records = []
    for norm, eps in sorted(budgets):
        within = [(attack, rows) for attack, rows in found if attack.settings["norm"] == norm]
        withstood = torch.stack([rows["fooled_at"] > eps for _, rows in within]).all(0)
        names = [attack.name for attack, _ in within]
        records.append(
            {"norm": norm, "eps": eps, "attacks": names, **accuracy(int(withstood.sum()), n)}
        )
    return records


def corruption_record(right: dict[str, Tensor]) -> Record:
    """Accuracies by corruption and severity, and their means.

    right: name -> (N, severities) bool. A mean is over `mean_over`, without the four that
    CIFAR-10-C calls extra. It is about N images and not about N times so many independent ones:
    its interval is that of one look at each image, which is not too narrow.
    """
    averaged = [name for name in right if name not in EXTRA] or list(right)
    each = torch.stack([right[name] for name in averaged]).double().mean(0)  # (N, severities)
    n = len(each)
    return {
        "severities": list(SEVERITIES),
        "accuracies": {
            name: [accuracy(count, n) for count in flags.sum(0).tolist()]
            for name, flags in right.items()
        },
        "mean_by_corruption": {
            name: _mean(flags.double().mean(1)) for name, flags in right.items()
        },
        "mean_over": averaged,
        "mean_by_severity": [_mean(values) for values in each.T],
        "mean": _mean(each.mean(1)),
    }


def _mean(values: Tensor) -> Record:
    """Of values in [0, 1], whose variance is at most that of flags with the same mean."""
    n, mean = len(values), values.mean().item()
    return {"n": n, "accuracy": mean, "interval": list(wilson_interval(round(mean * n), n))}


def checks(record: Record) -> list[Record]:
    """What robustness that is real would pass, as far as the attacks of a record can tell.

    Masked gradients look like robustness to attacks that follow them; the signs are from
    Athalye et al. (2018): a large eps does not fool every image, many small steps fool fewer than
    one large one, a search without gradients fools more.
    """
    attacks = {attack["name"]: attack for attack in record["attacks"]}
    found = []
    if sweep := attacks.get("sweep"):
        last, chance = sweep["points"][-1], record["chance"]
        detail = f"{last['accuracy']:.2%} at eps {255 * last['eps']:g}/255, chance is {chance:.2%}"
        found.append(_check("sweep ends at chance", last["accuracy"] <= chance, detail))
    one_step = {name: attack for name, attack in attacks.items() if name == "fgsm"}
    many_steps = {
        name: attack
        for name, attack in attacks.items()
        if name.startswith("pgd")
        and attack["norm"] == "linf"
        and attack["steps"] * attack["step_size"] >= 2 * attack["eps"]  # can cross the ball
    }
    black_box = {name: attack for name, attack in attacks.items() if name.startswith("simba")}
    pairs = [(pgd, fgsm) for pgd in many_steps.items() for fgsm in one_step.items()]
    if gradient := one_step | many_steps:
        strongest = min(gradient.items(), key=lambda item: item[1]["accuracy"])
        pairs += [(strongest, search) for search in black_box.items()]
    for name, attack in attacks.items():
        if stages := attack.get("stages"):
            fab, square = ((f"{name}'s {stage}", stages[stage]) for stage in STAGES[-2:])
            pairs.append((fab, square))
    return found + [_not_beaten(*stronger, *weaker) for stronger, weaker in pairs]


def _not_beaten(stronger: str, strong: Record, weaker: str, weak: Record) -> Record:
    low = strong["interval"][0]
    return _check(
        f"{stronger} is not beaten by {weaker}",
        weak["accuracy"] >= low,
        f"{strong['accuracy']:.2%} (interval from {low:.2%}) against {weak['accuracy']:.2%}",
    )


def _check(name: str, passed: bool, detail: str) -> Record:
    return {"check": name, "passed": passed, "detail": detail}
