"""Adversarial training beside the authors' own loops, and runs of before the two forms."""

import copy

import pytest
import torch
import torch.nn.functional as F
import yaml
from runs import ALONE, Crash, classifier_run, crash_before, differing, state_of, tiny_classifier

from classification.adversarial_training import cross_entropy_of, divergence
from classification.attacks import frozen, project
from classification.models import load_classifier
from classification.trainer import Trainer
from classification.training_data import training_data
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.loop import take_step

STEPS = 3
BETA = 5.9  # for which the order of a product and a quotient counts
BASE = {
    "adversary.eps": 16.0,
    "adversary.steps": 3,
    "adversary.beta": BETA,
    "train.epochs": 1,
    "optim.lr": 0.05,
}


def make_trainer(changes: dict) -> Trainer:
    config = tiny_classifier({**BASE, **changes})
    return Trainer(config, training_data(config, load_images(config.data)), ALONE)


def kl(logits, clean):
    """KLDivLoss, summed, from logits; of logarithms, which rounds as the suite does.

    Gradients of TRADES' first step are small, and where rounding alone is left of one, its sign is
    anyone's: a step of another rounding ends elsewhere.
    """
    return F.kl_div(
        F.log_softmax(logits, dim=1), F.log_softmax(clean, dim=1), reduction="sum", log_target=True
    )


def trades_as_published(trainer, model, draws):
    """The loss of a step as in trades.py of the authors."""
    x, y = draws.images, draws.labels
    model.eval()
    x_adv = x + draws.start
    for _ in range(3):
        x_adv.requires_grad_()
        gradient = torch.autograd.grad(kl(model(x_adv), model(x)), [x_adv])[0]
        x_adv = x_adv.detach() + trainer.step_size * gradient.sign()
        x_adv = (x + (x_adv - x).clamp(-trainer.eps, trainer.eps)).clamp(0, 1)
    model.train()
    natural = F.cross_entropy(model(x), y)
    robust = kl(model(x_adv), model(x)) / len(x)
    return natural + BETA * robust


def fast_as_published(trainer, model, draws):
    """The loss of a step as in train_fgsm.py of the authors, in pixels."""
    x, y = draws.images, draws.labels
    delta = torch.max(torch.min(draws.start, 1 - x), 0 - x).requires_grad_()
    F.cross_entropy(model(x + delta), y).backward()
    delta = (delta + trainer.step_size * delta.grad.sign()).detach()
    delta = delta.clamp(-trainer.eps, trainer.eps)
    delta = torch.max(torch.min(delta, 1 - x), 0 - x)
    return F.cross_entropy(model(x + delta), y)


def trades_clipped(trainer, model, draws):
    """The form of before, which must keep its numbers."""
    x, y = draws.images, draws.labels
    with frozen(model):
        with torch.no_grad():
            clean = model(x)
        x_adv = project(x + draws.start, x, "linf", trainer.eps)
        for _ in range(3):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(divergence(model(x_adv), clean), x_adv)
            x_adv = x_adv.detach() + trainer.step_size * gradient.sign()
            x_adv = project(x_adv, x, "linf", trainer.eps)
    logits = model(x)
    return F.cross_entropy(logits, y) + BETA * (divergence(model(x_adv), logits) / len(x))


def fast_in_evaluation_mode(trainer, model, draws):
    """The form of before, which must keep its numbers."""
    x, y = draws.images, draws.labels
    with frozen(model):
        x_adv = project(x + draws.start, x, "linf", trainer.eps).requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy_of(y)(model(x_adv)), x_adv)
        x_adv = x_adv.detach() + trainer.step_size * gradient.sign()
        x_adv = project(x_adv, x, "linf", trainer.eps)
    return F.cross_entropy(model(x_adv), y)


# (kind, as_published) -> the loss of a step, passes in training mode, and whether to the last bit
FORMS = {
    ("trades", True): (trades_as_published, 3, True),
    ("fast", True): (fast_as_published, 2, False),
    ("trades", False): (trades_clipped, 2, True),
    ("fast", False): (fast_in_evaluation_mode, 1, True),
}


