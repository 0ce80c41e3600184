"""Validation images are never trained on, and every run is compared on the same ones."""

from itertools import pairwise

import pytest
import torch

from classification.splits import SplitConfig, split
from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.errors import InputError

CIFAR_SIZED = torch.randperm(50_000, generator=torch.Generator().manual_seed(0)) % 10


def counts(labels, positions) -> list[int]:
    return torch.bincount(labels[positions]).tolist()


@pytest.mark.parametrize("train_fraction", [0.1, 0.5, 0.95, 1.0])
def test_no_image_both_trains_and_validates(train_fraction):
    """The reference code trains on its validation images above a fraction of 0.9."""
    train, validation = split(CIFAR_SIZED, SplitConfig(train_fraction=train_fraction))
    together = torch.cat([train, validation])
    assert len(together.unique()) == len(together)


@pytest.mark.parametrize("train_fraction", [0.01, 0.1, 0.3, 1.0])
def test_every_class_gives_the_same_fraction(train_fraction):
    train, validation = split(CIFAR_SIZED, SplitConfig(0.1, train_fraction))
    assert counts(CIFAR_SIZED, validation) == [500] * 10
    assert counts(CIFAR_SIZED, train) == [round(4500 * train_fraction)] * 10


def test_classes_of_different_sizes_give_their_fraction_rounded():
    labels = torch.tensor([0] * 104 + [1] * 56 + [3] * 15)  # nobody is of class 2
    train, validation = split(labels, SplitConfig(0.1, 0.5))
    assert counts(labels, validation) == [10, 6, 0, 2]
    assert counts(labels, train) == [47, 25, 0, 6]


def test_smaller_fractions_are_parts_of_larger_ones_and_selected_on_the_same_images():
    fractions = [0.01, 0.1, 0.25, 0.5, 1.0]
    splits = [split(CIFAR_SIZED, SplitConfig(train_fraction=f)) for f in fractions]
    for (smaller, validation), (larger, same) in pairwise(splits):
        assert torch.isin(smaller, larger).all()
        assert torch.equal(validation, same)
    assert len(splits[-1][0]) + len(splits[-1][1]) == len(CIFAR_SIZED)


def test_without_validation_every_image_trains():
    train, validation = split(CIFAR_SIZED, SplitConfig(validation=0))
    assert torch.equal(train, torch.arange(50_000))
    assert validation.shape == (0,)
    assert train.dtype == validation.dtype == torch.int64


def test_positions_are_sorted_and_drawn_all_over_the_file():
    """A prefix of every class would take the images that were collected first."""
    for positions in split(CIFAR_SIZED, SplitConfig(0.1, 0.1)):
        assert torch.equal(positions, positions.sort().values)
        assert positions.double().mean() == pytest.approx(25_000, abs=1200)  # over 5 sigma


def test_only_its_own_seed_changes_the_split():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = split(CIFAR_SIZED, SplitConfig())
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again = split(CIFAR_SIZED, SplitConfig())
    other = split(CIFAR_SIZED, SplitConfig(seed=1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_split_of_the_digits_stays_as_it_is():
    """Numbers of different versions of the suite are compared on the same images."""
    labels = load_images(DataConfig("digits", image_size=8)).labels
    train, validation = split(labels, SplitConfig(train_fraction=0.1))
    assert (len(train), len(validation)) == (129, 142)
    assert train[:8].tolist() == [6, 13, 23, 25, 38, 59, 63, 68]
    assert validation[:8].tolist() == [1, 22, 28, 32, 34, 40, 41, 49]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(0.1), "split.validation: 0.1 of the 3 images of class 1 is no image"),
        (SplitConfig(0.9), "split.validation: 0.9 of the 3 images of class 1 leaves none"),
        (SplitConfig(0.4, 0.1), "split.train_fraction: 0.1 of the 2 training images of class 1"),
    ],
    ids=["no validation", "no training", "too small a fraction"],
)
def test_a_class_too_small_to_divide_is_named(config, message):
    labels = torch.tensor([0] * 100 + [1] * 3)
    with pytest.raises(InputError) as error:
        split(labels, config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("validation", -0.1),
        ("validation", 1.0),
        ("validation", float("nan")),
        ("train_fraction", 0.0),
        ("train_fraction", 1.1),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(key, value):
    with pytest.raises(InputError, match=rf"split\.{key}: {value!r} is not allowed; expected"):
        SplitConfig(**{key: value})
