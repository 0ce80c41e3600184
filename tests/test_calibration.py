"""The start of ConvNorm's affine: the nearest one, by the weights and by images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convnorm import ConvNorm2d, calibration
from convnorm.calibration import LeastSquares, calibrate_on_weights
from convnorm.convert import convert

OPTIONS = [
    {},
    {"stride": 2},
    {"grid": "full", "stride": 2},
    {"grid": "full", "affine_mode": "circular", "stride": 2},
    {"affine_mode": "circular", "bias": True},
    {"bias": True, "scale": 3.0},
    {"kernel_size": (4, 2), "dilation": (1, 2), "groups": 2},
    {"kernel_size": 1},
]


def pair(kernel_size=3, stride=1, dilation=1, groups=1, bias=False, mode="circular", **options):
    """A convolution of maps on a ring, where nothing ends, and its layer."""
    torch.manual_seed(0)
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = "same" if stride == 1 else 1
    geometry = (kernel, stride, padding, dilation, groups, bias, mode)
    conv = nn.Conv2d(8, 12, *geometry, dtype=torch.float64)
    options = {"grid": "native", "affine_init": "dirac", "batch_norm": False, **options}
    return conv, ConvNorm2d.from_conv(conv, **options)


def white(n=16, size=32, channels=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64)


def error(layer, conv, x, bias=0):
    c = conv(x)
    return ((layer(x) - c).norm() / (c - bias).norm()).item()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_the_weights_tell_the_nearest_affine_under_white_inputs(options):
    """And its error, beside that of the affine that least squares finds on such inputs."""
    conv, layer = pair(**options)
    x = white()
    bias = 0 if conv.bias is None else conv.bias[:, None, None]
    before = error(layer, conv, x, bias)
    expected = calibrate_on_weights(layer)
    by_weights = error(layer, conv, x, bias)
    assert by_weights == pytest.approx(expected, rel=0.05, abs=1e-5)
    assert by_weights < before / 2
    if layer.affine_mode == "circular" and layer.grid == "full":
        return
    fit = LeastSquares(layer)
    fit.add(x, conv(x))
    assert fit.solve() == pytest.approx(error(layer, conv, x), rel=1e-3, abs=1e-5)
    by_images = error(layer, conv, x, bias)
    assert by_weights * 0.97 - 1e-5 <= by_images <= by_weights + 1e-5


@pytest.mark.parametrize("inputs", [1, 3, 16, 64])
def test_the_error_falls_with_the_root_of_the_number_of_inputs(inputs):
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, 16, 3, padding=1, bias=False)
    layer = ConvNorm2d.from_conv(conv, grid="native", batch_norm=False)
    assert calibrate_on_weights(layer) == pytest.approx(0.29 / inputs**0.5, rel=0.15)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("grid", ["native", "full"])
@torch.no_grad()
def test_least_squares_are_those_of_a_dense_solver(grid, mode, monkeypatch):
    """With zeros around the map, a bias, coloured inputs, and patches made in small blocks."""
    conv, layer = pair(bias=True, mode=mode, grid=grid)
    x = F.avg_pool2d(white(6, 12), 3, 1) + 0.5
    results = []
    for block in (calibration.BLOCK, 10_000, 1):
        monkeypatch.setattr(calibration, "BLOCK", block)
        fit = LeastSquares(layer)
        for part in x.split(4):
            fit.add(part, conv(part))
        results.append((fit.solve(), layer.affine.weight.clone(), layer.affine.bias.clone()))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])

    nn.init.dirac_(layer.affine.weight, 12)
    nn.init.zeros_(layer.affine.bias)
    z = F.pad(layer(x), (1, 1, 1, 1), "circular" if mode == "circular" else "constant")
    for channel in range(12):
        patches = F.unfold(z[:, channel : channel + 1], 3).transpose(1, 2).flatten(0, 1)
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
        found = torch.linalg.lstsq(patches, conv(x)[:, channel].flatten()[:, None]).solution[:, 0]
        torch.testing.assert_close(results[0][1][channel].flatten(), found[:-1], rtol=0, atol=2e-3)
        torch.testing.assert_close(results[0][2][channel], found[-1], rtol=0, atol=2e-3)


@torch.no_grad()
def test_a_channel_without_signal_keeps_what_the_weights_say():
    """A kernel of zeros keeps the identity, from which it can be trained again."""
    conv, layer = pair()
    conv.weight[0] = 0
    for x in (white(2), torch.zeros(2, 8, 8, 8, dtype=torch.float64)):
        fit = LeastSquares(layer)
        start = layer.affine.weight.clone()
        fit.add(x, conv(x))
        residual = fit.solve()
        identity = nn.init.dirac_(torch.empty_like(start), 12)
        torch.testing.assert_close(layer.affine.weight[0], identity[0])
    assert residual is None
    assert torch.equal(layer.affine.weight, start)


class Small(nn.Module):
    """Residual, with BatchNorms whose statistics are those of its images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(32, 32, 3, 2, padding=1, bias=False)
        self.short = nn.Conv2d(32, 32, 1, 2, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(32, momentum=None) for _ in range(4)])
        self.fc = nn.Linear(32, 10)
        with torch.no_grad():
            self.train()(images(0))
        self.eval()

    def forward(self, x):
        x = self.norms[0](self.stem(x)).relu()
        y = self.norms[1](self.conv1(x)).relu()
        y = self.norms[2](self.conv2(y)) + self.norms[3](self.short(x))
        return self.fc(y.relu().mean((2, 3)))


def images(seed):
    """Coloured noise."""
    generator = torch.Generator().manual_seed(seed)
    return F.avg_pool2d(torch.randn(32, 3, 22, 22, generator=generator), 3, 1) * 3


@pytest.mark.parametrize("grid", ["native", "full"])
def test_a_calibrated_network_is_near_the_original(grid):
    """Far without, nearer by the weights, nearest by images; measured on images not seen."""
    model, held_out = Small(), images(2)
    errors = []
    for calibrate in (None, "weights", images(1)):
        _, report = convert(model, example=held_out, calibrate=calibrate, grid=grid)
        errors.append(report.output_error)
        layers = {row.layer: row.error for row in report.rows}
        if calibrate is None:
            assert set(layers.values()) == {None}
            continue
        assert layers["stem"] is None
        assert layers["short"] < 1e-3
        assert 0.01 < layers["conv1"] < 0.1
        assert report.images == (None if calibrate == "weights" else 32)
    assert errors[0] > 0.3
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.1


def test_images_may_come_as_a_tensor_or_one_after_another():
    model, x = Small(), images(1)
    results = []
    for calibrate in (x, [x], (part for part in x.split(8)), [(part,) for part in x.split(5)]):
        converted, report = convert(model, calibrate=calibrate)
        assert report.images == 32
        assert report.output_error < 0.1
        results.append(converted.conv1.affine.weight)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)
