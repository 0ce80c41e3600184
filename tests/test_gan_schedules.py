"""Learning rates, beta2 and penalties of a GAN over its steps."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from runs import ALONE, differing, log_of, run, tiny

from convnorm.experiment.config import parse
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.loop import take_step
from gan.config import GanConfig
from gan.schedules import penalty_factor, rates
from gan.trainer import Trainer

R3GAN = {
    "optim.decay": "cosine",
    "optim.final_lr_factor": 0.25,
    "optim.final_beta2": 0.99,
    "loss.final_penalty_factor": 0.1,
}


def make_trainer(changes: dict[str, Any]) -> Trainer:
    config = tiny(changes)
    return Trainer(config, load_images(config.data), ALONE)


@pytest.mark.parametrize(
    ("changes", "expected"),
    # At steps 0, 5, 10, 20 and 25 of 40: the share of the learning rate.
    [
        ({"optim.decay": "none"}, [1, 1, 1, 1, 1]),
        ({"optim.decay": "linear"}, [1, 0.875, 0.75, 0.5, 0.375]),
        ({"optim.decay": "linear", "optim.decay_steps": 20}, [1, 0.75, 0.5, 0, 0]),
        ({"optim.decay": "linear", "optim.decay_steps": 80}, [1, 0.9375, 0.875, 0.75, 0.6875]),
        ({"optim.decay": "cosine", "optim.decay_steps": 20}, [1, 0.8535534, 0.5, 0, 0]),
        (
            {"optim.decay": "cosine", "optim.decay_steps": 20, "optim.final_lr_factor": 0.2},
            [1, 0.8828427, 0.6, 0.2, 0.2],
        ),
        ({"optim.decay": "none", "optim.final_lr_factor": 0.2}, [1, 1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("lr_d", [None, 4e-4])
def test_learning_rates_go_to_their_end_and_stay_there(changes, expected, lr_d):
    config = tiny({"steps": 40, "optim.lr": 1e-4, "optim.lr_d": lr_d, **changes})
    found = [rates(config, step) for step in (0, 5, 10, 20, 25)]
    assert [each.generator for each in found] == pytest.approx([1e-4 * e for e in expected])
    own = 1e-4 if lr_d is None else lr_d
    assert [each.discriminator for each in found] == pytest.approx([own * e for e in expected])
    assert {each.beta2 for each in found} == {config.optim.beta2}
    assert {penalty_factor(config, step) for step in range(40)} == {1.0}


def test_the_linear_decay_is_the_published_one_to_the_last_bit():
    config = tiny({"steps": 300, "optim.lr": 3e-4})
    found = [rates(config, step).generator for step in range(300)]
    assert found == [3e-4 * (1 - step / 300) for step in range(300)]


def test_beta2_and_penalties_go_the_way_of_the_learning_rate():
    """R3GAN's: 2e-4 to 5e-5, beta2 0.9 to 0.99, gamma to a tenth."""
    config = tiny({"steps": 100, "optim.decay_steps": 40, "optim.beta2": 0.9, **R3GAN})
    halfway, end = rates(config, 20), rates(config, 40)
    assert (halfway.generator, halfway.beta2) == pytest.approx((1.25e-4, 0.945))
    assert (end.generator, end.beta2) == (5e-5, 0.99)
    assert rates(config, 99) == end
    factors = [penalty_factor(config, step) for step in (0, 20, 40, 99)]
    assert factors == pytest.approx([1, 0.55, 0.1, 0.1])


def test_both_optimizers_get_what_the_schedule_says():
    trainer = make_trainer({"steps": 4, "optim.lr_d": 1e-3, "optim.beta1": 0.5, **R3GAN})
    for _ in range(3):
        take_step(trainer)
    expected = rates(trainer.config, 2)
    for name, lr in (("optim_g", expected.generator), ("optim_d", expected.discriminator)):
        (group,) = getattr(trainer.state, name).param_groups
        assert (group["lr"], group["betas"]) == (lr, (0.5, expected.beta2))


@pytest.mark.parametrize("penalty", ["gradient_penalty", "r1", "r2"])
def test_a_penalty_enters_the_loss_with_the_factor_of_its_step(penalty):
    trainer = make_trainer({f"loss.{penalty}": 8.0, "normalizer.kind": "ocnn", **R3GAN})
    for step in (0, 3):
        factor = penalty_factor(trainer.config, step)
        loss, terms, _ = trainer.discriminator_loss(trainer.draw(step).discriminator[0])
        expected = terms["loss_d"] + 8 * factor * terms[penalty] + terms["weight_penalty"]
        torch.testing.assert_close(loss, expected)
        assert (factor == 1) == (step == 0)


