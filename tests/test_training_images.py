"""A fraction of the images trains a GAN: the same for every normalizer, and never for scores."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from runs import ALONE, SCORED, log_of, run, state_of, tiny

from convnorm.experiment.data import Images, load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.batches import sha256_of
from gan.benchmark import GAN
from gan.draws import Drawing
from gan.losses import LOSSES
from gan.training_images import training_images

# 50 images of each of 10 classes, in random order; image i has the value i.
LABELS = torch.randperm(500, generator=torch.Generator().manual_seed(0)) % 10
NUMBERS = torch.arange(500).view(-1, 1, 1, 1)
DATA = Images(
    torch.cat([NUMBERS % 256, NUMBERS // 256], dim=-1).to(torch.uint8),
    LABELS,
    tuple("abcdefghij"),
    "500 images",
)


def chosen(fraction: float, changes: dict | None = None) -> Images:
    return training_images(DATA, tiny({"train.fraction": fraction, **(changes or {})}))


def numbers(images: Images) -> list[int]:
    low, high = images.images.long().flatten(1).unbind(1)
    return (low + 256 * high).tolist()


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.99])
def test_every_class_gives_the_same_fraction(fraction):
    images = chosen(fraction)
    assert images.labels.bincount().tolist() == [round(50 * fraction)] * 10
    assert torch.equal(images.labels, LABELS[numbers(images)])  # its own labels
    assert images.classes == DATA.classes
    assert images.found == f"500 images; {10 * round(50 * fraction)} to train on"


def test_a_smaller_fraction_is_part_of_a_larger_one():
    found = [numbers(chosen(fraction)) for fraction in (0.02, 0.1, 0.3, 0.5, 1.0)]
    assert all(set(smaller) < set(larger) for smaller, larger in pairwise(found))
    assert all(each == sorted(each) for each in found)
    assert chosen(1.0) is DATA


def test_the_images_depend_on_the_seed_alone():
    """Drawn from a stream that other options move, cells of a grid would see other images."""
    images = numbers(chosen(0.1))
    other = {"normalizer.kind": "none", "train.batch_size": 4, "train.flip": True, "steps": 9}
    torch.manual_seed(5)
    assert numbers(chosen(0.1, other)) == images
    assert numbers(chosen(0.1, {"seed": 1})) != images


def test_a_class_without_an_image_is_named():
    few = replace(DATA, labels=torch.where(NUMBERS.flatten() < 4, 3, LABELS % 3))
    with pytest.raises(InputError) as error:
        training_images(few, tiny({"train.fraction": 0.1}))
    assert str(error.value) == (
        "train.fraction: 0.1 of the 4 images of class 'd' is no image; expected more"
    )


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(
        InputError, match=r"^train\.fraction: .* is not allowed; expected more than"
    ):
        tiny({"train.fraction": fraction})


@pytest.mark.parametrize("key", ["train.batch_size", "train.generator_batch_size"])
def test_a_batch_of_more_images_than_train_is_refused_by_its_key(key, monkeypatch):
    monkeypatch.setitem(LOSSES, "hinge", replace(LOSSES["hinge"], compares=True))
    config = tiny({"train.fraction": 0.02, key: 11})
    with pytest.raises(InputError, match=rf"^{key}: got 11, expected 1 to 10, the number of train"):
        Drawing(config, training_images(DATA, config), ALONE)


def test_a_run_trains_on_its_fraction_and_is_scored_on_all_images(tmp_path, capsys):
    changes = {**SCORED, "steps": 1}
    run(tmp_path / "all", changes)
    capsys.readouterr()
    run(tmp_path / "part", {**changes, "train.fraction": 0.1})
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("data: "))
    config = tiny({"train.fraction": 0.1})
    images = load_images(config.data)
    part = training_images(images, config)
    assert line == f"data: {images.found}; {len(part.images)} to train on"
    sha256 = [sha256_of(images), sha256_of(part)]
    assert [state_of(tmp_path / name)["data_sha256"] for name in ("all", "part")] == sha256
    whole, part = (log_of(tmp_path / name, "metrics.jsonl")[-1] for name in ("all", "part"))
    assert (part["real"], part["floor"]) == (whole["real"], whole["floor"])


def test_fractions_can_be_compared_in_one_grid():
    """They are measured alike; a field of `data` would be refused as an axis."""
    some, every = (GAN.conditions(tiny({"train.fraction": f}), ()) for f in (0.1, 1.0))
    assert some == every
