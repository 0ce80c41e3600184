"""Noisy labels follow the definition of their kind, whatever else a run does."""

import io
import json
import random
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy.stats import binom

from classification import human_labels
from classification.label_noise import (
    CIFAR10,
    CIFAR100,
    CIFAR100_SUPERCLASSES,
    DRAWN,
    NoiseConfig,
    describe,
    noisy_labels,
    save,
)
from convnorm.experiment.errors import InputError

CLASSES = {10: CIFAR10, 100: CIFAR100}
LABELS = {
    C: torch.randperm(50_000, generator=torch.Generator().manual_seed(C)) % C for C in CLASSES
}
RATES = (0.2, 0.4, 0.8)
KINDS = DRAWN
# What the files of CIFAR-100 say: the superclass, in alphabetical order, of each fine label.
# fmt: off
SUPERCLASS = torch.tensor([
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
])
# fmt: on


def transitions(kind: str, rate: float, C: int) -> torch.Tensor:
    """The shares (C, C) of each true class that got each label."""
    config = NoiseConfig(kind, rate)
    noisy = noisy_labels(LABELS[C], CLASSES[C], config)
    counted = torch.bincount(LABELS[C] * C + noisy, minlength=C**2).reshape(C, C)
    return counted.double() / (50_000 / C)


def assert_binomial(shares: torch.Tensor, expected: torch.Tensor, C: int):
    """Every share of a class's 50,000 / C images is as likely as one within 5 sigma, at least."""
    n = 50_000 // C
    low, high = binom.interval(1 - 5.7e-7, n, expected.numpy())
    counts = (shares * n).round().numpy()
    assert (low <= counts).all()
    assert (counts <= high).all()


def by_name(mistakes: dict[str, str], rate: float) -> torch.Tensor:
    """The transitions of a rule on CIFAR-10."""
    expected = torch.eye(10, dtype=torch.float64)
    for true, wrong in mistakes.items():
        expected[CIFAR10.index(true), CIFAR10.index(true)] = 1 - rate
        expected[CIFAR10.index(true), CIFAR10.index(wrong)] = rate
    return expected


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("C", CLASSES)
def test_symmetric_draws_from_all_classes_the_true_one_included(C, rate):
    expected = (1 - rate) * torch.eye(C, dtype=torch.float64) + rate / C
    assert_binomial(transitions("symmetric", rate, C), expected, C)


@pytest.mark.parametrize("rate", RATES)
def test_symmetric_changes_fewer_labels_than_its_rate(rate):
    """Reporting the requested rate as the actual one is the usual mistake."""
    config = NoiseConfig("symmetric", rate)
    noisy = noisy_labels(LABELS[10], CIFAR10, config)
    report = describe(LABELS[10], noisy, 10, config)
    bound = 5 * sqrt(rate * 50_000 * 0.9 * 0.1) / 50_000
    assert report["requested_rate"] == rate
    assert report["actual_rate"] == pytest.approx(rate * 0.9, abs=bound)
    assert report["actual_rate"] == (noisy != LABELS[10]).double().mean().item()


@pytest.mark.parametrize("kind", ["symmetric_exclusive", "pair"])
def test_the_rate_is_met_exactly_on_small_data(kind):
    """Drawn label by label, 40 % of the 1,437 digits may well be 43 %."""
    clean = LABELS[10][:1437]
    noisy = noisy_labels(clean, tuple("0123456789"), NoiseConfig(kind, 0.4))
    assert (noisy != clean).sum() == 575


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("C", CLASSES)
def test_symmetric_exclusive_draws_from_the_other_classes(C, rate):
    expected = torch.full((C, C), rate / (C - 1), dtype=torch.float64)
    expected.fill_diagonal_(1 - rate)
    assert_binomial(transitions("symmetric_exclusive", rate, C), expected, C)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("C", CLASSES)
def test_pair_takes_the_next_class_and_the_first_after_the_last(C, rate):
    following = torch.eye(C, dtype=torch.float64).roll(1, dims=1)
    expected = (1 - rate) * torch.eye(C) + rate * following
    assert_binomial(transitions("pair", rate, C), expected, C)


@pytest.mark.parametrize("rate", RATES)
def test_asymmetric_on_cifar10_exchanges_cats_and_dogs_without_a_chain(rate):
    """On labels already changed, cats would be turned back: 24 % noisy cats at a rate of 0.4."""
    mistakes = {"truck": "automobile", "bird": "airplane", "deer": "horse"}
    mistakes |= {"cat": "dog", "dog": "cat"}
    assert_binomial(transitions("asymmetric", rate, 10), by_name(mistakes, rate), 10)


