"""The gap between the last and the best weights of a run: its interval, and what it is made of."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from linear import as_of_a_run, evaluated, nearest_mean
from scipy.stats import multinomial

from classification.evaluation_files import read, save
from classification.overfitting import _line, gap, overfitting


def flags(n: int, only_last: int, only_best: int, both: int = 0) -> tuple[np.ndarray, np.ndarray]:
    last, best = np.zeros((2, n), bool)
    last[: only_last + both] = True
    best[only_last : only_last + both + only_best] = True
    return last, best


def test_it_is_the_difference_of_the_accuracies_and_turns_around_with_them():
    last, best = flags(100, only_last=5, only_best=15, both=40)
    found, turned = gap("pgd20", last, best), gap("pgd20", best, last)
    assert found.difference == pytest.approx(last.mean() - best.mean())
    assert found.difference == -turned.difference == -0.1
    assert found.interval == pytest.approx(tuple(-end for end in reversed(turned.interval)))
    # Bonett & Price's, by hand: (6 - 16) / 102 -+ 1.95996 sqrt((22 / 102 - (10 / 102)^2) / 102)
    assert found.interval == pytest.approx((-0.186136, -0.009942), abs=2e-6)


@pytest.mark.parametrize(("only_last", "only_best"), [(0, 0), (0, 30), (30, 0), (1, 0)])
def test_it_lies_in_an_interval_that_has_a_width(only_last, only_best):
    """Wald's interval has none where no image tells the two apart."""
    found = gap("clean", *flags(30, only_last, only_best))
    assert -1 <= found.interval[0] < found.interval[1] <= 1
    assert found.interval[0] <= found.difference <= found.interval[1]


@pytest.mark.parametrize("p", [(0.05, 0.15), (0.02, 0.02), (0.3, 0.1)])
def test_95_of_100_intervals_hold_the_truth(p):
    n, covered = 40, 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            probability = multinomial.pmf([a, b, n - a - b], n, [*p, 1 - sum(p)])
            if probability > 1e-7:
                low, high = gap("clean", *flags(n, a, b)).interval
                covered += probability * (low <= p[0] - p[1] <= high)
    assert 0.93 < covered <= 1 + 1e-6


@pytest.fixture
def made(tmp_path):
    """A run whose best and last weights differ, both evaluated under fgsm."""
    found = {}
    for name, step in (("best", 7), ("last", 9)):
        file = tmp_path / f"{name}.pt"
        file.write_bytes(name.encode())
        network = nearest_mean().eval()
        if name == "last":
            network[1].bias.data[3] -= 2
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        loaded = replace(as_of_a_run(tmp_path), network=network, file=file, sha256=sha256)
        loaded = replace(loaded, step=step, epoch=step - 5)
        record, right = evaluated(loaded, "fgsm", "pgd2")
        save(record, right, tmp_path / "evaluation" / f"{name}.json")
        found[name] = loaded
    return found


def lines(made, name: str, *attacks: str, file: str | None = None, **changes) -> list[str]:
    record, right = evaluated(made[name], *attacks, **changes)
    folder = made[name].file.parent
    return overfitting(folder, folder / "evaluation" / f"{file or name}.json", record, right)


def test_each_accuracy_that_both_have_is_told(made):
    for name in ("best", "last"):
        clean, fgsm, pgd2 = lines(made, name, "fgsm")
        assert clean.startswith("clean accuracy: last - best = -")
        assert fgsm.startswith("robust overfitting: last - best = -")
        assert "under fgsm (epoch 4 against 2, 60 images)" in fgsm
        assert "under pgd2 (" in pgd2
    right = {n: evaluated(made[n])[1]["clean"].double().mean() for n in made}
    assert f"{100 * (right['last'] - right['best']):+.2f} points" in clean


def test_what_is_certified_is_no_attack():
    line = _line(gap("certified", *flags(60, 3, 9)), "epoch 4 against 2")
    assert line.startswith("certified accuracy: last - best = -10.00 points [")
    assert line.endswith("] (epoch 4 against 2, 60 images)")


def test_nothing_is_told_where_there_is_nothing_to_compare(made, capsys):
    folder = made["last"].file.parent / "evaluation"
    assert lines(made, "last", "fgsm", file="last_num=60") == []
    assert lines({"last": replace(made["last"], file=folder / "other.pt")}, "last", "fgsm") == []
    (folder / "best.json").unlink()
    assert lines(made, "last", "fgsm") == []
    assert capsys.readouterr().err.count("left out") == 0


@pytest.mark.parametrize("damage", ["weights", "record", "settings"])
def test_what_does_not_belong_together_is_left_out_and_said(made, capsys, damage):
    """Of weights that were overwritten, not readable, or of other images than the other's."""
    folder, changes = made["last"].file.parent, {}
    if damage == "weights":
        (folder / "best.pt").write_bytes(b"trained on")
    elif damage == "record":
        (folder / "evaluation" / "best.json").write_text("{")
    else:
        changes = {"num": 59}
    capsys.readouterr()
    assert lines(made, "last", "fgsm", **changes) == []
    assert capsys.readouterr().err.count("left out: ") == 1


def test_a_best_that_is_the_last_has_no_gap(made):
    file = made["last"].file.parent / "evaluation" / "best.json"
    record = read(file)
    same = replace(record.checkpoint, step=9, epoch=4)
    _, right = evaluated(made["best"], "fgsm")
    save(replace(record, checkpoint=same), right, file)
    (line,) = lines(made, "last", "fgsm")
    assert line == "robust overfitting: none can be: best.pt is of the last epoch, 4"