def test_a_discriminators_own_learning_rate_is_its_own(tmp_path):
    """Of two equal first steps, D moves four times as far and G as far as before."""
    alike, own = (make_trainer({"train.n_dis": 1, "optim.lr_d": lr}) for lr in (None, 8e-4))
    before = {
        name: [p.detach().clone() for p in getattr(alike, name).parameters()]
        for name in ("generator", "discriminator")
    }

    def moved(trainer: Trainer, name: str) -> float:
        pairs = zip(getattr(trainer, name).parameters(), before[name], strict=True)
        return max((p.detach() - old).abs().max().item() for p, old in pairs)

    for trainer in (alike, own):
        take_step(trainer)
    assert moved(own, "discriminator") == pytest.approx(4 * moved(alike, "discriminator"), rel=0.01)
    assert moved(own, "generator") == pytest.approx(moved(alike, "generator"), rel=0.01)


@pytest.mark.parametrize(
    ("lr_d", "expected"), [(None, [None, None]), (2e-4, [None, None]), (4e-4, [4e-4, 2e-4])]
)
def test_the_log_has_both_learning_rates_where_there_are_two(lr_d, expected, tmp_path):
    run(tmp_path, {"steps": 2, "log.every": 1, "optim.lr": 2e-4, "optim.lr_d": lr_d})
    log = log_of(tmp_path)
    log = [line for line in log if line["step"] > 0]
    assert [line["lr"] for line in log] == pytest.approx([2e-4, 1e-4])
    assert [line.get("lr_d") for line in log] == pytest.approx(expected)


# The length of a run and that of its schedule


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_pilot_is_the_beginning_of_a_longer_run(decay):
    """To the last bit: 4 steps of 4 and the first 4 of 20, both with a schedule of 20."""
    changes = {**R3GAN, "optim.decay": decay, "loss.r1": 1.0, "train.ema_decay": 0.9}
    pilot = make_trainer({**changes, "steps": 4, "optim.decay_steps": 20})
    others = make_trainer({**changes, "steps": 20}), make_trainer({**changes, "steps": 4})
    states = []
    for trainer in (pilot, *others):
        for _ in range(4):
            take_step(trainer)
        state = trainer.state.state_dict()
        states.append({name: state[name] for name in state if name != "config"})
    assert differing(states[0], states[1]) == []
    assert differing(states[0], states[2]) != []


@pytest.mark.parametrize(
    ("decay", "decay_steps", "steps", "expected"),
    [
        ("none", None, 4, "steps"),
        ("none", 20, 4, "steps"),
        ("linear", None, 4, None),
        ("cosine", None, 4, None),
        ("linear", 20, 4, "steps"),
        ("cosine", 2, 4, "steps"),
        ("linear", 20, 20, None),
        ("linear", 20, 30, None),
        ("linear", 20, True, None),
    ],
)
def test_a_run_may_grow_where_its_schedule_does_not_depend_on_its_length(
    decay, decay_steps, steps, expected
):
    changes = {"optim.decay": decay, "optim.decay_steps": decay_steps, "steps": 20}
    config = tiny(changes)
    assert config.extends({**asdict(config), "steps": steps}) == expected


def test_a_run_with_a_schedule_of_its_own_length_grows_to_the_same_bits(tmp_path):
    changes = {**R3GAN, "optim.decay_steps": 5, "train.ema_decay": 0.5}
    whole = run(tmp_path / "whole", {**changes, "steps": 7})
    run(tmp_path / "run", {**changes, "steps": 3})
    summary = run(tmp_path / "run", {**changes, "steps": 7})
    assert [part["step"] for part in summary["segments"]] == [0, 3]
    states = [torch.load(tmp_path / n / "last.pt", weights_only=True) for n in ("run", "whole")]
    for state in states:
        del state["segments"]
    assert differing(*states) == []
    assert whole["log"]["lr"] == pytest.approx(5e-5)


# What is refused, or said to be without effect


def test_a_penalty_does_not_decay_where_nothing_does():
    with pytest.raises(
        InputError, match=r"^loss\.final_penalty_factor: 0\.1 .* expected 1 where optim\.decay is"
    ):
        tiny({**R3GAN, "optim.decay": "none"})


def test_fields_of_a_schedule_without_a_schedule_are_told(capsys):
    parse(GanConfig, "gan", "dcgan_batch", ["--optim.decay_steps=5", "--optim.final_beta2=0.5"])
    assert capsys.readouterr().err == (
        "warning: optim.decay_steps, optim.final_beta2: without effect, as optim.decay none reads "
        "no such option\n"
    )
