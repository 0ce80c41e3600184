"""Adversarial weight perturbation: its closed form, what it leaves alone, and the authors' loop."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from runs import ALONE, differing, tiny_classifier
from torch import nn

from classification.schedules import awp_at
from classification.trainer import Trainer
from classification.training_data import training_data
from classification.weight_perturbation import perturbed_parameters, worst_weights
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.loop import take_step

GAMMA = 0.05
BASE = {"adversary.eps": 16.0, "adversary.steps": 2, "train.epochs": 2, "optim.lr": 0.05}


def make_trainer(changes: dict) -> Trainer:
    config = tiny_classifier({**BASE, **changes})
    return Trainer(config, training_data(config, load_images(config.data)), ALONE)


def values(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_linear_network_moves_along_its_gradient():
    """v = gamma * |w| * g / |g|, and g is the mean input; a bias and what is not used stay."""
    torch.manual_seed(0)
    network, x = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]), torch.randn(8, 3)
    before = values(network)
    with worst_weights(network, lambda: network[0](x)[:, 0].mean(), GAMMA, ALONE):
        inside = values(network)
    weight, g = before["0.weight"], torch.stack([x.mean(0), torch.zeros(3)])
    expected = weight + GAMMA * weight.norm() * g / g.norm()
    torch.testing.assert_close(inside["0.weight"], expected, rtol=1e-6, atol=1e-6)
    assert differing({**inside, "0.weight": weight}, before) == []
    assert differing(values(network), before) == []


def test_processes_move_by_the_mean_of_their_gradients():
    """By its own gradient, each would train other weights than the others."""
    torch.manual_seed(0)
    network, here, there = nn.Linear(3, 1, bias=False), torch.randn(8, 3), torch.randn(8, 3)
    weight, process = network.weight.detach().clone(), SimpleNamespace()
    process.average_ = lambda tensors: [t.add_(there.mean(0)).div_(2) for t in tensors]
    with worst_weights(network, lambda: network(here).mean(), GAMMA, process):
        moved = network.weight.detach() - weight
    g = (here.mean(0) + there.mean(0))[None] / 2
    torch.testing.assert_close(moved, GAMMA * weight.norm() * g / g.norm())


@pytest.mark.parametrize("kind", ["none", "batch", "spectral", "weight", "convnorm", "oni"])
def test_every_weight_moves_by_gamma_times_its_norm_and_comes_back(kind):
    """Raw weights under a parametrization too; statistics and power iterations do not move."""
    trainer = make_trainer({"normalizer.kind": kind})
    network, draws = trainer.state.network, trainer.draw(0)

    def loss():
        return trainer.loss(draws.images, draws.labels)[0]

    before = values(network)
    with worst_weights(network, loss, GAMMA, ALONE):
        inside = values(network)
    moved = differing(inside, before)
    owned = {f".{name}" for name, p in network.named_parameters() if p.dim() > 1}
    assert set(moved) <= owned
    assert len(moved) == len(perturbed_parameters(network)) >= 4
    for name in moved:
        v, w = inside[name[1:]] - before[name[1:]], before[name[1:]]
        assert (v.norm() / w.norm()).item() == pytest.approx(GAMMA, rel=1e-3)
        if kind == "spectral" and name.endswith("original"):  # its scale is ignored
            assert abs(F.cosine_similarity(v.flatten(), w.flatten(), dim=0)) < 1e-3
    assert differing(values(network), before) == []
    assert all(p.grad is None for p in network.parameters())


def test_the_loss_rises():
    trainer = make_trainer({"normalizer.kind": "batch"})
    draws = trainer.draw(0)
    losses = []
    for sign in (1, -1):

        def loss(sign=sign):
            return sign * trainer.loss(draws.images, draws.labels)[0]

        with worst_weights(trainer.state.network, loss, GAMMA, ALONE):
            losses.append(trainer.loss(draws.images, draws.labels)[0].item())
    assert losses[1] < trainer.loss(draws.images, draws.labels)[0].item() < losses[0]


def test_weights_come_back_after_an_error():
    network = nn.Linear(3, 2)
    before = values(network)
    perturbed = worst_weights(network, lambda: network(torch.ones(1, 3)).sum(), GAMMA, ALONE)
    with pytest.raises(KeyError), perturbed:
        raise KeyError(differing(values(network), before) != [])
    assert differing(values(network), before) == []


def as_published(trainer, model, proxy, draws):
    """One step as in the authors' code: a copy takes a step up the loss."""
    x, y, kind = draws.images, draws.labels, trainer.config.adversary.kind
    if kind == "pgd":
        x_adv = trainer.attack(x, y, draws.start)
    else:
        x_adv = trainer.attack_predictions(x, draws.start)

    def loss_of(network):
        if kind == "pgd":
            return F.cross_entropy(network(x_adv), y)
        natural = F.cross_entropy(network(x), y)
        robust = F.kl_div(
            F.log_softmax(network(x_adv), dim=1),
            F.softmax(network(x), dim=1),
            reduction="batchmean",
        )
        return natural + 6 * robust

    proxy.load_state_dict(model.state_dict())
    proxy_sgd = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-loss_of(proxy)).backward()
    proxy_sgd.step()
    proxy_sgd.zero_grad()
    moves = {}
    for (name, old), new in zip(
        model.state_dict().items(), proxy.state_dict().values(), strict=True
    ):
        if old.dim() > 1 and "weight" in name:
            step = new - old
            moves[name] = GAMMA * old.norm() / (step.norm() + 1e-20) * step
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += moves.get(name, 0)
    loss = loss_of(model)
    loss.backward()
    return moves


