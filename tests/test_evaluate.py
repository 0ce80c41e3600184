"""Evaluations of a linear classifier on digits: numbers, resuming, doubts, tables and errors."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from linear import (
    CPU,
    DIGITS,
    TRAINED_ON,
    Rounded,
    as_of_a_run,
    evaluated,
    nearest_mean,
    run,
    text,
)
from runs import tiny_classifier
from torch import Tensor, nn

from classification import corruptions, named_attacks
from classification import evaluate as evaluate_module
from classification.attacks import fgsm, pgd
from classification.corruption_sources import Corruption, made_here
from classification.evaluate import Options, evaluate
from classification.evaluation_record import (
    accuracy,
    attack_record,
    checks,
    corruption_record,
    settings_of,
    worst_cases,
    worst_of_both,
)
from classification.evaluation_report import plot, table, told_apart
from classification.models import LoadedClassifier, build
from classification.named_attacks import Attack, Budget, attack_named
from classification.per_image import Subject
from classification.records import AttackRecord, AttackSettings, Corruptions, Evaluation
from classification.splits import SplitConfig, split
from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint

EPS = Budget.eps / 255


@pytest.fixture(autouse=True)
def _few_corruptions(monkeypatch):
    """Three stand for all: one with random numbers, one without, and one for colours only."""
    few = {name: corruptions.CORRUPTIONS[name] for name in ("shot_noise", "contrast", "saturate")}
    monkeypatch.setattr("classification.corruption_sources.CORRUPTIONS", few)


@pytest.fixture
def loaded(tmp_path) -> LoadedClassifier:
    """The linear classifier as if it were of a run in tmp_path."""
    return as_of_a_run(tmp_path)


def attack_of(record: Evaluation, name: str) -> AttackRecord:
    return next(attack for attack in record.attacks if attack.name == name)


def correct(record: Evaluation, name: str) -> int:
    return attack_of(record, name).accuracy.correct


# ----------------------------------------------------------------------------------- numbers


def test_accuracies_are_those_of_the_attacks_called_by_hand(loaded):
    """Catches a lost image, a wrong unit of eps, and an eps that float32 rounds above itself."""
    record = run(loaded, "fgsm", "pgd5x2", "pgd5_l2", num=None)
    test = load_images(DIGITS, "test")
    x, y, network = test.images.float() / 255, test.labels, loaded.network
    right = network(x).argmax(1) == y
    settings = {"steps": 5, "seed": 0}
    linf = {**settings, "norm": "linf", "eps": EPS, "step_size": EPS / 4, "restarts": 2}
    l2 = {**settings, "norm": "l2", "eps": 0.5, "step_size": 0.125}
    assert record.clean.top1.correct == right.sum()
    top5 = (network(x).topk(5).indices == y[:, None]).any(1).sum()
    assert record.clean.top5.correct == top5
    for attack, x_adv in zip(
        record.attacks,
        (fgsm(network, x, y, eps=EPS), pgd(network, x, y, **linf), pgd(network, x, y, **l2)),
        strict=True,
    ):
        found = attack.accuracy
        assert found.correct == (right & (network(x_adv).argmax(1) == y)).sum()
        assert found.n == 360
        assert attack.num_attacked == right.sum()
        assert found.interval[0] < found.value < found.interval[1]


def test_each_image_is_right_or_wrong_as_it_is_by_hand(loaded):
    """Catches flags in the order of the queue, and images that were wrong before left out."""
    record, per_image = evaluated(loaded, "fgsm", "pgd3_l2", "sweep")
    assert list(per_image) == ["positions", "clean", "fgsm", "pgd3_l2"]
    test, network = load_images(DIGITS, "test"), loaded.network
    positions = per_image["positions"]
    assert len(positions) == 60
    x, y = test.images[positions].float() / 255, test.labels[positions]
    right = network(x).argmax(1) == y
    assert torch.equal(per_image["clean"], right)
    withstood = right & (network(fgsm(network, x, y, eps=EPS)).argmax(1) == y)
    assert torch.equal(per_image["fgsm"], withstood)
    assert not torch.equal(withstood, right)
    assert per_image["pgd3_l2"].sum() == correct(record, "pgd3_l2")


def test_an_attacks_record_has_all_of_its_settings(loaded):
    """A setting that is lost would put two classifiers that were measured unlike in a column."""
    names, budget = ("fgsm", "pgd3x2", "pgd3_l2", "sweep", "simba_dct"), Budget(max_queries=5)
    record = run(loaded, *names, budget=budget, num=5)
    for attack in record.attacks:
        given = {key: v for key, v in to_json(attack.settings).items() if v is not None}
        assert given == attack_named(attack.name, budget).settings


def test_only_images_that_were_right_are_attacked(loaded, monkeypatch):
    seen = []

    def spy(network: nn.Module, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
        seen.append((network(x).argmax(1) == y).all())
        return fgsm(network, x, y, eps=eps)

    monkeypatch.setattr(named_attacks, "fgsm", spy)
    assert run(loaded, "fgsm").clean.top1.correct < 60
    assert len(seen) == 3
    assert all(seen)


def test_an_attack_that_claims_too_much_is_not_believed(loaded, monkeypatch):
    """Only the network says whether it is fooled: here the attack changes no image."""
    monkeypatch.setattr(named_attacks, "fgsm", lambda network, x, y, *, eps: x)
    record = run(loaded, "fgsm")
    assert correct(record, "fgsm") == record.clean.top1.correct


def test_no_attack_raises_the_accuracy_and_the_worst_case_is_the_lowest(loaded):
    budget = Budget(max_queries=60)
    record = run(loaded, "fgsm", "pgd5", "pgd5_l2", "simba_pixel", "simba_dct", budget=budget)
    clean = record.clean.top1.correct
    linf = [a.accuracy.correct for a in record.attacks if a.settings.norm == "linf"]
    assert all(0 < attack.accuracy.correct <= clean for attack in record.attacks)
    worst = {case.norm: case for case in record.worst_cases}
    assert worst["linf"].accuracy.correct <= min(linf) < clean
    assert worst["linf"].attacks == ("fgsm", "pgd5", "simba_pixel", "simba_dct")
    assert worst["l2"].accuracy.correct == correct(record, "pgd5_l2")
    least = min(case.accuracy.correct for case in worst.values())
    assert 0 < record.worst_of_both.accuracy.correct <= least
    (line,) = (line for line in table(record).splitlines() if "l2 0.5 and linf 8/255" in line)
    assert f"{100 * record.worst_of_both.accuracy.value:.2f} %" in line


def test_worst_case_is_over_images_and_within_the_budget():
    """Two attacks that fool different images leave fewer than each of them alone."""
    inf = math.inf
    found = [
        (Attack("a", {"norm": "linf", "eps": 0.1}, None), [0.1, inf, inf, inf]),
        (Attack("b", {"norm": "linf", "eps": 0.1}, None), [inf, 0.1, inf, inf]),
        (Attack("sweep", {"norm": "linf", "eps": [0.05, 0.2]}, None), [inf, inf, 0.05, 0.2]),
    ]
    found = [(a, {"fooled_at": torch.tensor(at, dtype=torch.float64)}) for a, at in found]
    (case,) = worst_cases(found, n=8)
    assert (case.accuracy.correct, case.accuracy.n, case.eps) == (1, 8, 0.1)
    assert worst_of_both(found, n=8) is None


def test_worst_case_of_both_norms_is_over_images_too():
    """Each norm leaves two images, and both together one; with each at its own eps."""
    inf = math.inf
    found = [
        (Attack("a", {"norm": "linf", "eps": 0.1}, None), [0.1, inf, inf, 0.1]),
        (Attack("sweep", {"norm": "linf", "eps": [0.05, 0.2]}, None), [0.2, 0.2, inf, 0.05]),
        (Attack("b_l2", {"norm": "l2", "eps": 0.5}, None), [inf, 0.5, inf, 0.5]),
        (Attack("c_l2", {"norm": "l2", "eps": 0.5}, None), [inf, 0.5, inf, inf]),
    ]
    found = [(a, {"fooled_at": torch.tensor(at, dtype=torch.float64)}) for a, at in found]
    assert [case.accuracy.correct for case in worst_cases(found, n=8)] == [2, 2]
    both = worst_of_both(found, n=8)
    assert both.accuracy == accuracy(1, 8)
    assert both.eps == {"linf": 0.1, "l2": 0.5}
    assert set(both.attacks) == {"a", "sweep", "b_l2", "c_l2"}


def test_batch_size_does_not_matter(loaded):
    """Random numbers that belong to a batch instead of an image would show."""
    names = ("fgsm", "pgd3x2", "simba_dct", "sweep", "corruptions")
    budget = Budget(max_queries=40)
    one, other = (run(loaded, *names, budget=budget, batch_size=size) for size in (7, 60))
    assert text(one) != text(other)
    assert one.clean.ece == pytest.approx(other.clean.ece, rel=1e-5)  # logits are rounded otherwise
    assert one.clean.nll.mean == pytest.approx(other.clean.nll.mean, rel=1e-5)
    clean = replace(one.clean, ece=other.clean.ece, nll=other.clean.nll)
    assert text(replace(one, batch_size=60, clean=clean)) == text(other)


def test_a_subset_is_random_and_belongs_to_the_seed(loaded):
    """The first images of a file come sorted by class."""
    first, again, other = (
        run(loaded, budget=Budget(seed=seed)).data.positions_sha256 for seed in (0, 0, 1)
    )
    assert first == again != other


def test_validation_is_what_the_run_held_out(loaded):
    record = run(loaded, split="validation", num=None)
    train = load_images(DIGITS, "train")
    held_out = split(train.labels, SplitConfig(validation=0.1))[1]
    x = train.images[held_out].float() / 255
    assert record.data.n == len(held_out) < 200
    right = loaded.network(x).argmax(1) == train.labels[held_out]
    assert record.clean.top1.correct == right.sum()


def test_simba_reports_queries_of_those_it_fooled(loaded):
    record = run(loaded, "simba_pixel", budget=Budget(eps=64, max_queries=30))
    attack = attack_of(record, "simba_pixel")
    assert attack.queries.n == attack.num_attacked - attack.accuracy.correct > 0
    assert 2 <= attack.queries.median <= 30


@pytest.fixture
def _short_autoattack(monkeypatch):
    """A tenth of the steps and few queries."""
    package = pytest.importorskip("pyautoattack")
    original = package.AutoAttack._set_version

    def shorter(self, version):
        original(self, version)
        self.square.n_queries = 20
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 10

    monkeypatch.setattr(package.AutoAttack, "_set_version", shorter)


@pytest.mark.usefixtures("_short_autoattack")
def test_autoattack_reports_its_stages(loaded):
    record = run(loaded, "fgsm", "autoattack", num=20)
    attack = attack_of(record, "autoattack")
    assert attack.settings.version == "standard"
    assert 0 < attack.accuracy.correct <= correct(record, "fgsm")
    stages = [stage.correct for stage in attack.stages.values()]
    assert list(attack.stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert stages == sorted(stages, reverse=True)
    assert stages[-1] == attack.accuracy.correct
    assert attack.settings == settings_of(attack_named("autoattack", Budget()))


@pytest.mark.usefixtures("_short_autoattack")
@pytest.mark.parametrize("norm", ["", "_l2"])
def test_apgd_ce_and_t_are_autoattack_after_two_stages_and_called_so(loaded, norm):
    """To the last bit, batch by batch: another seed or order of draws is another attack."""
    names = (f"apgd_ce_t{norm}", f"autoattack{norm}")
    record, right = evaluated(loaded, *names, num=20, batch_size=9)
    judge, whole = record.attacks
    assert [judge.name, whole.name] == list(names)
    assert judge.stages == {name: whole.stages[name] for name in ("apgd-ce", "apgd-t")}
    assert judge.accuracy == whole.stages["apgd-t"]
    assert 0 < judge.accuracy.correct < record.clean.top1.correct
    assert not (right[names[1]] & ~right[names[0]]).any()
    assert judge.settings.version == "APGD-CE + APGD-T, the first two stages of AutoAttack"
    (line,) = (line for line in table(record).splitlines() if line.startswith("apgd_ce_t"))
    assert judge.settings.version in line
    assert record.worst_cases[0].attacks == names


def test_stages_count_the_images_that_are_left():
    rows = {
        "fooled_at": torch.tensor([0.1, math.inf, 0.1, 0.1, math.inf], dtype=torch.float64),
        "stage": torch.tensor([0, 4, 3, 1, 4]),
    }
    attack = Attack("autoattack", {"norm": "linf", "eps": 0.1}, None)
    stages = attack_record(attack, rows, n=10).stages
    assert [stage.correct for stage in stages.values()] == [4, 3, 3, 2]


def test_a_network_that_is_always_wrong_has_a_record(loaded):
    """No image is left to attack: that is an accuracy of 0, not a crash."""
    always_wrong = nn.Sequential(loaded.network, ShiftedClasses())
    record = run(replace(loaded, network=always_wrong), "fgsm", "sweep", "simba_dct", num=5)
    assert [correct(record, name) for name in ("fgsm", "simba_dct")] == [0, 0]
    assert {point.accuracy.correct for point in attack_of(record, "sweep").points} == {0}
    assert "0.00 %" in table(record)


class Constant(nn.Module):
    """It sees nothing and always says the same class."""

    def __init__(self, label: int):
        super().__init__()
        self.scores = nn.functional.one_hot(torch.tensor([label]), 10).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.expand(len(x), 10) + 0 * x.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("num", [None, 60])
def test_chance_is_the_share_of_the_largest_class(loaded, num):
    """1 / K is below what always saying it scores: that would be a doubt about nothing."""
    positions = evaluated(loaded, num=num)[1]["positions"]
    labels = load_images(DIGITS, "test").labels[positions]
    largest = labels.bincount()
    constant = replace(loaded, network=Constant(int(largest.argmax())), sha256="d" * 64)
    record = run(constant, "sweep", num=num)
    assert record.chance == int(largest.max()) / len(labels) == record.clean.top1.value > 0.1
    confidence = math.e / (math.e + 9)
    assert record.clean.ece == pytest.approx(abs(record.chance - confidence))
    wrong = math.log(math.e + 9)
    assert record.clean.nll.mean == pytest.approx(wrong - record.chance)
    assert f"NLL {record.clean.nll.mean:.2f} nats, 95 % interval " in table(record)
    assert [check.passed for check in record.checks] == [True]


class ShiftedClasses(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.roll(1, dims=1)


def test_gains_are_computed_once_an_evaluation(tmp_path, monkeypatch):
    """Catches an evaluation that transforms the same weights in every forward pass."""
    import convnorm.functional

    calls = []
    original = convnorm.functional.spectral_gain

    def counting(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(convnorm.functional, "spectral_gain", counting)
    config = tiny_classifier({"normalizer.kind": "convnorm"})
    network = build(config, 10, (0.5,), (0.5,)).eval()
    classes = tuple("0123456789")
    loaded = LoadedClassifier(
        network, config, classes, 1, 0, 0, tmp_path / "last.pt", "c" * 64, TRAINED_ON
    )
    record = run(loaded, "fgsm", "pgd2", "corruptions")
    assert attack_of(record, "pgd2").num_attacked > 0
    assert len(calls) == 4  # layers


# ------------------------------------------------------------------------------------ resuming


def crash_after(monkeypatch, batches: int) -> list[int]:
    """Make a measurement end in its next batch after so many; return the sizes computed."""
    computed = []
    original = Subject._fitting

    def crashing(self, compute, batch):
        if len(computed) == batches:
            raise KeyboardInterrupt
        computed.append(len(batch))
        return original(self, compute, batch)

    monkeypatch.setattr(Subject, "_fitting", crashing)
    return computed


NAMES = ("fgsm", "pgd3", "simba_pixel", "sweep", "corruptions")
QUICK = Budget(eps=64, max_queries=20)


def forget(loaded: LoadedClassifier) -> None:
    for file in (loaded.file.parent / "evaluation").glob("*.pt"):
        file.unlink()


@pytest.mark.parametrize("batches", [0, 1, 5, 16])
def test_killed_and_resumed_it_ends_with_the_same_json(loaded, monkeypatch, batches):
    """Catches a batch that is lost, done twice, or cut elsewhere after the kill."""
    whole = run(loaded, *NAMES, budget=QUICK)
    forget(loaded)
    with monkeypatch.context() as patch:
        before = crash_after(patch, batches)
        with pytest.raises(KeyboardInterrupt):
            run(loaded, *NAMES, budget=QUICK)
    computed = crash_after(monkeypatch, -1)
    assert text(run(loaded, *NAMES, budget=QUICK)) == text(whole)
    queue = whole.clean.top1.correct
    assert before + computed == [25, 25, 10] + 4 * [25, 25, queue - 50] + 2 * [25, 25, 10]


def test_what_is_there_is_not_computed_again(loaded, monkeypatch):
    first = run(loaded, *NAMES, budget=QUICK)
    crash_after(monkeypatch, 0)
    assert text(run(loaded, *NAMES, budget=QUICK)) == text(first)


def test_a_record_is_a_function_of_what_was_measured(loaded):
    """Not of the order: what was measured before under the same settings belongs to it."""
    whole = run(loaded, *NAMES, budget=QUICK)
    forget(loaded)
    for name in reversed(NAMES):
        found = evaluate(loaded, Options((name,), QUICK, num=60, batch_size=25), CPU)
        assert found.computed & {name, "shot_noise"}
        assert not found.computed & set(NAMES) - {name}
        told = told_apart(found.record, found.computed).splitlines()
        assert told[0] == f"measured now: {'clean, ' * (name == NAMES[-1])}{name}"
    assert told[1] == "measured before: clean, pgd3, simba_pixel, sweep, corruptions"
    assert text(found.record) == text(whole)
    assert text(run(loaded, budget=QUICK)) == text(whole)
    assert evaluate(loaded, Options((), QUICK, num=60, batch_size=25), CPU).computed == set()


def test_what_was_measured_in_another_way_or_not_to_its_end_is_not_in_a_record(loaded, monkeypatch):
    """pgd3's accuracy at eps 64 would stand where that at eps 8 is expected."""
    run(loaded, *NAMES, budget=QUICK)
    assert [attack.name for attack in run(loaded, "fgsm").attacks] == ["fgsm", "sweep"]
    assert run(loaded, "fgsm", num=61).attacks[1:] == ()
    with monkeypatch.context() as patch:
        crash_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(loaded, "pgd4", budget=QUICK)
    assert "pgd4" not in [attack.name for attack in run(loaded, budget=QUICK).attacks]


