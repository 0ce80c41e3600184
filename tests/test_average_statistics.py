"""Statistics of BatchNorm that are those of the averaged weights."""

import copy

import pytest
import torch
from runs import (
    ALONE,
    Crash,
    classifier_run,
    crash_before,
    differing,
    log_of,
    state_of,
    tiny_classifier,
)
from torch import nn
from torch.optim.swa_utils import update_bn

from classification import state as state_module
from classification.models import build, load_classifier
from classification.trainer import Trainer
from classification.training_data import training_data
from convnorm import Normalizer
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.averaging import gather_statistics
from convnorm.experiment.run.loop import take_step

OWN = {"train.ema_decay": 0.9, "train.ema_statistics": "own", "normalizer.kind": "batch"}


def make_trainer(changes: dict) -> Trainer:
    config = tiny_classifier(changes)
    return Trainer(config, training_data(config, load_images(config.data)), ALONE)


def images(*batches: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.rand(num, 2, 6, 6, generator=random) for num in batches]


def test_one_batch_leaves_its_mean_and_variance():
    """After a convolution, of the convolution's output: the maps that BatchNorm itself sees."""
    network, (x,) = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), images(8)
    gather_statistics(network, [x])
    maps = network[0](x).detach()
    torch.testing.assert_close(network[1].running_mean, maps.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(network[1].running_var, maps.var(dim=(0, 2, 3)))
    assert network[1].num_batches_tracked == 1


def test_several_batches_leave_what_torch_leaves():
    """The cumulative mean, in a deep network: later layers see what earlier ones normalize."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    )
    with torch.no_grad():
        network[4].running_mean += 7  # which must be forgotten
    expected, batches = copy.deepcopy(network), images(8, 8, 8)
    update_bn(batches, expected)
    gather_statistics(network, batches)
    assert differing(dict(network.state_dict()), dict(expected.state_dict())) == []


def test_nothing_but_statistics_changes():
    """Power iterations that moved would make the training depend on how often it is scored."""
    normalize = Normalizer("spectral", batch_norm=True)
    network = nn.Sequential(normalize(nn.Conv2d(2, 3, 3)), nn.ReLU()).train()
    network[0][1].momentum = 0.3
    network[1].eval()
    before = copy.deepcopy(network.state_dict())
    gather_statistics(network, images(8))
    changed = differing(dict(network.state_dict()), dict(before))
    assert {name.rpartition(".")[2] for name in changed} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert [module.training for module in network.modules()][-1] is False
    assert network[0][1].training
    assert network[0][1].momentum == 0.3


def test_a_network_without_statistics_is_not_run():
    def batches():
        raise AssertionError
        yield

    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3))
    before = copy.deepcopy(network.state_dict())
    gather_statistics(network, batches())  # which would raise
    assert differing(dict(network.state_dict()), dict(before)) == []


@pytest.mark.parametrize("adversary", ["standard", "pgd"])
def test_they_are_of_clean_images_as_they_are(adversary, monkeypatch):
    """Neither attacked nor augmented, each once, and no more than are asked for."""
    trainer = make_trainer({**OWN, "adversary.kind": adversary, "adversary.steps": 1})
    take_step(trainer)
    monkeypatch.setattr(state_module, "STATISTICS_IMAGES", 100)
    seen = []
    hook = trainer.state.ema.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.state.final_network  # noqa: B018
    hook.remove()
    assert [len(batch) for batch in seen] == [40, 40]
    shown = {tuple(image.flatten().tolist()) for image in torch.cat(seen)}
    there = trainer.batches.data.images.float() / 255
    assert shown <= {tuple(image.flatten().tolist()) for image in there}
    assert len(shown) == 80


def test_the_average_is_scored_and_saved_with_statistics_of_its_own(tmp_path):
    """Those of averaged steps would be of other weights."""
    changes = {**OWN, "split.validation": 0.2, "split.train_fraction": 0.5, "train.epochs": 2}
    summary = classifier_run(tmp_path, changes)
    config = tiny_classifier(changes)
    data = training_data(config, load_images(config.data))
    loaded = load_classifier(tmp_path / "last.pt")
    again = build(config, 10, data.mean, data.std)
    again.load_state_dict(loaded.network.state_dict())
    trainer = Trainer(config, data, ALONE)
    gather_statistics(again, trainer.state._clean_images())
    assert differing(dict(again.state_dict()), dict(loaded.network.state_dict())) == []
    with torch.no_grad():
        right = loaded.network(data.validation.images / 255).argmax(1) == data.validation.labels
    scores = summary["metrics"]["scores"]
    assert scores["accuracy"] == pytest.approx(right.double().mean().item())


def test_a_resumed_run_is_bit_identical(tmp_path, monkeypatch):
    """However often it was saved or scored in between."""
    changes = {**OWN, "normalizer.kind": "spectral", "adversary.kind": "fast", "train.epochs": 2}
    classifier_run(tmp_path / "whole", changes)
    with monkeypatch.context() as patch:
        crash_before(5, Trainer, patch)
        with pytest.raises(Crash):
            classifier_run(tmp_path / "cut", changes, checkpoint_every=2)
    classifier_run(tmp_path / "cut", changes, checkpoint_every=1)
    for name in ("last.pt", "best.pt"):
        states = [state_of(tmp_path / run, name) for run in ("cut", "whole")]
        assert differing(*states) == []
    assert log_of(tmp_path / "cut", "metrics.jsonl") == log_of(tmp_path / "whole", "metrics.jsonl")


def test_without_an_average_there_is_nothing_to_have_statistics():
    with pytest.raises(InputError, match=r"train.ema_statistics: 'own' is not allowed") as refused:
        tiny_classifier({"train.ema_statistics": "own"})
    assert "\n" not in str(refused.value)