@pytest.mark.parametrize("rate", RATES)
def test_asymmetric_as_published_turns_cats_to_dogs_and_back(rate):
    mistakes = {"truck": "automobile", "bird": "airplane", "deer": "horse", "dog": "cat"}
    expected = by_name(mistakes, rate)
    cat, dog = CIFAR10.index("cat"), CIFAR10.index("dog")
    noisy_cats = rate * (1 - rate)  # 0.24 at 0.4, as measured on the published code
    expected[cat, dog], expected[cat, cat] = noisy_cats, 1 - noisy_cats
    assert_binomial(transitions("asymmetric_as_published", rate, 10), expected, 10)


def test_cifar100_superclasses_are_those_of_its_files():
    """A misspelt or misplaced name would send labels out of their superclass."""
    assert len(CIFAR100) == len(set(CIFAR100)) == 100
    for index, name in enumerate(sorted(CIFAR100_SUPERCLASSES)):
        members = [CIFAR100[label] for label in (index == SUPERCLASS).nonzero().flatten().tolist()]
        assert list(CIFAR100_SUPERCLASSES[name]) == members


@pytest.mark.parametrize("rate", RATES)
def test_asymmetric_on_cifar100_takes_the_next_class_of_the_superclass(rate):
    shares = transitions("asymmetric", rate, 100)
    rows, columns = (shares - shares.diagonal().diag()).nonzero(as_tuple=True)
    assert torch.equal(rows, torch.arange(100))
    assert torch.equal(SUPERCLASS[rows], SUPERCLASS[columns])
    assert torch.equal(columns.sort().values, rows)  # a cycle, so every class stays as large
    expected = (1 - rate) * torch.eye(100, dtype=torch.float64)
    expected[rows, columns] = rate
    assert_binomial(shares, expected, 100)


@pytest.mark.parametrize("rate", RATES)
def test_asymmetric_as_published_leaves_the_superclass_for_94_of_100_classes(rate):
    shares = transitions("asymmetric_as_published", rate, 100)
    block = torch.arange(100) // 5 * 5
    columns = block + (torch.arange(100) + 1) % 5
    expected = (1 - rate) * torch.eye(100, dtype=torch.float64)
    expected[torch.arange(100), columns] = rate
    assert_binomial(shares, expected, 100)
    assert (SUPERCLASS[columns] == SUPERCLASS).sum() == 6


@pytest.mark.parametrize("kind", ["asymmetric", "asymmetric_as_published"])
@pytest.mark.parametrize("C", CLASSES)
def test_asymmetric_goes_by_names_not_by_positions(C, kind):
    """A data set in files may list the classes of CIFAR in another order."""
    order = torch.randperm(C, generator=torch.Generator().manual_seed(0))
    names = [CLASSES[C][label] for label in order.tolist()]
    config = NoiseConfig(kind, 0.4)
    reordered = noisy_labels(order.argsort()[LABELS[C]], names, config)
    assert torch.equal(order[reordered], noisy_labels(LABELS[C], CLASSES[C], config))