@pytest.mark.parametrize(("kind", "passes"), [("pgd", 1), ("trades", 3)])
@pytest.mark.parametrize("normalizer", ["batch", "spectral"])
def test_steps_are_those_of_the_authors(kind, passes, normalizer):
    """Over three steps: weights, running statistics, vectors of power iterations."""
    changes = {"adversary.kind": kind, "adversary.awp": GAMMA, "optim.weight_decay": 0.0}
    trainer = make_trainer({**changes, "normalizer.kind": normalizer})
    model = copy.deepcopy(trainer.state.network)
    proxy = copy.deepcopy(model).train()
    sgd = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
    for step in range(3):
        draws = trainer.draw(step)
        moves = as_published(trainer, model, proxy, draws)
        sgd.param_groups[0]["lr"] = draws.learning_rate
        sgd.step()
        sgd.zero_grad()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight -= moves.get(name, 0)
        take_step(trainer)
    found, expected = trainer.state.network.state_dict(), model.state_dict()
    for name, value in expected.items():
        # The step of the copy is a difference of rounded weights.
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-4, msg=name)
    counts = {value.item() for name, value in found.items() if name.endswith("tracked")}
    assert counts == {3 * passes}


def test_the_warm_up_is_without_it_and_no_step_after():
    """Of epochs, not steps: three steps here, which are those of a run without."""
    changes = {"adversary.kind": "pgd", "normalizer.kind": "batch", "adversary.awp": GAMMA}
    trainer = make_trainer({**changes, "adversary.awp_warmup": 1})
    plain = make_trainer({**changes, "adversary.awp": 0.0})
    assert trainer.batches.per_epoch == 3
    for step in range(4):
        take_step(trainer)
        take_step(plain)
        same = differing(values(trainer.state.network), values(plain.state.network)) == []
        assert same == (step < 3)


def test_kinds_that_do_not_read_it_do_without():
    for kind in ("standard", "free", "fast"):
        config = tiny_classifier({"adversary.kind": kind, "adversary.awp": GAMMA})
        assert awp_at(config.adversary, 5, 3) == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"adversary.awp": -0.1}, r"adversary.awp: -0.1 is not allowed; expected 0 to 1"),
        ({"adversary.awp": 1.5}, r"adversary.awp: 1.5 is not allowed; expected 0 to 1"),
        ({"adversary.awp_warmup": -1}, r"adversary.awp_warmup: -1 is not allowed; expected 0 to"),
        (
            {"adversary.awp": 0.01, "adversary.awp_warmup": 2},
            r"adversary.awp_warmup: 2 is not allowed; expected fewer than the 2 epochs",
        ),
    ],
)
def test_what_cannot_be_is_one_line(changes, expected):
    with pytest.raises(InputError, match=expected) as refused:
        tiny_classifier({"adversary.kind": "pgd", **BASE, **changes})
    assert "\n" not in str(refused.value)
