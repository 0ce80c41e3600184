"""GroupNorm between LayerNorm and InstanceNorm, and maps of a single point."""

import pytest
import torch
from torch import nn

from convnorm import CATALOGUE, Normalizer
from convnorm.group_norm import GroupNorm


def output(kind, channels, **options):
    (norm,) = Normalizer(kind, **options).output(channels)
    return norm


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(64, 32), (256, 32), (24, 8), (4, 4), (1, 1), (7, 1), (33, 1), (96, 32)],
)
def test_groups_are_32_or_what_divides_both(channels, groups):
    """Widths are options: 32 need not divide the channels."""
    assert output("group", channels).num_groups == groups


def test_one_group_is_layer_norm_and_one_for_each_channel_instance_norm():
    x = torch.randn(3, 7, 5, 4) * torch.arange(1, 8)[:, None, None] + 2
    torch.testing.assert_close(output("group", 7)(x), output("layer", 7)(x))
    x = torch.randn(3, 16, 5, 4) * torch.arange(1, 17)[:, None, None] + 2
    torch.testing.assert_close(output("group", 16)(x), output("instance", 16)(x))
    torch.testing.assert_close(output("instance", 16)(x), nn.InstanceNorm2d(16)(x))


@pytest.mark.parametrize("kind", ["group", "instance"])
def test_a_multiplier_and_a_shift_only_where_asked_for(kind):
    assert not list(output(kind, 8).parameters())
    assert [p.shape for p in output(kind, 8, multiplier=True).parameters()] == [(8,), (8,)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch_size", [0, 1, 4])
@pytest.mark.parametrize("affine", [False, True])
def test_a_map_of_one_point_passes_where_a_group_is_one_channel(training, batch_size, affine):
    """Otherwise zeros, whatever comes in, or torch's error in training."""
    norm = GroupNorm(6, 6, affine=affine).train(training)
    x = torch.randn(batch_size, 6, 1, 1)
    assert torch.equal(norm(x), x)
    if affine:
        nn.init.constant_(norm.weight, 2)
        nn.init.constant_(norm.bias, 3)
        assert torch.equal(norm(x), 2 * x + 3)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    pairs = GroupNorm(3, 6, affine=False)
    torch.testing.assert_close(
        pairs(x).unflatten(1, (3, 2)).mean(2), torch.zeros(batch_size, 3, 1, 1)
    )


def test_kinds_that_normalize_samples_see_no_other():
    assert not any(CATALOGUE[kind].mixes_batch for kind in ("layer", "group", "instance"))