@pytest.mark.parametrize("kind", ["asymmetric", "asymmetric_as_published"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_asymmetric_is_refused_where_it_is_not_defined(kind, rate):
    """Ten classes without names are not CIFAR-10: 3 and 5 of the digits are no cats and dogs."""
    with pytest.raises(InputError, match=rf"noise\.kind: '{kind}' is defined for cifar10 and"):
        noisy_labels(LABELS[10], tuple("0123456789"), NoiseConfig(kind, rate))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("C", CLASSES)
def test_rate_0_leaves_every_label(C, kind):
    noisy = noisy_labels(LABELS[C], CLASSES[C], NoiseConfig(kind, 0.0))
    assert torch.equal(noisy, LABELS[C])


@pytest.mark.parametrize("kind", ["symmetric_exclusive", "pair"])
def test_rate_1_changes_every_label(kind):
    assert (noisy_labels(LABELS[10], CIFAR10, NoiseConfig(kind, 1.0)) != LABELS[10]).all()


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_the_clean_labels_stay_and_the_noisy_ones_are_a_copy(kind):
    clean = LABELS[10].clone()
    noisy = noisy_labels(clean, CIFAR10, NoiseConfig(kind, 0.0 if kind == "none" else 0.4))
    noisy += 1
    assert torch.equal(clean, LABELS[10])


@pytest.mark.parametrize("kind", KINDS)
def test_only_its_own_seed_changes_the_noise(kind):
    """Noise from the global stream would differ with the training seed and shift its numbers."""

    def draw(training_seed: int, seed: int) -> torch.Tensor:
        random.seed(training_seed)
        np.random.seed(training_seed)
        torch.manual_seed(training_seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        noisy = noisy_labels(LABELS[10], CIFAR10, NoiseConfig(kind, 0.4, seed))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert_array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]
        return noisy

    assert torch.equal(draw(0, seed=0), draw(1, seed=0))
    assert not torch.equal(draw(0, seed=0), draw(0, seed=1))


@pytest.mark.parametrize("kind", ["symmetric", "symmetric_exclusive", "pair", "asymmetric"])
def test_more_noise_adds_wrong_labels_and_keeps_those_there(kind):
    """Rates then differ by what was added, not by another draw."""
    clean = LABELS[10]
    for low, high in pairwise(RATES):
        less, more = (noisy_labels(clean, CIFAR10, NoiseConfig(kind, r)) for r in (low, high))
        changed = less != clean
        assert torch.equal(less[changed], more[changed])
        assert (more != clean).sum() > changed.sum()


@pytest.mark.parametrize(
    ("kind", "golden"),
    [
        ("symmetric", "5180456780846355388701542547190259456480"),
        ("symmetric_exclusive", "1104456788369305088401676557990550456886"),
        ("pair", "1134456780123355788001345577990234456880"),
        ("asymmetric", "0105456781010375678101057567890105456781"),
        ("asymmetric_as_published", "0123456789010373678101234367810125456789"),
    ],
)
def test_the_noise_stays_as_it_is(kind, golden):
    """Numbers of different versions of the suite are compared on the same labels."""
    config = NoiseConfig(kind, 0.4)
    noisy = noisy_labels(torch.arange(1000) % 10, CIFAR10, config)
    assert "".join(map(str, noisy[-40:].tolist())) == golden


def test_the_report_counts_a_part_of_the_labels_and_is_json():
    clean, noisy = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 2, 1, 1, 1, 0])
    report = describe(clean, noisy, 3, NoiseConfig("symmetric", 0.5, 7))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report.pop("sha256") == describe(clean * 0, noisy, 3, NoiseConfig())["sha256"]
    assert report == {
        "kind": "symmetric",
        "seed": 7,
        "requested_rate": 0.5,
        "images": 6,
        "actual_rate": 2 / 6,
        "class_rates": [0.5, 0.25, 0.0],
    }
    assert describe(clean[:0], noisy[:0], 3, NoiseConfig())["actual_rate"] == 0


def test_the_report_of_many_classes_needs_no_square_of_them():
    """Counts of pairs of a million classes are 8 TB."""
    labels = torch.arange(1_000_000)
    assert describe(labels, labels.flip(0), 1_000_000, NoiseConfig())["actual_rate"] == 1


def test_the_saved_file_tells_every_image_and_is_the_same_each_time(tmp_path):
    clean, noisy = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 2, 2, 0, 1])
    config = NoiseConfig("pair", 0.2, 3)
    files = tmp_path / "a.npz", tmp_path / "b.npz"
    for file in files:
        save(file, clean, noisy, torch.tensor([1, 4]), torch.tensor([0]), config)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == list(files)
    with np.load(files[0]) as saved:  # without pickles
        assert saved["indices"].tolist() == [0, 1, 2, 3, 4]
        assert saved["clean"].tolist() == clean.tolist()
        assert saved["noisy"].tolist() == noisy.tolist()
        assert saved["split"].tolist() == ["validation", "train", "unused", "unused", "train"]
        assert (saved["kind"], saved["rate"], saved["seed"]) == ("pair", 0.2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sym"}, r"noise\.kind: 'sym' is not allowed; expected one of none, symmetric,"),
        ({"kind": "pair", "rate": -0.1}, r"noise\.rate: -0\.1 is not allowed; expected 0 to 1"),
        ({"kind": "pair", "rate": 1.1}, r"noise\.rate: 1\.1 is not allowed; expected 0 to 1"),
        ({"kind": "pair", "rate": float("nan")}, r"noise\.rate: nan is not allowed"),
        ({"rate": 0.4}, r"noise\.rate: 0\.4 is not allowed; expected 0 where noise\.kind is none"),
        (
            {"kind": "human_worst"},
            r"noise\.file: None is not allowed; expected the path of CIFAR-10_human\.pt",
        ),
        (
            {"kind": "human_fine", "file": "labels.pt", "rate": 0.4},
            r"noise\.rate: 0\.4 is not allowed; expected 0 where noise\.kind is human_fine",
        ),
        ({"seed": -1}, r"noise\.seed: -1 is not allowed; expected 0 to 9223372036854775807"),
    ],
)
def test_a_bad_setting_is_refused_by_its_key(settings, message):
    with pytest.raises(InputError, match=message):
        NoiseConfig(**settings)


