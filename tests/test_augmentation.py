"""DiffAugment against its published formulas, and where in a step it acts."""

from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch
from runs import ALONE, SCORED, run, tiny

import gan.trainer
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import Process
from gan.augmentation import AUGMENTATIONS, augmented
from gan.draws import Drawing
from gan.losses import LOSSES
from gan.trainer import Trainer

POLICY = "color,translation,cutout"
MIDDLE = 0.5


def images(num: int = 3, channels: int = 3, size: int = 32, dtype=torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.rand(num, channels, size, size, generator=random, dtype=dtype) * 2 - 1


def uniform(num: int, numbers: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(num, numbers, generator=torch.Generator().manual_seed(seed))


def colored(x: torch.Tensor, brightness=MIDDLE, saturation=MIDDLE, contrast=MIDDLE):
    return augmented(x, {"color": torch.tensor([[brightness, saturation, contrast]] * len(x))})


def grid(steps: int) -> torch.Tensor:
    """(steps^2, 2): every pair of the middles of `steps` equal parts of [0, 1)."""
    middles = (torch.arange(steps) + 0.5) / steps
    return torch.cartesian_prod(middles, middles)


# The formulas, image by image and pixel by pixel.


def color_of(x: torch.Tensor, numbers: list[float]) -> torch.Tensor:
    brightness, saturation, contrast = numbers
    x = x + brightness - 0.5
    y = torch.empty_like(x)
    for channel in range(len(x)):
        gray = sum(x[c] for c in range(len(x))) / len(x)
        y[channel] = (x[channel] - gray) * (saturation * 2) + gray
    mean = y.sum() / y.numel()
    return (y - mean) * (contrast + 0.5) + mean


def translation_of(x: torch.Tensor, numbers: list[float]) -> torch.Tensor:
    height, width = x.shape[1:]
    most = [int(0.125 * size + 0.5) for size in (height, width)]
    down, right = (int(u * (2 * q + 1)) - q for u, q in zip(numbers, most, strict=True))
    y = torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                y[:, row, column] = x[:, row + down, column + right]
    return y


def cutout_of(x: torch.Tensor, numbers: list[float]) -> torch.Tensor:
    height, width = x.shape[1:]
    y = x.clone()
    sides = [int(0.5 * size + 0.5) for size in (height, width)]
    offsets = [
        int(u * (size + (1 - side % 2)))
        for u, size, side in zip(numbers, (height, width), sides, strict=True)
    ]
    for i in range(sides[0]):
        for j in range(sides[1]):
            row = min(max(i + offsets[0] - sides[0] // 2, 0), height - 1)
            column = min(max(j + offsets[1] - sides[1] // 2, 0), width - 1)
            y[:, row, column] = 0
    return y


PUBLISHED = {"color": color_of, "translation": translation_of, "cutout": cutout_of}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 22, 32])
@pytest.mark.parametrize(
    "policy", [order for n in (1, 2, 3) for order in permutations(PUBLISHED, n)]
)
def test_every_policy_equals_the_published_formulas(policy, size, channels):
    """In its own order: color after cutout makes the hole gray in another way than before."""
    x = images(4, channels, size)
    draws = {n: uniform(4, AUGMENTATIONS[n].numbers, seed) for seed, n in enumerate(policy)}
    expected = []
    for index, image in enumerate(x):
        for name in policy:
            image = PUBLISHED[name](image, draws[name][index].tolist())
        expected.append(image)
    torch.testing.assert_close(augmented(x, draws), torch.stack(expected))


def test_draws_in_the_middle_change_nothing():
    x = images()
    draws = {"color": torch.full((3, 3), MIDDLE), "translation": torch.full((3, 2), MIDDLE)}
    torch.testing.assert_close(augmented(x, draws), x)
    assert augmented(x, {}) is x


@pytest.mark.parametrize("channels", [1, 3])
def test_each_part_of_color_keeps_what_it_does_not_change(channels):
    x = images(channels=channels)
    brighter = colored(x, brightness=0.9)
    torch.testing.assert_close(brighter, x + 0.4)
    assert brighter.max() > 1.2  # nothing is clamped
    torch.testing.assert_close(colored(x, saturation=0.1).mean(1), x.mean(1))
    gray = x[:, :1].expand(-1, channels, -1, -1)
    torch.testing.assert_close(colored(gray, saturation=0.9), gray)
    contrast = colored(x, contrast=0.0)
    torch.testing.assert_close(contrast.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(contrast.std((1, 2, 3)), x.std((1, 2, 3)) / 2)


def test_a_translation_has_81_outcomes_and_loses_nothing_inside_of_a_border():
    x = torch.zeros(1, 2, 32, 32)
    x[..., 4:-4, 4:-4] = images(1, 2, 24)
    moved = augmented(x.expand(81, -1, -1, -1), {"translation": grid(9)})
    assert len({each.numpy().tobytes() for each in moved}) == 81
    torch.testing.assert_close(moved.sum((1, 2, 3)), x.sum().expand(81))
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24] * 2])
    ends = augmented(x.expand(2, -1, -1, -1), {"translation": ends})
    assert torch.equal(ends, moved[[0, -1]])


def test_the_gradient_of_a_translation_is_a_mask():
    x = images(num=81).requires_grad_()
    (gradient,) = torch.autograd.grad(augmented(x, {"translation": grid(9)}).sum(), x)
    assert gradient.unique().tolist() == [0, 1]
    left = gradient[:, 0].sum((1, 2)).tolist()
    assert left == [(32 - abs(y)) * (32 - abs(x)) for y in range(-4, 5) for x in range(-4, 5)]


def test_a_cutout_leaves_a_hole_of_64_to_256_pixels_with_its_middle_anywhere():
    x = torch.ones(33**2, 3, 32, 32)
    holes = augmented(x, {"cutout": grid(33)}) == 0
    assert torch.equal(holes[:, 0], holes[:, 2])
    sides = [min(middle + 8, 32) - max(middle - 8, 0) for middle in range(33)]
    assert holes[:, 0].sum((1, 2)).tolist() == [a * b for a in sides for b in sides]
    assert (min(sides) ** 2, max(sides) ** 2) == (64, 256)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_double_backward_is_exact(name):
    """All are linear in the images: a penalty on a gradient goes through them."""
    x = images(2, 2, 6, torch.float64).requires_grad_()
    draws = {name: uniform(2, AUGMENTATIONS[name].numbers)}
    assert torch.autograd.gradcheck(lambda x: augmented(x, draws), x)
    assert torch.autograd.gradgradcheck(lambda x: augmented(x, draws).pow(3), x)


def test_half_precision_is_left_for_float32():
    x = images().bfloat16()
    y = colored(x, brightness=0.501)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x.float() + 0.001)
    assert augmented(x, {}) is x


# In a step


def make_trainer(changes: dict | None = None) -> Trainer:
    config = tiny({"train.diffaugment": POLICY, "train.n_dis": 3, **(changes or {})})
    return Trainer(config, load_images(config.data), ALONE)


@pytest.fixture
def pairs(monkeypatch):
    """A loss whose generator step looks at real images, too."""
    loss = replace(LOSSES["hinge"], generator=lambda fake, real: (real - fake).mean())
    monkeypatch.setitem(LOSSES, "hinge", replace(loss, compares=True))


def test_every_role_update_and_step_has_draws_of_its_own(pairs):
    """Real and fake that share draws would be told apart by less than their difference."""
    trainer = make_trainer()
    for name, augmentation in AUGMENTATIONS.items():
        found = []
        for draws in map(trainer.draw, range(2)):
            for update in (*draws.discriminator, draws.generator):
                found += [update.real.augmentation[name], update.fake_augmentation[name]]
        assert len(found) == 2 * 4 * 2
        assert {each.shape for each in found} == {(8, augmentation.numbers)}
        assert not any(torch.equal(one, other) for one, other in combinations(found, 2))


def test_an_augmentation_has_the_same_draws_in_every_policy_and_beside_every_normalizer():
    def drawn(policy: str, kind: str) -> dict:
        changes = {"train.diffaugment": policy, "normalizer.kind": kind}
        return make_trainer(changes).draw(1).discriminator[2].fake_augmentation

    whole, part = drawn(POLICY, "convnorm"), drawn("cutout,color", "none")
    assert list(whole) == POLICY.split(",")
    assert list(part) == ["cutout", "color"]
    assert all(torch.equal(part[name], whole[name]) for name in part)


def test_an_augmentation_leaves_all_other_draws_as_they_are():
    with_it, without = (make_trainer({"train.diffaugment": p}).draw(1) for p in (POLICY, ""))
    for one, other in zip(with_it.discriminator, without.discriminator, strict=True):
        assert torch.equal(one.real.images, other.real.images)
        assert torch.equal(one.latents.z, other.latents.z)
        assert (other.real.augmentation, other.fake_augmentation) == ({}, {})


def test_each_process_draws_its_part():
    config = tiny({"train.diffaugment": POLICY})
    data = load_images(config.data)
    alone, *parts = (
        Drawing(config, data, Process(torch.device("cpu"), *place))(0).generator.fake_augmentation
        for place in ((0, 1), (0, 2), (1, 2))
    )
    for name, whole in alone.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), whole)