@pytest.mark.parametrize("normalizer", ["batch", "spectral"])
@pytest.mark.parametrize(("kind", "as_published"), FORMS)
def test_a_step_is_that_of_a_plain_loop(kind, as_published, normalizer):
    """Weights, running statistics and vectors of power iterations, over three steps."""
    loss_of, passes, exact = FORMS[kind, as_published]
    trainer = make_trainer(
        {
            "adversary.kind": kind,
            "adversary.as_published": as_published,
            "normalizer.kind": normalizer,
            "normalizer.batch_norm": True,
        }
    )
    model = copy.deepcopy(trainer.state.network).train()
    optim = trainer.config.optim
    sgd = torch.optim.SGD(
        model.parameters(), 1.0, momentum=optim.momentum, weight_decay=optim.weight_decay
    )
    for step in range(STEPS):
        draws = trainer.draw(step)
        loss = loss_of(trainer, model, draws)
        sgd.zero_grad()
        loss.backward()
        sgd.param_groups[0]["lr"] = draws.learning_rate
        sgd.step()
        take_step(trainer)
    found, expected = trainer.state.network.state_dict(), model.state_dict()
    if exact:
        assert differing(dict(found), dict(expected)) == []
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    counts = {value.item() for name, value in found.items() if name.endswith("tracked")}
    assert counts == {passes * STEPS}


def test_the_start_of_trades_is_clipped_in_one_form_alone(monkeypatch):
    """Most pixels of a digit are 0 or 1, and half of the starts there lie outside."""
    starts = []
    for as_published in (True, False):
        trainer = make_trainer({"adversary.kind": "trades", "adversary.as_published": as_published})
        seen = []
        hook = trainer.state.network.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0].detach().clone())
        )
        draws = trainer.draw(0)
        trainer.update(draws)
        hook.remove()
        assert torch.equal(seen[0], draws.images)  # the clean predictions
        starts.append(seen[1])
        moved = draws.images + draws.start
    assert torch.equal(starts[0], moved)
    assert starts[0].min() < 0
    assert torch.allclose(starts[1], moved.clamp(0, 1), atol=1e-7)


# Runs of before there were two forms


def of_before(run_dir):
    """Take the option out of a run's files."""
    for name in ("last.pt", "best.pt"):
        if (run_dir / name).exists():
            state = torch.load(run_dir / name, weights_only=True)
            del state["config"]["adversary"]["as_published"]
            checkpoint.save(run_dir / name, state)
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    del config["adversary"]["as_published"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.mark.parametrize("kind", ["standard", "free", "fast", "pgd", "trades"])
def test_an_old_config_means_what_it_meant(kind):
    """Completed by the default, the records of old runs would claim the published form."""
    config = tiny_classifier({"adversary.kind": kind})
    there = checkpoint.plain(config)
    del there["adversary"]["as_published"]
    differs = (
        ["adversary.as_published: False there, True here"] if kind in ("fast", "trades") else []
    )
    assert checkpoint.other_keys(there, config) == differs
    assert checkpoint.config_in({"config": there}, type(config)).adversary.as_published == (
        not differs
    )
    new = checkpoint.plain(config)
    assert checkpoint.other_keys(new, config) == []


def test_an_old_run_goes_on_in_its_own_form_alone(tmp_path, monkeypatch):
    """Resumed by the default, it would silently be one half of each."""
    old = {"adversary.kind": "trades", "adversary.steps": 1, "adversary.as_published": False}
    new = {**old, "adversary.as_published": True}
    classifier_run(tmp_path / "whole", old)
    with monkeypatch.context() as patch:
        crash_before(4, Trainer, patch)
        with pytest.raises(Crash):
            classifier_run(tmp_path / "cut", old, checkpoint_every=2)
    of_before(tmp_path / "cut")
    before = (tmp_path / "cut" / "last.pt").read_bytes()
    assert not load_classifier(tmp_path / "cut" / "last.pt").config.adversary.as_published
    with pytest.raises(InputError, match=r"adversary.as_published: False there, True here") as no:
        classifier_run(tmp_path / "cut", new)
    assert "\n" not in str(no.value)
    assert (tmp_path / "cut" / "last.pt").read_bytes() == before
    classifier_run(tmp_path / "cut", old)
    assert differing(state_of(tmp_path / "cut"), state_of(tmp_path / "whole")) == []