@pytest.mark.parametrize(
    "change",
    [
        {"budget": Budget(eps=4)},
        {"budget": Budget(seed=1)},
        {"budget": Budget(step_size=1)},
        {"num": 61},
        {"batch_size": 26},
        {"split": "validation"},
        {"checkpoint": "d" * 64},
    ],
    ids=str,
)
def test_whatever_decides_a_result_makes_it_new(loaded, monkeypatch, change):
    """Catches a number that is shown for another network, image or setting than its own."""
    run(loaded, "pgd2")
    computed = crash_after(monkeypatch, -1)
    change = dict(change)
    changed = replace(loaded, sha256=change.pop("checkpoint", loaded.sha256))
    run(changed, "pgd2", **change)
    assert computed


def test_results_of_single_images_are_kept_for_paired_tests(loaded):
    record = run(loaded, "fgsm")
    (file,) = (loaded.file.parent / "evaluation").glob("fgsm-*.pt")
    state = torch.load(file, weights_only=True)
    assert len(state["positions"]) == len(state["rows"]["fooled_at"]) == state["done"]
    survived = (state["rows"]["fooled_at"] > EPS).sum()
    assert survived == correct(record, "fgsm")
    assert state["facts"]["eps"] == EPS


@pytest.mark.parametrize(
    "change",
    [
        {"done": -1},
        {"done": None},
        {"done": 10**9},
        {"done": 59},
        {"rows": None},
        {"rows": {}},
        {"rows": {"fooled_at": 1.0}},
        {"positions": torch.arange(3)},
        {"facts": {}},
        {"hardware": [1]},
    ],
    ids=str,
)
def test_a_measurement_that_is_not_whole_is_named_and_kept(loaded, change):
    """Asked for or not: a record without it would lack what was measured."""
    run(loaded, "fgsm")
    (file,) = (loaded.file.parent / "evaluation").glob("fgsm-*.pt")
    checkpoint.save(file, torch.load(file) | change)
    damaged = file.read_bytes()
    for names in (["fgsm"], []):
        with pytest.raises(InputError, match=rf"{file}: damaged; expected what evaluate_cls"):
            run(loaded, *names)
    assert file.read_bytes() == damaged


