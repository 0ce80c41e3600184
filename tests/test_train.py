"""The training loop: fair comparisons, and steps that do what they say."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import ALONE, SCORED, SELECTED, differing, log_of, run, state_of, tiny

from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run.batches import Batches
from convnorm.experiment.run.loop import take_step
from gan.feature_cache import sha256_of
from gan.losses import LOSSES
from gan.models import SAMPLES, Prior, generate, load_generator
from gan.trainer import Trainer

AVERAGED = {"score.every": 2, "train.ema_decay": 0.9}


def make_trainer(changes: dict | None = None) -> Trainer:
    config = tiny(changes)
    return Trainer(config, load_images(config.data), ALONE)


def weights(run_dir: Path) -> dict:
    names = ("generator", "discriminator", "ema", "optim_g", "optim_d")
    return {name: state_of(run_dir)[name] for name in names}


# Scores


def test_scoring_does_not_change_the_training(tmp_path):
    run(tmp_path / "never", {"normalizer.kind": "spectral"})
    run(tmp_path / "twice", {**SCORED, "normalizer.kind": "spectral", "score.every": 2})
    assert differing(weights(tmp_path / "twice"), weights(tmp_path / "never")) == []
    assert [line["step"] for line in log_of(tmp_path / "twice", "metrics.jsonl")] == [2, 4]


@pytest.fixture(scope="module")
def selected(tmp_path_factory) -> dict[str, Path]:
    """The same run without and with a second draw to select by."""
    folder = tmp_path_factory.mktemp("selected")
    run(folder / "without", {**AVERAGED, **SCORED})
    run(folder / "with", {**AVERAGED, **SELECTED})
    return {name: folder / name for name in ("without", "with")}


def test_a_selection_changes_neither_training_nor_reported_scores(selected):
    """Bit by bit: a draw from a stream of both would move the score that is reported."""
    assert differing(*(weights(run_dir) for run_dir in selected.values())) == []
    without, plus = (log_of(run_dir, "metrics.jsonl") for run_dir in selected.values())
    assert [record.pop("selection")["fake"]["step"] for record in plus] == [2, 4]
    assert [record.pop("selection") for record in without] == [None, None]
    assert differing(plus, without) == []


def test_a_selection_shares_no_image_with_the_reported_score(selected):
    """Selected by the latents or the real images that are reported, a score is its best draw."""
    record = log_of(selected["with"], "metrics.jsonl")[-1]
    other, generator = record["selection"], load_generator(selected["with"]).generator
    latents = [Prior(8, 10).draw(200, 0, stream) for stream in (SAMPLES, "selection")]
    reported, selecting = (sha256_of(generate(generator, each)) for each in latents)
    assert record["fake"]["sha256"] == reported
    assert other["fake"]["sha256"] == selecting != reported
    sides = {"train": record, "test": other}
    for split, side in sides.items():
        assert side["real"]["sha256"] == sha256_of(load_images(tiny().data, split).images)
    assert other["protocol"]["name"] == "digits_test[real=200,fake=200]"


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("none", r"score.select: 'digits_test' .* score.protocol is 'none'; expected a protocol"),
        ("fid10k_test", "score.select: 'digits_test' .* 'fid10k_test' reports on, the test split"),
    ],
)
def test_a_selection_without_another_score_is_refused(protocol, message):
    with pytest.raises(InputError, match=message):
        tiny({"score.select": "digits_test", "score.protocol": protocol})


def test_a_selection_has_a_preflight(tmp_path):
    """Catches weights, or images, that are found missing only at the first score."""
    changes = {"score.protocol": "digits", "score.select": "fid10k_test"}
    with pytest.raises(InputError, match="needs 10000 real images, the reference has 360"):
        run(tmp_path, changes)
    assert not (tmp_path / "log.jsonl").exists()


# A step


def test_a_nan_stops_the_run_with_its_step_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    """Between two log lines nobody looks; the step named must be the bad one all the same."""
    original, calls = LOSSES["hinge"], []

    def hinge(real, fake):
        calls.append(None)
        return original.discriminator(real, fake) * (float("nan") if len(calls) == 2 * 6 else 1)

    monkeypatch.setitem(LOSSES, "hinge", replace(original, discriminator=hinge))
    changes = {"steps": 20, "log.every": 10}
    with pytest.raises(Stopped, match=r"step 6: the loss is NaN .* keeps the last good") as stopped:
        run(tmp_path, changes, checkpoint_every=4)
    assert stopped.value.code == 1
    state = state_of(tmp_path)
    assert state["step"] == 4
    assert all(weight.isfinite().all() for weight in state["discriminator"].values())


def test_weights_that_explode_stop_the_run(tmp_path):
    with pytest.raises(Stopped, match=r"step [123]: ") as stopped:
        run(tmp_path, {"optim.lr": 1e30})
    assert stopped.value.code == 1
    assert not (tmp_path / "last.pt").exists()


def test_the_average_follows_parameters_and_buffers():
    """An average of the parameters alone would show images with foreign BatchNorm statistics."""
    trainer = make_trainer({"train.ema_decay": 0.5})
    expected = deepcopy(trainer.generator.state_dict())
    for step in range(5):
        take_step(trainer)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, live in trainer.generator.state_dict().items():
            if live.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * live
            else:
                expected[name] = live
    averaged = trainer.state.ema.state_dict()
    running = [name for name in averaged if "running" in name]
    assert running
    assert any(not torch.equal(averaged[n], trainer.generator.state_dict()[n]) for n in running)
    for name, value in averaged.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(
    ("decay", "expected"), [("linear", [8e-4, 6e-4, 4e-4, 2e-4]), ("none", [8e-4] * 4)]
)
def test_the_learning_rate_falls_to_zero_after_the_last_step(decay, expected, tmp_path):
    run(tmp_path, {"optim.decay": decay, "optim.lr": 8e-4, "log.every": 1})
    assert [line["lr"] for line in log_of(tmp_path)[1:]] == pytest.approx(expected)


def test_the_discriminator_has_n_dis_updates_on_fresh_images(monkeypatch):
    indices = []
    original = Batches.__call__
    monkeypatch.setattr(Batches, "__call__", lambda s, i: (indices.append(i), original(s, i))[1])
    trainer = make_trainer({"train.n_dis": 3})
    for _ in range(2):
        take_step(trainer)
    assert indices == list(range(6))
    updates = [
        {int(entry["step"]) for entry in optimizer.state.values()}
        for optimizer in (trainer.state.optim_d, trainer.state.optim_g)
    ]
    assert updates == [{6}, {2}]


@pytest.mark.parametrize("kind", ["spectral", "convnorm"])
def test_each_network_is_left_alone_by_the_others_update(kind):
    """A gradient that leaks, or a discriminator left frozen, would train something else."""
    trainer = make_trainer({"normalizer.kind": kind})
    take_step(trainer)

    def snapshot(network):
        return deepcopy([(p, p.grad, p.requires_grad) for p in network.parameters()])

    d, g = snapshot(trainer.discriminator), snapshot(trainer.generator)
    draws = trainer.draw(1)
    trainer.update(replace(draws, discriminator=()))
    assert differing(snapshot(trainer.discriminator), d) == []
    assert differing(snapshot(trainer.generator), g) != []
    g = snapshot(trainer.generator)
    trainer.state.optim_d.zero_grad()
    loss, *_ = trainer.discriminator_loss(draws.discriminator[0])
    trainer.add_gradients(loss)
    trainer.apply(trainer.discriminator, trainer.state.optim_d)
    assert differing(snapshot(trainer.generator), g) == []
    assert differing(snapshot(trainer.discriminator), d) != []


def test_clipped_weights_stay_within_the_bound():
    trainer = make_trainer(
        {"loss.name": "wasserstein", "loss.weight_clip": 0.01, "normalizer.kind": "none"}
    )
    take_step(trainer)
    largest = max(weight.abs().max().item() for weight in trainer.discriminator.parameters())
    assert largest == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["none", "spectral", "convnorm"])
def test_bfloat16_stays_near_float32(kind, tmp_path):
    """bfloat16 has 8 bits: losses near 2 agree to 0.05, and weights stay float32."""
    changes = {"normalizer.kind": kind, "log.every": 1}
    run(tmp_path / "single", changes)
    run(tmp_path / "half", {**changes, "train.precision": "bfloat16"})
    logs = [log_of(tmp_path / precision)[1:] for precision in ("single", "half")]
    for single, half in zip(*logs, strict=True):
        assert half["loss_d"] == pytest.approx(single["loss_d"], abs=0.05)
        assert half["loss_g"] == pytest.approx(single["loss_g"], abs=0.05)
    state = state_of(tmp_path / "half")
    floats = [t for t in state["discriminator"].values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float32}
    assert differing(weights(tmp_path / "single"), weights(tmp_path / "half")) != []


def test_dequantized_levels_fill_their_own_cell(monkeypatch):
    """In plain float32, rounding lifts one pixel in 10^5 into the next cell, white ones to 1."""
    trainer = make_trainer({"train.batch_size": 1024})
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1024, 1, 1, 1)
    monkeypatch.setattr(Batches, "__call__", lambda self, index: (levels, torch.zeros(1024)))
    first, second = (draw.real.images for draw in trainer.draw(0).discriminator)
    x = first.double()
    within = (x + 1) * 128 - levels  # exact in float64
    assert x.max() < 1
    assert within.min() >= 0
    assert within.max() < 1
    assert within.mean() == pytest.approx(0.5, abs=0.003)  # 262,144 uniform numbers: sd 0.0006
    assert (x[0] != x[1]).any()
    assert (first != second).any()


def test_without_dequantization_black_is_minus_one_and_white_is_one():
    real = make_trainer({"train.dequantize": False}).draw(0).discriminator[0].real.images
    assert (real.min(), real.max(), real.dtype) == (-1, 1, torch.float32)
