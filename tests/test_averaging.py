"""Averages over steps: what is averaged, what is copied, what advances and what stands still."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from classification.networks.layers import Standardize
from convnorm import CATALOGUE, Normalizer
from convnorm.experiment.run.averaging import averaged, decay_at, follow, running_statistics
from convnorm.spectrum import matrix_norm, operator_norm


def moved(network):
    """A copy with other weights and buffers, all of which are finite."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor += 1 + torch.rand_like(tensor) if tensor.is_floating_point() else 3
    return other


def in_between(average, network, share):
    """name -> what an average that takes `share` of the network makes of each tensor."""
    there = network.state_dict()
    return {
        name: value.lerp(there[name], share) if value.is_floating_point() else there[name]
        for name, value in copy.deepcopy(average.state_dict()).items()
    }


def test_the_decay_forgets_the_first_weights_fast():
    assert [decay_at(0.9, step) for step in (0, 1, 8, 80, 81, 10**6)] == [
        1 / 10,
        2 / 11,
        9 / 18,
        0.9,
        0.9,
        0.9,
    ]
    assert decay_at(0.0, 5) == 0.0


def test_no_average_is_kept_at_a_decay_of_zero():
    assert averaged(nn.Linear(2, 2), 0.0) is None
    follow(None, nn.Linear(2, 2), 0.5)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm1d(4),
        nn.SyncBatchNorm(4),
    ],
    ids=str,
)
def test_weights_and_running_statistics_are_averaged_and_counts_copied(norm):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), norm)
    average = averaged(network, 0.9)
    live = moved(network)
    expected = in_between(average, live, 1 - 0.75)
    follow(average, live, 0.75)
    for name, value in average.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert [id(s) for s in running_statistics(network)] == [
        id(norm.running_mean),
        id(norm.running_var),
    ]


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.999, 0.9999])
def test_all_weights_move_at_once_as_each_would_alone(decay):
    """One kernel for many tensors must round as one for each does."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(n, n + 1, 3) for n in range(1, 5)))
    average = averaged(network, 0.9)
    live = moved(network)
    expected = in_between(average, live, 1 - decay)
    follow(average, live, decay)
    assert all(torch.equal(value, expected[name]) for name, value in average.state_dict().items())


def test_constants_stand_still():
    """Standardization by numbers between those of two datasets."""
    network = nn.Sequential(Standardize([0.4], [0.2]), nn.Conv2d(1, 2, 3))
    average = averaged(network, 0.9)
    before = copy.deepcopy(average.state_dict())
    follow(average, moved(network), 0.5)
    assert torch.equal(average[0].mean, before["0.mean"])
    assert torch.equal(average[0].std, before["0.std"])
    assert not torch.equal(average[1].weight, before["1.weight"])
    assert running_statistics(network) == []


@pytest.mark.parametrize("kind", ["spectral", "spectral_convnorm", "bidirectional", "operator"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_power_iterations_advance_on_the_averaged_weights(kind, batch_norm):
    """Averaged like weights they lose their length; left alone they belong to other weights."""
    torch.manual_seed(0)
    normalize = Normalizer(kind, batch_norm=batch_norm)
    network = nn.Sequential(
        normalize(nn.Conv2d(2, 4, 3, padding=1)), nn.Flatten(), normalize(nn.Linear(64, 1))
    )
    average = averaged(network, 0.9).eval()
    expected, live = copy.deepcopy(average), moved(network)
    follow(average, live, 0.75)
    with torch.no_grad():
        for value, target in zip(expected.parameters(), live.parameters(), strict=True):
            value.lerp_(target, 1 - 0.75)
        normalize.definition.advance(expected.train())
    names = [name for name, _ in average.named_buffers() if name[-1] in "uv"]
    assert len(names) == (4 if kind in ("spectral", "bidirectional") else 3)
    for name in names:
        vector = average.state_dict()[name]
        assert torch.equal(vector, expected.state_dict()[name])
        assert vector.norm().item() == pytest.approx(1, abs=1e-4)
    for _ in range(100):  # it has arrived
        follow(average, live, 0.0)
    linear = average[2].weight
    assert matrix_norm(linear) == pytest.approx(1, abs=1e-3)
    conv = average[0][0] if batch_norm else average[0]
    if kind == "spectral":
        assert matrix_norm(conv.weight) == pytest.approx(1, abs=1e-3)
    elif kind == "bidirectional":
        norms = matrix_norm(conv.weight), matrix_norm(conv.weight.transpose(0, 1))
        assert sum(norms) / 2 == pytest.approx(1, abs=1e-3)
    else:
        assert operator_norm(conv, torch.Size((1, 2, 16, 16))) == pytest.approx(1, abs=1e-3)
    assert running_statistics(network) == [s for m in batch_norms(network) for s in of(m)]


def batch_norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def of(norm):
    return [norm.running_mean, norm.running_var]


def test_modes_and_gradients_are_left_as_they_were():
    normalize = Normalizer("spectral", batch_norm=True)
    network = nn.Sequential(normalize(nn.Conv2d(2, 4, 3)), nn.ReLU())
    average = averaged(network, 0.9).eval()
    average[0][1].train()
    modes = [module.training for module in average.modules()]
    follow(average, moved(network), 0.5)
    assert [module.training for module in average.modules()] == modes
    assert not any(parameter.requires_grad for parameter in average.parameters())


class Centred(nn.Module):
    """A normalizer with a statistic and a constant of its own."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("window", torch.ones(channels))

    def forward(self, x):
        return x - self.centre[:, None, None]


def test_a_kind_says_which_buffers_of_its_own_are_statistics(monkeypatch):
    kind = replace(CATALOGUE["none"], output=lambda channels, options: Centred(channels))
    monkeypatch.setitem(CATALOGUE, "centred", replace(kind, statistics=("centre",)))
    network = nn.Sequential(Normalizer("centred")(nn.Conv2d(1, 4, 3)), Centred(4))
    average = averaged(network, 0.9)
    live = moved(network)
    assert [id(s) for s in running_statistics(network)] == [id(network[0][1].centre)]
    follow(average, live, 0.75)
    torch.testing.assert_close(average[0][1].centre, live[0][1].centre / 4)
    for untouched in (average[0][1].window, average[1].window, average[1].centre + 1):
        assert torch.equal(untouched, torch.ones(4))  # the second is not of a normalized layer


def test_statistics_of_a_kind_are_found_where_they_stand_apart(monkeypatch):
    """Behind an activation, say, where they are in no normalized convolution."""
    kind = replace(CATALOGUE["none"], output=lambda channels, options: Centred(channels))
    monkeypatch.setitem(CATALOGUE, "centred", replace(kind, statistics=("centre",)))
    normalize = Normalizer("centred")
    conv, (output,) = normalize.convolution(nn.Conv2d(1, 4, 3)), normalize.output(4)
    network = nn.Sequential(conv, nn.ReLU(), output)
    assert [id(s) for s in running_statistics(network)] == [id(output.centre)]