def test_hardware_of_a_resumed_measurement_is_told_in_full(loaded, monkeypatch):
    with monkeypatch.context() as patch:
        crash_after(patch, 1)
        patch.setattr("classification.per_image.hardware", lambda device: "machine A")
        with pytest.raises(KeyboardInterrupt):
            run(loaded)
    monkeypatch.setattr("classification.per_image.hardware", lambda device: "machine B")
    assert run(loaded).hardware == ("machine A", "machine B")


# ------------------------------------------------------------------------------------- doubts


def test_sweep_falls_to_chance_on_an_ordinary_network(loaded):
    record = run(loaded, "fgsm", "pgd20", "sweep")
    points = attack_of(record, "sweep").points
    assert [255 * point.eps for point in points] == [1, 2, 4, 8, 16, 32, 64, 128]
    counts = [record.clean.top1.correct, *(point.accuracy.correct for point in points)]
    assert counts == sorted(counts, reverse=True)
    assert points[3].accuracy.correct <= correct(record, "pgd20")
    assert points[-1].accuracy.correct == 0
    assert [check.passed for check in record.checks] == [True, True]


def test_masked_gradients_are_noticed(loaded):
    """A network that gradients say nothing about looks robust; the checks must not believe it."""
    masked = replace(loaded, network=Rounded(loaded.network))
    budget = Budget(eps=48, max_queries=130)
    record = run(masked, "fgsm", "pgd20", "simba_pixel", "sweep", budget=budget)
    passed = {check.name: check.passed for check in record.checks}
    assert passed["sweep ends at chance"] is False
    assert [ok for name, ok in passed.items() if name.endswith("simba_pixel")] == [False]
    assert table(record).count("DOUBT: ") >= 2


