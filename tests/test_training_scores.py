"""The scores of a run in training: of how many images, with which weights, of which bytes."""

from dataclasses import replace

import pytest
import torch
from runs import log_of, run, tiny

from convnorm.experiment.data.pixels import to_uint8
from convnorm.experiment.errors import InputError
from gan import models
from gan.benchmark import GAN
from gan.extractors import EXTRACTORS
from gan.feature_cache import sha256_of
from gan.models import load_generator
from gan.protocols import MOST_IMAGES

NUMBERS = {
    "score.num_real": 100,
    "score.num_fake": 40,
    "score.select_num_real": 90,
    "score.select_num_fake": 30,
}
SELECTED = {"score.protocol": "digits", "score.select": "digits_test"}


def test_the_numbers_of_images_are_those_that_were_asked_for(tmp_path):
    """Catches a protocol of other numbers under the name of the published one."""
    run(tmp_path, {**SELECTED, **NUMBERS, "steps": 1})
    (record,) = log_of(tmp_path, "metrics.jsonl")
    other = record["selection"]
    assert (record["num_real"], record["num_fake"]) == (100, 40)
    assert (other["num_real"], other["num_fake"]) == (90, 30)
    assert record["protocol"]["name"] == "digits[real=100,fake=40]"
    assert other["protocol"]["name"] == "digits_test[real=90,fake=30]"
    sample = load_generator(tmp_path).sample(40, seed=0)
    assert record["fake"]["sha256"] == sha256_of(sample)
    result = GAN.read(tmp_path, [])
    assert result.protocol["name"] == "digits[real=100,fake=40]"
    few = "FD (digits): 30 fake images for 64 features have a singular covariance"
    assert any(doubt.startswith(f"selection: {few}") for doubt in result.doubts)
    assert len(result.doubts) == len(set(result.doubts))


@pytest.mark.parametrize("key", NUMBERS)
def test_a_benchmark_holds_runs_of_other_numbers_apart(key):
    before = GAN.conditions(tiny(SELECTED), [])
    assert GAN.conditions(tiny({**SELECTED, key: NUMBERS[key]}), []) != before


INCEPTION = {"score.protocol": "fid50k_train", "score.select": "fid10k_test"}


@pytest.mark.parametrize(
    ("changes", "key", "most"),
    [
        ({}, "score.num_real", 1437),
        ({"score.num_real": 1437}, "score.select_num_real", 360),
        ({"score.num_real": 1438}, "score.num_real", 1437),
    ],
)
def test_too_few_images_are_said_before_training_with_the_number_to_set(
    tmp_path, monkeypatch, changes, key, most
):
    """Own data have fewer images than the published protocols: the line must be one to follow."""
    toy_inception(monkeypatch)
    expected = f"^{key}: .* the reference has {most}; set {key} to {most}, or less"
    with pytest.raises(InputError, match=expected):
        run(tmp_path, {**INCEPTION, **changes})
    assert not (tmp_path / "log.jsonl").exists()


def toy_inception(patch: pytest.MonkeyPatch) -> None:
    """Pixels in place of Inception's features; only its own weights define FID."""

    def load(weights, device, allow_unverified, keys):
        def forward(images):
            pixels = images.float().flatten(1) / 255
            return pixels[:, 100:104], pixels[:, 50:60]

        if weights is not None and not allow_unverified:
            raise InputError(f"{keys.allow_unverified_weights} accepts {weights}")
        return forward, "c" * 64, weights is None

    patch.setitem(EXTRACTORS, "inception", replace(EXTRACTORS["inception"], load=load))


def test_unverified_weights_are_accepted_where_the_config_says_so(tmp_path, monkeypatch):
    """Catches a benchmark that waits for an FID that such a run does not have."""
    toy_inception(monkeypatch)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"other")
    numbers = {"score.num_real": 50, "score.num_fake": 50, "steps": 1}
    changes = {"score.protocol": "fid50k_train", "score.weights": str(weights), **numbers}
    with pytest.raises(InputError, match=r"^score\.allow_unverified_weights accepts"):
        run(tmp_path / "refused", changes)
    changes["score.allow_unverified_weights"] = True
    run(tmp_path / "run", changes)
    (record,) = log_of(tmp_path / "run", "metrics.jsonl")
    promised = GAN.scores(tiny(changes), [])["final"]
    assert list(record["scores"]) == list(promised)
    assert record["headline"] == "FD (unverified inception)"
    changes.pop("score.allow_unverified_weights")
    assert "FID" in GAN.scores(tiny(changes), [])["final"]
    weights.unlink()
    with pytest.raises(InputError, match=r"weights\.pth: cannot read these weights"):
        GAN.scores(tiny({**changes, "score.allow_unverified_weights": True}), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({**SELECTED, key: num}, f"{key}: got {num}, but digits.* needs at least 10 and takes")
            for key in NUMBERS
            for num in (-1, 0, 9, MOST_IMAGES + 1, 10**24)
        ),
        *(
            ({key: num}, f"{key}: {num} is not allowed; expected null")
            for key, num in NUMBERS.items()
        ),
        ({"score.every": -1}, "score.every: -1 is not allowed; expected 0 to 1000000000"),
        (
            {"score.protocol": "digits", "score.allow_unverified_weights": True},
            "score.allow_unverified_weights: True is not allowed; expected false where score.w",
        ),
    ],
)
def test_settings_out_of_range_are_refused_by_their_key(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        tiny(changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dequantize", [True, False])
def test_images_become_bytes_by_the_inverse_of_what_the_run_was_trained_on(
    tmp_path, monkeypatch, dequantize
):
    """The grid, both scores and fid.py: floored, a generator trained without noise gets darker."""
    asked = []

    def spy(images: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        asked.append(nearest)
        return to_uint8(images, nearest=nearest)

    monkeypatch.setattr(models, "to_uint8", spy)
    run(tmp_path, {**SELECTED, **NUMBERS, "train.dequantize": dequantize, "steps": 1})
    load_generator(tmp_path).sample(4, seed=0)
    assert asked == [not dequantize] * 4