@pytest.mark.parametrize("penalty", ["r1", "r2", "gradient_penalty"])
def test_the_discriminator_sees_augmented_images_alone(penalty, pairs):
    """A penalty on plain images, or a generator that is judged by them, undoes the method."""
    trainer = make_trainer({f"loss.{penalty}": 1.0, "train.n_dis": 1})
    seen = []
    trainer.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    draws = trainer.draw(0)
    (update,), generator = draws.discriminator, draws.generator
    fakes = trainer.generator(update.latents.z, update.latents.labels)
    trainer.update(draws)
    real, fake = update.real, augmented(fakes, update.fake_augmentation)
    penalized = {"r1": augmented(real.images, real.augmentation), "r2": fake}
    if penalty == "gradient_penalty":
        between = real.images.lerp(fakes, update.mix)
        penalized[penalty] = augmented(between, real.augmentation)
    torch.testing.assert_close(seen[0], augmented(real.images, real.augmentation))
    torch.testing.assert_close(seen[1], fake)
    torch.testing.assert_close(seen[2], penalized[penalty])
    fakes = trainer.generate(generator.latents, generator.fake_augmentation).images
    assert seen[3].shape == fakes.shape
    assert (seen[3] == 0).flatten(1).sum(1).min() >= 16  # holes of 4 x 4 or more
    torch.testing.assert_close(
        seen[4], augmented(generator.real.images, generator.real.augmentation)
    )
    assert len(seen) == 5