def an_attack(name: str, right: int, **settings) -> AttackRecord:
    """A linf attack at eps 0.1 on 100 images, after which the network is right about so many."""
    given = AttackSettings("linf", 0.1, **settings)
    return AttackRecord(name, given, 100, accuracy(right, 100), (), {}, None)


def test_fewer_fooled_by_many_steps_than_by_one_is_a_doubt():
    one_step, steps = an_attack("fgsm", 40), {"steps": 20, "step_size": 0.025}
    for right, passed in ((45, True), (60, False)):
        found = checks([one_step, an_attack("pgd20", right, **steps)], chance=0.1)
        assert [check.passed for check in found] == [passed]
    short = an_attack("pgd20", 60, **steps | {"steps": 2})
    assert checks([one_step, short], chance=0.1) == ()  # cannot cross the ball: no wonder, no doubt


def test_square_that_finds_much_more_is_a_doubt():
    names = ("apgd-ce", "apgd-t", "fab-t", "square")
    for last, passed in ((48, True), (20, False)):
        counts = (52, 50, 50, last)
        stages = {name: accuracy(k, 100) for name, k in zip(names, counts, strict=True)}
        attack = replace(an_attack("autoattack", last), stages=stages)
        assert [check.passed for check in checks([attack], chance=0.1)] == [passed]


