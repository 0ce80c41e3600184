"""Folding a model: what it computes, which form a layer gets, and what is left as it is."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from convnorm.catalogue import CATALOGUE
from convnorm.fold import fold
from convnorm.folding import Folding
from convnorm.layer import ConvNorm2d
from convnorm.normalizers import Normalizer
from convnorm.transposed import ConvNormTranspose2d


def trained(layer: nn.Module) -> nn.Module:
    """In evaluation mode, float64, with nothing left at a value where a mistake would not show."""
    torch.manual_seed(0)
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.is_floating_point() and "running_var" not in name:
            tensor.data = torch.randn_like(tensor)
        elif "running_var" in name:
            tensor.data = torch.rand_like(tensor) + 0.5
    return layer.double().eval()


def relative(y: torch.Tensor, was: torch.Tensor) -> float:
    return ((y - was).norm() / was.norm()).item()


LAYERS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 4, "stride": 2, "padding": 1, "bias": True},
    "valid": {"kernel_size": 3},
    "wide padding": {"kernel_size": 3, "padding": 3},
    "same, even": {"kernel_size": 4, "padding": "same"},
    "rectangular": {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 1)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
    "replicated": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate"},
    "pointwise": {"kernel_size": 1, "stride": 2, "bias": True},
    "scaled": {"kernel_size": 3, "padding": 1, "scale": 1.7, "bias": True},
}
FUNCTIONS = {
    "bare": {"affine": False, "batch_norm": False},
    "affine": {"batch_norm": False},
    "batch norm": {"affine": False},
    "both": {},
    "circular affine": {"affine_mode": "circular"},
    "wide circular affine": {"affine_mode": "circular", "affine_size": 5},
}


@pytest.mark.parametrize("grid", ["full", "native"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("geometry", LAYERS)
def test_exact_forms_are_the_layer(geometry, function, grid):
    layer = ConvNorm2d(4, 6, **LAYERS[geometry], **FUNCTIONS[function], grid=grid)
    layer = trained(layer)
    x = torch.randn(3, 4, 10, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
        forms = [form for form in Folding(layer, (10, 12)).forms() if form.is_exact]
        scaled = geometry == "pointwise" and function != "wide circular affine"
        assert ("scaled" if scaled else "products") in {form.name for form in forms}
        for form in forms:
            assert relative(form.build()(x), expected) < 1e-12, form.name


@pytest.mark.parametrize("grid", ["full", "native"])
@pytest.mark.parametrize("geometry", ["plain", "circular", "reflected"])
def test_every_form_takes_one_image_without_its_batch(geometry, grid):
    layer = trained(ConvNorm2d(2, 4, **LAYERS[geometry], grid=grid))
    x = torch.randn(3, 2, 8, 10, dtype=torch.float64)
    with torch.no_grad():
        for form in Folding(layer, (8, 10)).forms():
            built = form.build()
            assert relative(built(x[0]), built(x)[0]) < 1e-12, form.name


@pytest.mark.parametrize("grid", ["full", "native"])
@pytest.mark.parametrize("function", ["bare", "circular affine"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_error_of_a_form_is_what_was_expected_of_it(stride, function, grid):
    """On a ring, where there are no borders, the expectation is exact but for the few images."""
    options = {"padding": 1, "padding_mode": "circular", **FUNCTIONS[function]}
    layer = trained(ConvNorm2d(4, 6, 3, stride, **options, grid=grid))
    x = torch.randn(200, 4, 12, 12, dtype=torch.float64)
    names = set()
    with torch.no_grad():
        zero = layer(torch.zeros_like(x[:1]))
        expected = layer(x)
        for form in Folding(layer, (12, 12)).forms():
            error = ((form.build()(x) - expected).norm() / (expected - zero).norm()).item()
            assert error == pytest.approx(form.error, rel=0.05, abs=1e-7), form.name
            names.add(form.name.split()[0])
    assert names >= {"window", "matrix", "products"} | ({"merged"} if grid == "full" else set())


def test_form_follows_from_inputs_and_tolerance():
    torch.manual_seed(0)
    many = nn.Conv2d(64, 64, 3, padding=1)
    few = nn.Conv2d(3, 64, 7, stride=2, padding=3)  # the stem of an ImageNet ResNet
    forms = {}
    for name, conv in {"many": many, "few": few}.items():
        layer = ConvNorm2d.from_conv(conv, affine=False, batch_norm=False)
        x = torch.randn(1, conv.in_channels, 32, 32)
        for tolerance in (0.1, 0.01, 0.0):
            _, report = fold(layer, x, tolerance=tolerance)
            (row,) = report.rows
            forms[name, tolerance] = row.form
            assert row.error <= max(tolerance, 1e-5)
    assert forms["many", 0.01].startswith("window")
    assert forms["few", 0.1].startswith("merged")
    assert {forms[name, 0.0] for name in ("many", "few")} == {"products"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        ConvNorm2d(3, 8, 3, padding=1),
        nn.ReLU(),
        ConvNorm2d(8, 8, 4, 2, 1, grid="native"),
        nn.ReLU(),
        ConvNorm2d(8, 16, 1),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    )


def test_a_folded_model_has_no_layer_of_ours_and_the_first_is_as_it_was():
    model = network().train()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 3, 12, 12)
    folded, report = fold(model, x[:1], tolerance=1e-3)
    assert not any(isinstance(module, ConvNorm2d) for module in folded.modules())
    assert len(report.folded) == 3
    assert report.left == {}
    assert model.training
    assert not folded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    with torch.no_grad():
        assert relative(folded(x), model.eval()(x)) < 5e-3
    assert "window" in str(report) or "merged" in str(report)


def test_what_cannot_be_folded_is_left_and_said():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never = ConvNorm2d(3, 3, 3, padding=1), ConvNorm2d(3, 3, 3)
            self.once = ConvNorm2d(3, 3, 3, padding=1)
            self.batch = ConvNorm2d(3, 3, 3, padding=1)
            self.batch.batch_norm = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x):
            return self.batch(self.once(self.twice(x) + self.twice(x[:, :, ::2, ::2]).mean()))

    model = Twice().eval()
    x = torch.randn(2, 3, 8, 8)
    _, report = fold(model, x)
    assert report.folded == ("once",)
    assert report.left == {
        "twice": "runs on maps of several sizes: 4x4, 8x8",
        "never": "not run by the example",
        "batch": "its BatchNorm takes the statistics of the batch",
    }
    assert report.output_error < 0.05


def test_layers_with_hooks_and_transposed_ones_are_left_and_said():
    """A hook can change the input, which the plain module would not."""
    model = nn.Sequential(
        ConvNorm2d(3, 4, 3, padding=1),
        ConvNorm2d(4, 4, 3, padding=1),
        ConvNormTranspose2d(4, 4, 4, 2, 1),
    ).eval()
    model[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    x = torch.randn(2, 3, 8, 8)
    folded, report = fold(model, x, tolerance=0)
    assert report.folded == ("1",)
    assert report.left == {
        "0": "has hooks, which may change what it computes",
        "2": "transposed, of which there is no plain form",
    }
    torch.testing.assert_close(folded(x), model(x))


@pytest.mark.parametrize(
    "kind", [name for name, kind in CATALOGUE.items() if kind.normalizes_convolution]
)
def test_every_kind_computes_the_same_when_it_is_folded(kind):
    torch.manual_seed(0)
    layer = Normalizer(kind).convolution(nn.Conv2d(4, 6, 3, padding=1))
    model = nn.Sequential(layer).eval()
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        expected = model(x)
    if not any(isinstance(m, ConvNorm2d) or is_parametrized(m) for m in model.modules()):
        with pytest.raises(ValueError, match="no ConvNorm2d and no parametrized weight"):
            fold(model, x)
        return
    folded, _ = fold(model, x, tolerance=0)
    assert not any(is_parametrized(module) for module in folded.modules())
    with torch.no_grad():
        assert relative(folded(x), expected) < 1e-5


@pytest.mark.parametrize(
    ("model", "tolerance", "message"),
    [
        (nn.Conv2d(3, 3, 3), 0.01, "no ConvNorm2d"),
        (ConvNorm2d(3, 3, 3), -0.1, "tolerance must be 0 or more, not -0.1"),
        (ConvNorm2d(3, 3, 3), float("nan"), "tolerance must be 0 or more, not nan"),
    ],
)
def test_fold_refuses(model, tolerance, message):
    with pytest.raises(ValueError, match=message):
        fold(model, torch.zeros(1, 3, 8, 8), tolerance=tolerance)
