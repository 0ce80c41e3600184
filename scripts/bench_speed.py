"""Time the layer against a plain convolution and against the published formulation.

    python scripts/bench_speed.py layer     forward + backward over the layers of two networks
    python scripts/bench_speed.py filter    the filter alone: one matrix or a pair of FFTs

Variants take turns within each repeat, so a disturbance of the machine meets all of them; the
numbers are the least time of each over all repeats.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, product
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnorm import ConvNorm2d, functional
from convnorm.experiment.config.arguments import Parser, file_to_write, path, whole
from convnorm.experiment.errors import exit_code
from convnorm.experiment.files import write_json
from convnorm.experiment.run.distributed import pick_device
from convnorm.experiment.run.hardware import hardware
from convnorm.functional import circular_filter, spectral_gain

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
Run = Callable[[], None]


class Published(nn.Conv2d):
    """The published formulation, written plainly: FFTs of the padded kernels and of the maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def least_milliseconds(
    runs: dict[str, Run], repeats: int, device: torch.device
) -> dict[str, float]:
    """Run each once unmeasured, then all in turn `repeats` times; keep each one's least time."""
    least = dict.fromkeys(runs, math.inf)
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if repeat > 0:
                least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
    return least


def training_step(layer: nn.Module, x: torch.Tensor) -> Run:
    direction = torch.randn_like(layer(x))

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        layer(x).backward(direction)

    return run


def geometric_mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def ratios(times: dict[str, float]) -> dict[str, float]:
    return {
        "published / full": times["published"] / times["full"],
        "native / conv_bn": times["native"] / times["conv_bn"],
        "no_affine / conv_bn": times["no_affine"] / times["conv_bn"],
    }


def bench_layer(args: argparse.Namespace, device: torch.device) -> dict:
    """Forward and backward, gradients of the input and of all parameters, in milliseconds."""
    measured = {}
    for shape in dict.fromkeys(chain(*SHAPES.values())):
        *geometry, size = shape
        x = torch.randn(args.batch_size, shape[0], size, size, device=device).requires_grad_()
        runs = {
            name: training_step(layer.to(device), x) for name, layer in variants(*geometry).items()
        }
        times = least_milliseconds(runs, args.repeats, device)
        if not measured:
            print(f"{'in out k s p size':24}" + "".join(f"{n:>11}" for n in times), "ms", end="   ")
            print("   ".join(ratios(times)))
        measured[shape] = times
        print(
            f"{' '.join(map(str, shape)):24}" + "".join(f"{t:11.2f}" for t in times.values()),
            "     " + "".join(f"{r:16.2f}" for r in ratios(times).values()),
            flush=True,
        )
    means = {}
    spatial = [shape for shape in measured if shape[2] > 1]
    for network, shapes in {**SHAPES, "all": list(measured), "all but 1x1": spatial}.items():
        per_shape = [ratios(measured[shape]) for shape in shapes]
        means[network] = {
            name: geometric_mean([r[name] for r in per_shape]) for name in per_shape[0]
        }
        print(
            f"geometric mean, {network:11}",
            "  ".join(f"{n} {r:.2f}" for n, r in means[network].items()),
        )
    layers = [{"shape": shape, "milliseconds": times} for shape, times in measured.items()]
    return {"batch_size": args.batch_size, "layers": layers, "geometric_means": means}


def bench_filter(args: argparse.Namespace, device: torch.device) -> dict:
    """What `matrix_is_faster` rests on: the filter both ways, forward and backward, in ms.

    Maps of n x n, of which every `step`-th pixel is kept; 64 channels; three batch sizes.
    """
    measured = []
    for batch_size, n, step in product(
        (max(1, args.batch_size // 8), args.batch_size, 4 * args.batch_size),
        (6, 8, 10, 12, 18, 34),
        (1, 2, 4),
    ):
        kept = range(0, n, step)
        if len(kept) > 16:
            continue  # the matrix of a whole 34 x 34 map takes 342 MB
        gain = spectral_gain(torch.randn(64, 64, 3, 3, device=device), (n, n))
        x = torch.randn(batch_size, 64, n, n, device=device).requires_grad_()
        direction = torch.randn(batch_size, 64, len(kept), len(kept), device=device)
        choice = functional.matrix_is_faster(len(kept) ** 2, batch_size)

        def run(matrix: bool, x=x, gain=gain, kept=kept, direction=direction) -> None:
            with mock.patch.object(functional, "matrix_is_faster", return_value=matrix):
                circular_filter(x, gain, kept, kept).backward(direction)

        runs = {"fft": partial(run, False), "matrix": partial(run, True)}
        chosen = list(runs)[choice]
        times = least_milliseconds(runs, args.repeats, device)
        record = {"batch_size": batch_size, "grid": n, "outputs": len(kept) ** 2}
        measured.append({**record, "milliseconds": times, "chosen": chosen})
        print(
            f"batch {batch_size:4}  grid {n:2} x {n:<2}  outputs {len(kept) ** 2:4}  ",
            "  ".join(f"{name} {t:8.2f} ms" for name, t in times.items()),
            f"  chosen: {chosen}",
            flush=True,
        )
    return {"channels": 64, "filters": measured}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("what", choices=("layer", "filter"), help="what is timed, see above")
    parser.add_argument(
        "--batch_size", type=whole(1, 4096), default=32, help="images at a time (%(default)s)"
    )
    parser.add_device("auto takes a CUDA device where there is one")
    parser.add_argument(
        "--threads",
        type=whole(1, 4096),
        default=torch.get_num_threads(),
        help="of the CPU (%(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=whole(1, 10**6),
        default=7,
        help="of each measurement, of which the fastest counts (%(default)s)",
    )
    parser.add_argument("--json", type=path, help="also write the numbers to this file")
    args = parser.parse_args()
    if args.json:
        file_to_write(args.json, "--json")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = pick_device(args.device)
    environment = {"hardware": hardware(device), "torch": torch.__version__}
    print(f"{environment['hardware']}, torch {torch.__version__}, batch {args.batch_size}")
    result = {"layer": bench_layer, "filter": bench_filter}[args.what](args, device)
    if args.json:
        command = " ".join(["python scripts/bench_speed.py", *sys.argv[1:]])
        write_json(args.json, {"command": command, **environment, **result})


if __name__ == "__main__":
    sys.exit(exit_code(main))