# -------------------------------------------------------------------------------- corruptions


def test_corruptions_are_those_of_the_images_positions(loaded):
    """Catches corruptions numbered within a batch, and severities that are off by one."""
    record = run(loaded, "corruptions").corruptions
    test = load_images(DIGITS, "test")
    state = torch.load(next((loaded.file.parent / "evaluation").glob("clean-*")))
    positions = state["positions"]
    for severity in (1, 5):
        images = corruptions.corrupt(
            test.images[positions], "shot_noise", severity, seed=0, indices=positions
        )
        right = loaded.network(images.float() / 255).argmax(1) == test.labels[positions]
        assert record.accuracies["shot_noise"][severity - 1].correct == right.sum()
    assert "saturate" not in record.accuracies  # digits are gray
    assert record.sources[0].source == corruptions.VERSION


def of_corruptions(*names: str, **settings: str | int) -> Corruptions:
    """Right about the first 60 of 100 images under contrast, and about the others elsewhere."""
    first = torch.zeros(100, 5, dtype=torch.bool)
    first[:60] = True
    right = {name: first if name == "contrast" else ~first for name in names}
    return corruption_record(right, [Corruption(name, settings, None) for name in names])


def test_means_leave_out_the_extra_corruptions_and_know_how_many_images_there_are():
    """An interval from 15 x 5 x 100 draws would be too narrow for 100 images."""
    record = of_corruptions("contrast", "fog", "spatter", source="official", sha256="f")
    assert record.mean_over == ("contrast", "fog")
    assert record.mean.value == 0.5
    assert record.mean.interval == accuracy(50, 100).interval
    assert record.mean_by_corruption["spatter"].value == pytest.approx(0.4)
    assert record.mean_extra.value == pytest.approx(0.4)
    assert record.mean_extra.interval == accuracy(40, 100).interval


@pytest.mark.parametrize(
    ("names", "over", "extra"),
    [
        ((*corruptions.FIFTEEN, "rain", *corruptions.EXTRA), corruptions.FIFTEEN, True),
        (corruptions.FIFTEEN, corruptions.FIFTEEN, False),
        (("contrast", "rain"), ("contrast",), True),
        (("saturate", "spatter"), ("saturate", "spatter"), False),
    ],
)
def test_the_mean_is_over_the_fifteen_and_all_others_are_extra(names, over, extra):
    """A corruption of the user's own would be in a mean that is called CIFAR-10-C's."""
    record = of_corruptions(*names, source="official", sha256="f")
    assert record.mean_over == over
    assert (record.mean_extra is not None) == extra


