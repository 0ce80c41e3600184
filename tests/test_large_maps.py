"""ConvNorm on maps of 128 and 256 pixels, square or not: its numbers, its memory, its tables."""

import numpy as np
import pytest
import reference
import torch
from torch.autograd.graph import saved_tensors_hooks

from convnorm import ConvNorm2d, filtering, tables
from convnorm.functional import conv_norm2d, spectral_gain
from convnorm.normalizers import Normalizer
from gan.networks import build_discriminator

CPU = torch.device("cpu")
SIZES = [(128, 128), (256, 256), (96, 160)]
LAYERS = {"3x3": ((3, 3), (1, 1)), "4x4, stride 2": ((4, 4), (2, 2))}


@pytest.fixture
def no_tables(monkeypatch) -> dict:
    """No table is kept yet; returns those that will be."""
    kept = {}
    monkeypatch.setattr(tables, "_tables", kept)
    monkeypatch.setattr(tables, "_captured", set())
    return kept


def exact_cosines(frequencies: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """cos(2 pi f p / n), in the longest numbers that there are."""
    pi = np.arccos(np.longdouble(-1))
    return np.cos(2 * pi * np.multiply.outer(places, frequencies).astype(np.longdouble) / n)


@pytest.mark.parametrize("n", [130, 131, 258, 259])
def test_tables_of_large_rings_are_rounded_once(n):
    """Phases in float32 are off by up to 1e-5 at the far end of such a ring."""
    half = np.arange(n // 2 + 1)
    table = tables.cosine_table((1, 4), (1, n), (1, 1), (1, 1), CPU, torch.float32)
    errors = table.double().numpy() - exact_cosines(half, np.arange(-3, 4), n)
    assert np.abs(errors).max() < 2**-24
    table = tables.cosine_table((4, 1), (n, 1), (1, 1), (1, 1), CPU, torch.float32)
    errors = table.double().numpy() - exact_cosines(np.arange(n), np.arange(-3, 4), n)
    assert np.abs(errors).max() < 2**-24
    rows = tables.analysis_rows(n, n, CPU, torch.float32)[::2]
    errors = rows.double().numpy() - exact_cosines(np.arange(n), half, n)
    assert np.abs(errors).max() < 2**-24
    waves = tables.kernel_waves((1, 4), (1, n), (1, 1), (0, 0), CPU, torch.float32)
    errors = waves[:n].double().numpy() - exact_cosines(np.arange(4), np.arange(n), n)
    assert np.abs(errors).max() < 2**-24


@pytest.mark.parametrize("ring", [(131, 131), (258, 258), (98, 162)])
def test_gains_of_large_rings_have_the_accuracy_of_float32(ring):
    """Of as many inputs as take float32; far frequencies must not lose digits."""
    weight = torch.randn(1, 33, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = reference.gain(weight.double(), ring, (1, 1), (1, 1), 1e-6)
    found = spectral_gain(weight, ring)
    torch.testing.assert_close(found.double(), expected[..., : ring[1] // 2 + 1], rtol=2e-6, atol=0)


@pytest.mark.parametrize("grid", ["full", "native"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_large_maps_have_the_accuracy_of_float32(size, layer, grid):
    torch.manual_seed(0)
    kernel, stride = LAYERS[layer]
    x, weight = torch.randn(1, 2, *size), torch.randn(2, 2, *kernel)
    geometry = (stride, (1, 1, 1, 1))
    found = conv_norm2d(x, weight, *geometry, grid=grid)
    expected = reference.explicit(x.double(), weight.double(), *geometry, grid=grid)
    error = (found.double() - expected).square().mean().sqrt() / expected.std()
    assert error < 1e-6


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_keeps_its_input_and_the_gain_for_the_backward_pass(layer):
    """A spectrum, the whole ring behind a stride or a padded copy would be another map or more."""
    kernel, stride = LAYERS[layer]
    x = torch.randn(2, 4, 128, 128, requires_grad=True)
    made = ConvNorm2d(4, 4, kernel, stride, 1, batch_norm=False)
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = made(x)
    n = 128 + kernel[0] - 1
    gain = 4 * 4 * n * (n // 2 + 1)  # bytes
    ring = 1 if stride == (2, 2) else (n / 128) ** 2  # in front of the affine: a view of it
    weights = 2**12
    assert sum(storages.values()) <= x.nbytes + gain + ring * y.nbytes + weights
    y.sum().backward()


def test_an_output_behind_a_stride_does_not_hold_the_ring():
    x, weight = torch.randn(1, 2, 128, 128), torch.randn(3, 2, 4, 4)
    y = conv_norm2d(x, weight, (2, 2), (1, 1, 1, 1))
    assert y.shape == (1, 3, 64, 64)
    assert y.untyped_storage().nbytes() == y.nbytes


def test_a_matrix_for_each_channel_never_takes_more_than_its_share(monkeypatch):
    """Few outputs of a large ring, as of patches: 64 of 143 x 143 are 5 MB a channel."""
    monkeypatch.setattr(filtering, "filter_matrix", None)
    x, gain = torch.randn(2, 52, 143, 143), torch.rand(52, 143, 72)
    places = range(15, 143, 16)
    assert filtering.matrix_is_faster(len(places) ** 2, 16, "cpu")
    assert 52 * len(places) ** 2 * 143**2 > filtering.LARGEST_MATRIX
    monkeypatch.setattr(filtering, "matrix_is_faster", lambda *_: True)
    y = filtering.circular_filter(x, gain, places, places)
    assert y.shape == (2, 52, 8, 8)
    with pytest.raises(TypeError):  # one that fits is taken
        filtering.circular_filter(x[:, :8], gain[:8], places, places)


def test_tables_of_ever_new_sizes_let_the_longest_unused_go(no_tables, monkeypatch):
    """Kept for good, they are a leak for who evaluates on images of many sizes."""
    monkeypatch.setattr(tables, "KEPT", 2**18)
    weight = torch.randn(2, 40, 3, 3)
    pinned = (tables.cosine_table.__wrapped__, (3, 3), (9, 9), (1, 1), (1, 1), CPU, torch.float32)
    first = spectral_gain(weight, (9, 9))
    tables._captured.add(pinned)  # as if a CUDA graph read it
    seen = set()
    for n in range(10, 50):
        spectral_gain(weight, (n, 10))
        spectral_gain(weight, (10, 10))
        seen |= no_tables.keys()
        assert sum(table.nbytes for table in no_tables.values()) <= 2**18
        if n == 10:
            in_use = no_tables[*pinned[:2], (10, 10), *pinned[3:]]
    rings = [key[2] for key in no_tables if key[0] is pinned[0]]
    assert (9, 9) in rings  # pinned
    assert any(table is in_use for table in no_tables.values())  # all the time: never made anew
    assert (49, 10) in rings
    assert (11, 10) not in rings
    assert len(seen) > len(no_tables)
    torch.testing.assert_close(spectral_gain(weight, (9, 9)), first, rtol=0, atol=0)


def test_one_table_larger_than_all_that_may_be_kept_is_kept_alone(no_tables, monkeypatch):
    monkeypatch.setattr(tables, "KEPT", 1)
    for n in (5, 6):
        tables.cosine_table((3, 3), (n, n), (1, 1), (1, 1), CPU, torch.float32)
    assert [key[2] for key in no_tables] == [(6, 6)]


@pytest.mark.parametrize("grid", ["full", "native"])
def test_a_discriminator_of_128_pixels_trains_on_few_tables(no_tables, grid):
    torch.manual_seed(0)
    normalize = Normalizer("convnorm", grid=grid)
    options = {"discriminator_width": 1, "attention": 32}
    same = {"image_size": 128, "channels": 3, "options": options}
    D = build_discriminator("sngan_resnet", normalize, **same)
    D(torch.randn(2, 3, 128, 128)).sum().backward()
    assert all(p.grad.isfinite().all() for p in D.parameters())
    assert sum(table.nbytes for table in no_tables.values()) < 10 * 2**20