def test_a_penalty_takes_the_gradient_by_the_plain_image():
    """D(T(x)) with T a contrast of 1.5: by x the gradient of a linear D is 1.5 times as long."""
    trainer = make_trainer({"loss.r1": 1.0, "train.diffaugment": "color"})
    weight = images(1, 1, 16)
    weight -= weight.mean()  # or the mean, which contrast keeps, would have a part in it
    trainer.discriminator = lambda x, labels: (weight * x).sum((1, 2, 3))
    draw = trainer.draw(0).discriminator[0]
    high = {"color": torch.tensor([[MIDDLE, MIDDLE, 1.0]] * 8)}
    bright = replace(draw, real=replace(draw.real, augmentation=high))
    _, terms, _ = trainer.discriminator_loss(bright)
    expected = 1.5**2 * weight.square().sum().item() / 2
    assert terms["r1"].item() == pytest.approx(expected, rel=1e-4)


def test_the_generator_learns_through_the_augmentation():
    """Where the hole is, no gradient comes back."""
    trainer = make_trainer({"train.diffaugment": "cutout"})
    made = []
    trainer.generator.register_forward_hook(lambda _, inputs, output: made.append(output))
    draw = trainer.draw(0).generator
    loss, _ = trainer.generator_loss(draw)
    (gradient,) = torch.autograd.grad(loss, made)
    kept = augmented(torch.ones_like(gradient), draw.fake_augmentation)
    assert torch.equal(gradient == 0, kept == 0)


def test_scores_and_samples_see_plain_images(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        gan.trainer, "augmented", lambda x, d: (calls.append(d), augmented(x, d))[1]
    )
    changes = {**SCORED, "train.diffaugment": POLICY, "train.n_dis": 2, "steps": 2, "log.every": 1}
    run(tmp_path, {**changes, "score.every": 1, "log.samples_every": 1})
    assert len(calls) == 2 * (2 * 2 + 1)
    assert all(list(draws) == POLICY.split(",") for draws in calls)


@pytest.mark.parametrize(
    "policy",
    ["Color", "color,", ",color", "color, cutout", "color;cutout", " ", "none", "color,color"],
)
def test_a_policy_of_other_names_is_refused(policy):
    with pytest.raises(InputError) as error:
        tiny({"train.diffaugment": policy})
    assert str(error.value) == (
        f"train.diffaugment: {policy!r} is not allowed; expected color, translation, cutout, each "
        "at most once, with commas and without spaces between them, or nothing"
    )
