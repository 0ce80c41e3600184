"""Part `layer`: single layers of two networks, in training and evaluation, and their memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, cycle
from statistics import geometric_mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from convnorm import ConvNorm2d, fixed_weights
from speed.bench import Bench, Spread, inputs, spread
from speed.clock import Run, Timing
from speed.memory import peak_bytes

# in channels, out channels, kernel, stride, padding, map size: each distinct shape once.
SHAPES = {
    "resnet18": [
        (3, 64, 3, 1, 1, 32),
        (64, 64, 3, 1, 1, 32),
        (64, 128, 3, 2, 1, 32),
        (64, 128, 1, 2, 0, 32),
        (128, 128, 3, 1, 1, 16),
        (128, 256, 3, 2, 1, 16),
        (128, 256, 1, 2, 0, 16),
        (256, 256, 3, 1, 1, 8),
        (256, 512, 3, 2, 1, 8),
        (256, 512, 1, 2, 0, 8),
        (512, 512, 3, 1, 1, 4),
    ],
    "sngan_cnn": [
        (3, 64, 3, 1, 1, 32),
        (64, 64, 4, 2, 1, 32),
        (64, 128, 3, 1, 1, 16),
        (128, 128, 4, 2, 1, 16),
        (128, 256, 3, 1, 1, 8),
        (256, 256, 4, 2, 1, 8),
        (256, 512, 3, 1, 1, 4),
    ],
}
# Name of a ratio -> the variants whose times are divided.
RATIOS = {
    "published / full": ("published", "full"),
    "native / conv_bn": ("native", "conv_bn"),
    "no_affine / conv_bn": ("no_affine", "conv_bn"),
    "circular / conv_bn": ("circular", "conv_bn"),
    "spectral / conv_bn": ("spectral", "conv_bn"),
}
MODES = ("training", "evaluation", "fixed_weights")
Shape = tuple[int, ...]
Times = Mapping[str, Sequence[Timing]]


class Published(nn.Conv2d):
    """The published formulation, written plainly: FFTs of the padded kernels and of the maps."""

    def forward(self, x: Tensor) -> Tensor:
        k, stride = self.kernel_size[0], self.stride[0]
        c = F.conv2d(x, self.weight, padding=k - 1)
        size = c.shape[-2:]
        with torch.no_grad():
            gain = torch.fft.rfft2(self.weight, s=size).abs().square().sum(1).rsqrt()
        y = torch.fft.irfft2(gain * torch.fft.rfft2(c), s=size)
        crop = k - 1 - self.padding[0]
        y = y[..., crop : size[0] - crop, crop : size[1] - crop]
        return y[..., ::stride, ::stride]


def variants(i: int, o: int, k: int, stride: int, padding: int) -> dict[str, nn.Module]:
    """name -> layer with affine and BatchNorm as published; `no_affine` with BatchNorm alone."""
    shape = (i, o, k, stride, padding)
    affine = nn.Conv2d(o, o, k - 1 + k % 2, padding="same", groups=o)
    return {
        "conv_bn": nn.Sequential(nn.Conv2d(*shape, bias=False), nn.BatchNorm2d(o)),
        "published": nn.Sequential(Published(*shape, bias=False), affine, nn.BatchNorm2d(o)),
        "full": ConvNorm2d(*shape),
        "native": ConvNorm2d(*shape, grid="native"),
        "no_affine": ConvNorm2d(*shape, grid="native", affine=False),
        "circular": ConvNorm2d(*shape, grid="native", affine_mode="circular"),
        "spectral": nn.Sequential(spectral_norm(nn.Conv2d(*shape, bias=False)), nn.BatchNorm2d(o)),
    }


def training(layer: nn.Module, maps: Sequence[Tensor]) -> Run:
    """Forward and backward, gradients of the input and of all parameters; a new map a call."""
    layer.train()
    direction = torch.randn_like(layer(maps[0]))
    following = cycle(maps)

    def run() -> None:
        x = next(following)
        x.grad = None
        layer.zero_grad()
        layer(x).backward(direction)

    return run


def evaluation(layer: nn.Module, maps: Sequence[Tensor]) -> Run:
    """Forward alone, in evaluation mode; a new map a call."""
    layer.eval()
    following = cycle(maps)

    def run() -> None:
        with torch.no_grad():
            layer(next(following))

    return run


def measure(bench: Bench) -> dict[str, Any]:
    """Time every shape in each mode; return it with geometric means of the ratios over shapes."""
    networks = SHAPES
    if bench.tiny:
        networks = {name: [_narrow(shape) for shape in each] for name, each in SHAPES.items()}
    shapes = list(dict.fromkeys(chain(*networks.values())))
    found = {shape: _timed(shape, bench) for shape in shapes}
    means: dict[str, dict[str, Any]] = {}
    spatial = [shape for shape in shapes if shape[2] > 1]
    for network, members in {**networks, "all": shapes, "all but 1x1": spatial}.items():
        means[network] = {}
        for mode in MODES:
            mean = geometric_means([found[shape][mode] for shape in members])
            means[network][mode] = {name: asdict(each) for name, each in mean.items()}
            line = "  ".join(f"{name} {each}" for name, each in mean.items())
            print(f"geometric mean, {network}, {mode}: {line}", flush=True)
    memory = [found[shape]["memory"] for shape in shapes]
    return {
        "batch_size": bench.batch_size,
        "layers": [_record(shape, found[shape]) for shape in shapes],
        "geometric_means": means,
        "memory": {name: max(each[name] for each in memory) for name in memory[0]},
    }


def _narrow(shape: Shape) -> Shape:
    """The same geometry with few channels."""
    i, o, *geometry = shape
    return min(i, 4), min(o, 4), *geometry


def _timed(shape: Shape, bench: Bench) -> dict[str, Any]:
    """Mode -> times of every variant; and the peak bytes of a training step of each."""
    *geometry, size = shape
    layers = {name: layer.to(bench.device) for name, layer in variants(*geometry).items()}
    map_size = (bench.batch_size, shape[0], size, size)
    maps = inputs(lambda: torch.randn(map_size, device=bench.device).requires_grad_(), bench)
    steps = {name: training(layer, maps) for name, layer in layers.items()}
    found: dict[str, Any] = {"training": bench.in_turn(steps)}
    found["memory"] = {name: peak_bytes(step, bench.device) for name, step in steps.items()}
    passes = {name: evaluation(layer, maps) for name, layer in layers.items()}
    found["evaluation"] = bench.in_turn(passes)
    with fixed_weights():
        found["fixed_weights"] = bench.in_turn(passes)
    for mode in MODES:
        times = ", ".join(
            f"{name} {spread(timing.device for timing in each).median:.2f}"
            for name, each in found[mode].items()
        )
        print(f"{' '.join(map(str, shape))}, {mode}: {times} ms", flush=True)
    return found


def geometric_means(found: Sequence[Times]) -> dict[str, Spread]:
    """Return the mean of each ratio over shapes, which is taken in each round by itself."""
    means = {}
    for name, (above, below) in RATIOS.items():
        rounds = min(len(times[above]) for times in found)  # a slow shape may have had fewer
        ratios = (
            [times[above][turn].device / times[below][turn].device for times in found]
            for turn in range(rounds)
        )
        means[name] = spread(geometric_mean(each) for each in ratios)
    return means


def _record(shape: Shape, found: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a shape."""
    milliseconds = {
        mode: {
            name: asdict(spread(timing.device for timing in times))
            for name, times in found[mode].items()
        }
        for mode in MODES
    }
    return {"shape": shape, "milliseconds": milliseconds, "peak_bytes": found["memory"]}