def corruption_lines(loaded: LoadedClassifier, found: Corruptions) -> list[str]:
    """The table's lines from the first corruption on."""
    record = replace(run(loaded), corruptions=found)
    lines = table(record).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(found.mean_over[0]))
    return lines[start:-2]


def test_the_table_says_whose_mean_it_is_and_sets_the_extra_ones_apart(loaded):
    """A mean that is called official is over all fifteen, and from the official files."""
    every = (*corruptions.FIFTEEN, *corruptions.EXTRA)
    official = corruption_lines(loaded, of_corruptions(*every, source="official", sha256="f"))
    assert "severities 1 to 5, official mean of 15 " in official[20]
    assert official[21] == "extra corruptions, not in the mean above:"
    assert [line.split()[0] for line in official[22:26]] == list(corruptions.EXTRA)
    assert "severities 1 to 5, mean of 4 extra " in official[26]
    assert official[-1] == ("corruptions: of the official files; the mean is over CIFAR-10-C's 15")
    for names in (("fog", "contrast"), corruptions.FIFTEEN[:14], corruptions.EXTRA):
        some = corruption_lines(loaded, of_corruptions(*names, source="official", sha256="f"))
        assert not any("official mean" in line for line in some)
        assert f"severities 1 to 5, mean of {len(names)} " in some[len(names) + 5]
        assert f"the mean is over {', '.join(names)}, not over CIFAR-10-C's 15" in some[-1]


def test_the_table_says_that_local_corruptions_are_local_and_frost_is_procedural(
    loaded, monkeypatch
):
    monkeypatch.setattr("classification.corruption_sources.CORRUPTIONS", corruptions.CORRUPTIONS)
    sources = made_here(load_images(DIGITS, "test"), seed=0)
    right = {source.name: torch.ones(10, 5, dtype=torch.bool) for source in sources}
    record = corruption_record(right, sources)
    assert record.mean_over == corruptions.FIFTEEN
    lines = corruption_lines(loaded, record)
    assert lines[corruptions.FIFTEEN.index("frost")].startswith("frost (procedural) ")
    assert not any("official" in line for line in lines)
    assert "severities 1 to 5, local mean of 15 " in lines[20]
    assert lines[-1] == (
        f"corruptions: made here ({corruptions.VERSION}), frost is procedural; the mean is over "
        "CIFAR-10-C's 15; published numbers are of other images"
    )
    assert plot(replace(run(loaded), corruptions=record)).startswith(b"\x89PNG")


def test_a_record_from_before_the_mean_of_the_extra_ones_loads(loaded):
    """It has twelve corruptions, and neither the mean of the extra ones nor notes."""
    old = of_corruptions("contrast", "fog", "saturate", source="local-1", seed=0, pillow="11")
    record = replace(run(loaded), corruptions=replace(old, mean_extra=None))
    content = to_json(record)
    del content["corruptions"]["mean_extra"]
    for source in content["corruptions"]["sources"]:
        del source["note"]
    assert from_json(Evaluation, content, "FILE") == record
    lines = corruption_lines(loaded, record.corruptions)
    assert "local mean of 2 " in lines[7]
    assert lines[8].startswith("extra corruptions")
    assert lines[9].startswith("saturate ")
    assert "made here (local-1); the mean is over contrast, fog, not over" in lines[-1]


def official_folder(folder: Path, names: tuple[str, ...] = ("contrast", "fog")) -> Path:
    """Files as CIFAR-10-C's, of digits: severity s inverts the first 60 s images."""
    test = load_images(DIGITS, "test")
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(test.labels.numpy(), 5))
    severities = []
    for severity in range(1, 6):
        images = test.images.permute(0, 2, 3, 1).numpy().copy()
        images[: 60 * severity] = 255 - images[: 60 * severity]
        severities.append(images)
    for name in names:
        np.save(folder / f"{name}.npy", np.concatenate(severities))
    return folder


def test_official_files_are_read_at_the_images_positions(loaded, tmp_path):
    folder = official_folder(tmp_path / "official")
    record = run(loaded, "corruptions", corruptions_dir=folder, num=100).corruptions
    test = load_images(DIGITS, "test")
    state = torch.load(next((loaded.file.parent / "evaluation").glob("clean-*")))
    positions = state["positions"]
    for severity, found in enumerate(record.accuracies["fog"], start=1):
        x = test.images[positions].float() / 255
        inverted = positions < 60 * severity
        x[inverted] = 1 - x[inverted]
        right = loaded.network(x).argmax(1) == test.labels[positions]
        assert found.correct == right.sum()
    assert record.mean_over == ("contrast", "fog")
    assert {source.source for source in record.sources} == {"official"}


def test_other_official_files_are_other_results(loaded, tmp_path):
    """The hash of a file is part of what its results depend on, not its name alone."""
    folder = official_folder(tmp_path / "official", ("fog",))
    first = run(loaded, "corruptions", corruptions_dir=folder).corruptions
    np.save(folder / "fog.npy", np.zeros((1800, 8, 8, 1), np.uint8))
    second = run(loaded, "corruptions", corruptions_dir=folder).corruptions
    assert second.mean.value < first.mean.value


