"""Minibatches: a pure function of seed and index, equal shares, augmentation that only moves."""

import pytest
import torch
from runs import ALONE

from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.batches import Batches, shifted
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.reading_ahead import sent_ahead


def numbered(num_images: int) -> Images:
    """(N, 1, 1, 4); image i holds i in its left half and 255 in its right half; label 3 i."""
    numbers = torch.arange(num_images)
    left = numbers.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2)
    return Images(torch.cat([left, torch.full_like(left, 255)], dim=-1), 3 * numbers, ("all",))


def drawn(batches: Batches, indices: range) -> list[int]:
    """The numbers of the images in these batches of `numbered`, whichever way they face."""
    return [n for i in indices for n in batches(i)[0].amin(dim=(1, 2, 3)).tolist()]


def equal(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


AUGMENTED = {"flip": True, "crop": 1}


def test_a_batch_depends_on_seed_and_index_alone():
    """State carried from batch to batch would make a resumed run see other images."""
    data = numbered(20)
    batches = Batches(data, 6, 0, ALONE, **AUGMENTED)
    first = [batches(index) for index in range(9)]
    for index in (8, 3, 0):
        assert equal(Batches(data, 6, 0, ALONE, **AUGMENTED)(index), first[index])
    assert equal(batches(2), first[2])  # back in an epoch that was left
    assert not equal(Batches(data, 6, 1, ALONE, **AUGMENTED)(0), first[0])


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order():
    batches = Batches(numbered(60), 10, 0, ALONE)
    epochs = [drawn(batches, range(6 * epoch, 6 * epoch + 6)) for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(60))
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_the_partial_batch_at_the_end_is_dropped():
    batches = Batches(numbered(25), 10, 0, ALONE)
    assert batches.per_epoch == 2
    assert len(set(drawn(batches, range(2)))) == 20
    assert len(set(drawn(batches, range(2, 4)))) == 20


def test_labels_stay_with_their_images():
    for options in ({}, {"flip": True}):
        images, labels = Batches(numbered(60), 50, 0, ALONE, **options)(1)
        assert (3 * images.amin(dim=(1, 2, 3)).long()).tolist() == labels.tolist()


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shares_of_all_processes_are_the_batch_of_one(world_size):
    data = numbered(20)
    shares = [
        Batches(data, 6, 0, Process(torch.device("cpu"), rank, world_size), **AUGMENTED)(4)
        for rank in range(world_size)
    ]
    together = tuple(torch.cat(parts) for parts in zip(*shares, strict=True))
    assert equal(together, Batches(data, 6, 0, ALONE, **AUGMENTED)(4))


def test_flips_mirror_half_of_the_images_left_to_right():
    data = numbered(200)
    batches = Batches(data, 200, 0, ALONE, flip=True)
    flipped = torch.stack([batches(index)[0][:, 0, 0, 0] == 255 for index in range(10)])
    assert 0.45 < flipped.float().mean() < 0.55  # 2,000 flips: sd 0.011
    assert (flipped[0] != flipped[1]).any()  # each index draws anew
    assert sorted(drawn(batches, range(1))) == list(range(200))
    plain, _ = Batches(data, 200, 0, ALONE)(0)
    assert (plain[..., 3] == 255).all()


def test_crops_move_images_by_every_offset_equally_and_leave_black_behind():
    """An off-by-one in the range would never show the last offset, or read beyond the pad."""
    image = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 1, 5, 5)
    data = Images(image.repeat(250, 2, 1, 1), torch.zeros(250, dtype=torch.int64), ("all",))
    images = torch.cat([Batches(data, 250, 0, ALONE, crop=2)(index)[0] for index in range(10)])
    padded = torch.nn.functional.pad(image[0], (2, 2, 2, 2))
    counts = {
        (y, x): (images == padded[:, y : y + 5, x : x + 5]).all(dim=(1, 2, 3)).sum().item()
        for y in range(5)
        for x in range(5)
    }
    assert sum(counts.values()) == 2500
    assert min(counts.values()) > 60  # each is Binomial(2500, 1/25): 100, sd 9.8
    assert max(counts.values()) < 140


def test_a_shift_to_the_middle_changes_nothing():
    images = torch.randint(0, 256, (3, 2, 4, 6), dtype=torch.uint8)
    assert torch.equal(shifted(images, torch.full((3, 2), 2), 2), images)


def test_batches_have_the_shape_and_type_of_the_data():
    images, labels = Batches(numbered(8), 4, 0, Process(torch.device("cpu"), 1, 2))(0)
    assert (images.shape, images.dtype) == ((2, 1, 1, 4), torch.uint8)
    assert (labels.shape, labels.dtype) == ((2,), torch.int64)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"),
    [(0, 1, "got 0, expected"), (9, 1, "got 9, expected"), (4, 3, "4 does not divide by 3")],
)
def test_a_batch_size_that_does_not_fit_is_refused_by_its_key(batch_size, world_size, message):
    with pytest.raises(InputError, match=rf"train\.batch_size: {message}"):
        Batches(numbered(8), batch_size, 0, Process(torch.device("cpu"), 0, world_size))


@pytest.mark.parametrize(("device", "pinned"), [("cuda", 1), ("cpu", 0)])
def test_a_gpu_is_sent_pinned_memory(device, pinned, monkeypatch):
    """From other memory the copy waits for the device, whatever it is asked for."""
    sent, pins = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pins.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *to, **how: sent.append((to, how)) or self)
    order = torch.arange(3)
    assert sent_ahead(order, torch.device(device)) is order
    assert sent == [((torch.device(device),), {"non_blocking": True})]
    assert len(pins) == pinned