def test_one_class_cannot_be_mistaken_for_another():
    with pytest.raises(InputError, match=r"noise\.kind: 'symmetric_exclusive' is not allowed"):
        noisy_labels(
            torch.zeros(5, dtype=torch.int64), ("all",), NoiseConfig("symmetric_exclusive")
        )


# Labels that people gave: files as CIFAR-N has them, of other labels.


def humans(C: int, **changes) -> dict[str, np.ndarray]:
    """A file of CIFAR-N for the labels of these tests: every key has its own shift."""
    keys = [key for number, key in human_labels.KINDS.values() if number == C]
    clean = LABELS[C].numpy()
    shifted = {key: (clean + shift) % C for shift, key in enumerate(keys, 1)}
    return {"clean_label": clean, **shifted, **changes}


def as_of_numpy_1(content: bytes) -> bytes:
    """The bytes that an older numpy would have pickled."""
    assert b"numpy._core.multiarray" in content
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", human_labels.KINDS)
def test_human_labels_are_those_of_their_key(tmp_path, kind, old):
    """Another key, or a file of numpy 1 that cannot be read without running what it holds."""
    C, key = human_labels.KINDS[kind]
    content = io.BytesIO()
    torch.save(humans(C), content, _use_new_zipfile_serialization=False)
    file = tmp_path / f"CIFAR-{C}_human.pt"
    file.write_bytes(as_of_numpy_1(content.getvalue()) if old else content.getvalue())
    config = NoiseConfig(kind, file=str(file))
    noisy = noisy_labels(LABELS[C], CLASSES[C], config)
    assert_array_equal(noisy.numpy(), humans(C)[key])
    report = describe(LABELS[C], noisy, C, config)
    assert report["requested_rate"] is None
    assert report["actual_rate"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"human\.pt: No such file or directory; expected CIFAR-10_human"),
        (b"no pickle", r"human\.pt: damaged, or holds more than tensors and numbers; expected CIF"),
        (random.Random(0), r"human\.pt: damaged, or holds more than tensors and numbers"),
        ([1, 2], r"noise\.file: .*human\.pt has no clean_label; expected CIFAR-10_human\.pt"),
        ({"clean_label": LABELS[10]}, r"noise\.file: .*human\.pt has no worse_label"),
        (
            humans(10, clean_label=LABELS[10].flip(0)),
            r"noise\.file: .* holds 50000 labels, \d+ of them other than the 50000 of the data",
        ),
        (humans(10, clean_label=LABELS[10][:9]), r"noise\.file: .* holds 9 labels, other numbers"),
        (
            humans(10, worse_label=LABELS[10] + 1),
            r"noise\.file: .*human\.pt: worse_label has other labels than 0 to 9",
        ),
        (
            humans(10, worse_label=LABELS[10][:9]),
            r"noise\.file: .*human\.pt: worse_label has .* labels than",
        ),
        (
            humans(10, worse_label=LABELS[10][:0]),
            r"noise\.file: .*human\.pt: worse_label has .* labels than",
        ),
    ],
)
def test_a_file_that_is_not_of_these_images_is_refused(tmp_path, content, message):
    file = tmp_path / "human.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    config = NoiseConfig("human_worst", file=str(file))
    with pytest.raises(InputError, match=f"{message}[^\n]*$"):
        noisy_labels(LABELS[10], CIFAR10, config)


@pytest.mark.parametrize("kind", ["human_worst", "human_fine"])
def test_human_labels_are_of_cifar_alone(kind):
    with pytest.raises(
        InputError, match=rf"noise\.kind: '{kind}' is not allowed; expected another"
    ):
        noisy_labels(LABELS[10], tuple("0123456789"), NoiseConfig(kind, file="human.pt"))