# -------------------------------------------------------------------------------------- table


def test_table_has_a_line_for_every_accuracy(loaded):
    record = run(loaded, "fgsm", "pgd20x2", "sweep", "corruptions")
    lines = table(record).splitlines()
    assert sum(line.startswith("sweep ") for line in lines) == 8
    for start in ("clean ", "fgsm ", "pgd20x2 ", "worst case ", "shot_noise ", "corruptions"):
        assert any(line.startswith(start) for line in lines), start
    (line,) = (line for line in lines if line.startswith("pgd20x2 "))
    found = attack_of(record, "pgd20x2").accuracy
    low, high = (100 * end for end in found.interval)
    assert "linf 8/255, 20 steps of 2/255, 2 restarts" in line
    assert f" {100 * found.value:.2f} %" in line
    assert f"{low:.2f} to" in line
    assert line.endswith(f" {high:.2f}")
    assert lines[-2].startswith("ok: sweep") or lines[-1].startswith("ok: sweep")


def test_a_picture_is_a_png(loaded):
    assert plot(run(loaded, "fgsm", "sweep", "corruptions")).startswith(b"\x89PNG")


def test_a_record_without_checks_says_so(loaded):
    assert "not checked for masked gradients" in table(run(loaded, "pgd1"))


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["pgd"], "no attack is named 'pgd'; expected fgsm, pgd<STEPS>"),
        (["fgsm", "pgd0"], "no attack is named 'pgd0'; expected fgsm, pgd<"),
        (["pgd20x0"], "no attack is named 'pgd20x0'; expected fgsm, pgd<"),
        (["fgsm_l2"], "no attack is named 'fgsm_l2'; expected fgsm, pgd<"),
        ([""], "no attack is named ''; expected fgsm, pgd<"),
        (["PGD20"], "no attack is named 'PGD20'; expected pgd20"),
        (["PGD-20x2_L2"], "no attack is named 'PGD-20x2_L2'; expected pgd20x2_l2"),
        (["AutoAttack"], "no attack is named 'AutoAttack'; expected autoattack"),
        (["APGD-CE-T_L2"], "no attack is named 'APGD-CE-T_L2'; expected apgd_ce_t_l2"),
        (["simba-pixel"], "no attack is named 'simba-pixel'; expected simba_pixel"),
        (["Corruptions"], "no attack is named 'Corruptions'; expected corruptions"),
        (["fgsm,pgd20"], "named 'fgsm,pgd20'; expected fgsm and pgd20, each by itself"),
        (["FGSM, sweep"], "named 'FGSM, sweep'; expected fgsm and sweep, each by itself"),
        (["pgd1000000000"], "'pgd1000000000' is not allowed; expected 1 to 10,000 steps"),
        (["pgd" + "9" * 5000], "9 is not allowed; expected 1 to 10,000 steps"),
        (["pgd20x1001"], "'pgd20x1001' is not allowed; expected 1 to 1,000 restarts"),
    ],
)
def test_unknown_attacks_are_told_before_any_work(loaded, tmp_path, names, message):
    with pytest.raises(InputError, match=message) as error:
        run(loaded, *names)
    assert len(str(error.value)) < 250
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 0}, "num: 0 is not allowed; expected 1 or more"),
        ({"num": 361}, "num: 361 is not allowed; expected at most the 360 images of the test"),
        ({"num": -1}, "num: -1 is not allowed; expected 1 or more"),
        ({"num": 5.0}, "num: 5.0 is not allowed; expected 1 or more, a whole number"),
        ({"split": "train"}, "split: 'train' is not allowed; expected test or validation"),
        ({"num": 10**24}, "num: 10{24} is not allowed; expected at most the 360 images"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed; expected 1 to 100,000"),
        ({"batch_size": 10**24}, "batch_size: 10{24} is not allowed; expected 1 to 100,000"),
        ({"budget": Budget(eps_l2=4.1)}, "eps_l2: 4.1 is not allowed; expected at most 4, within"),
        ({"corruptions_dir": Path("absent")}, "corruptions_dir: 'absent' is not allowed; expected"),
    ],
)
def test_wrong_options_are_told(loaded, change, message):
    with pytest.raises(InputError, match=message):
        run(loaded, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_queries": 0}, "max_queries: 0 is not allowed; expected 1 to 1,000,000"),
        ({"max_queries": 10**24}, "max_queries: 10{24} is not allowed; expected 1 to 1,000,000"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"seed": 2**63}, r"seed: \d+ is not allowed; expected 0 to 2\*\*63 - 1"),
    ],
)
def test_wrong_budgets_are_told(change, message):
    with pytest.raises(InputError, match=message):
        Budget(**change)


def test_official_files_that_do_not_fit_are_told(loaded, tmp_path):
    """Nothing is measured, and no folder is left, where a file is of another shape."""
    folder = official_folder(tmp_path / "official")
    np.save(folder / "fog.npy", np.zeros((1800, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match=r"fog\.npy: got uint8 \(1800, 32, 32, 3\), expected"):
        run(loaded, "corruptions", corruptions_dir=folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no corruption in it"):
        run(loaded, "corruptions", corruptions_dir=tmp_path / "empty")
    with pytest.raises(InputError, match="expected the test split"):
        run(loaded, "corruptions", corruptions_dir=folder, split="validation")
    assert not (tmp_path / "evaluation").exists()


def test_images_that_are_too_small_to_corrupt_are_told_before_any_work(loaded, tmp_path):
    config = tiny_classifier({"data.image_size": 2, "train.crop": 1})
    small = replace(loaded, config=config)
    with pytest.raises(InputError, match="corruptions: the images have 2x2 pixels; expected at"):
        run(small, "fgsm", "corruptions")
    assert not (tmp_path / "evaluation").exists()


def test_validation_of_a_run_that_held_nothing_out_is_told(loaded):
    config = tiny_classifier({"split.validation": 0})
    with pytest.raises(InputError, match=r"split.validation is 0; expected test"):
        run(replace(loaded, config=config), split="validation")


def test_validation_of_other_training_data_is_refused(loaded):
    """What the run held out would be among what it was trained on, and nobody could see it."""
    with pytest.raises(InputError, match=r"data.root: .* other training data than the run had"):
        run(replace(loaded, data_sha256="0" * 64), split="validation")
    assert run(replace(loaded, data_sha256="0" * 64), "fgsm").data.split == "test"


@pytest.mark.parametrize("name", ["autoattack", "autoattack_l2", "apgd_ce_t", "apgd_ce_t_l2"])
def test_autoattack_on_three_classes_is_refused_before_any_work(loaded, tmp_path, name):
    pytest.importorskip("pyautoattack")
    with pytest.raises(InputError, match=f"{name}: needs at least 4 classes, the model has 3"):
        run(replace(loaded, classes=tuple("012")), "pgd20", name)
    assert not (tmp_path / "evaluation").exists()


def test_tiles_that_do_not_fit_are_told_before_any_work(loaded, tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack")

    def fits_nothing(name, height, width):
        raise InputError(f"{name}: {height}x{width}")

    monkeypatch.setattr(evaluate_module, "check_tiles", fits_nothing)
    with pytest.raises(InputError, match="autoattack_l2: 8x8"):
        run(loaded, "autoattack_l2")
    assert not (tmp_path / "evaluation").exists()


def test_a_rounding_that_is_asked_for_around_it_does_not_reach_a_record(loaded, tmp_path):
    """Its rows would be taken for those of float32 ever after."""
    expected = text(run(loaded, "fgsm"))
    forget(loaded)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert text(run(loaded, "fgsm")) == expected
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_digits_cannot_have_moved(loaded):
    """--data_root would be read by nobody, and the result taken for that of other data."""
    with pytest.raises(InputError, match="data_root: 'elsewhere' is not allowed"):
        run(loaded, data_root="elsewhere")


def test_data_that_do_not_fit_the_network_are_told(loaded, tmp_path):
    """Labels beyond the network's, classes in another order, and colour for a gray network."""
    with pytest.raises(InputError, match=r"9 classes 0, .*; the images have the 10 classes 0, "):
        run(replace(loaded, classes=tuple("012345678")))
    with pytest.raises(InputError, match="11 classes 0, "):  # a class that no image has
        run(replace(loaded, classes=(*"0123456789", "10")))
    with pytest.raises(InputError, match="classes 9, 8, 7"):
        run(replace(loaded, classes=tuple("9876543210")))
    with pytest.raises(InputError, match="a network for 3 channels; the images have 1"):
        run(replace(loaded, channels=3))


def test_data_that_have_moved_are_found_with_data_root(loaded, tmp_path):
    test = load_images(DIGITS, "test")
    images = test.images.permute(0, 2, 3, 1).numpy()
    for split_name in ("train", "test"):
        np.savez(tmp_path / f"{split_name}.npz", images=images, labels=test.labels.numpy())
    changes = {"data.name": "npz", "data.root": str(tmp_path / "gone" / "train.npz")}
    moved = replace(loaded, config=tiny_classifier(changes))
    with pytest.raises(InputError, match=r"data.root: .*gone"):
        run(moved)
    record = run(moved, data_root=str(tmp_path / "train.npz"))
    assert record.clean == run(loaded).clean


def test_a_network_that_has_diverged_is_told(loaded):
    diverged = nearest_mean(sharpness=math.inf)
    with pytest.raises(InputError, match="outputs are not finite"):
        run(replace(loaded, network=diverged))


def test_a_batch_that_does_not_fit_is_told_with_the_option(loaded, monkeypatch):
    def exhausted(*args, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(named_attacks, "fgsm", exhausted)
    with pytest.raises(InputError, match="batch_size: 25 images do not fit into the memory"):
        run(loaded, "fgsm")


def test_settings_of_a_name():
    """Catches an l2 attack in grey levels, a step of the other norm, and restarts that are lost."""
    budget = Budget(eps=4, eps_l2=2.0, step_size=3, seed=5)
    assert attack_named("pgd50x10", budget).settings == {
        "norm": "linf",
        "eps": 4 / 255,
        "step_size": 3 / 255,
        "steps": 50,
        "restarts": 10,
        "seed": 5,
    }
    l2 = attack_named("pgd7_l2", budget).settings
    assert (l2["norm"], l2["eps"], l2["step_size"], l2["restarts"]) == ("l2", 2.0, 0.5, 1)
