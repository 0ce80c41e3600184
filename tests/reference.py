"""Slow oracles for the layer, written from the formulas and sharing no code with it.

Kernels are (O, I / groups, k_h, k_w), maps (N, C, H, W), padding is (left,
right, top, bottom), the other geometry is given in pairs.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def dense(layer: Callable, size: tuple[int, int, int]) -> torch.Tensor:
    """The matrix of an affine map of (N, I, H, W): the identity pushed through it.

    Returns (O, H' * W', I * H * W), in a module's dtype and else in float64.
    """
    dtype = next(layer.parameters()).dtype if isinstance(layer, nn.Module) else torch.float64
    count = math.prod(size)
    identity = torch.eye(count, dtype=dtype).view(count, *size)
    with torch.no_grad():
        columns = layer(identity) - layer(torch.zeros(1, *size, dtype=dtype))
    return columns.flatten(2).permute(1, 2, 0)


def sigma_max(layer: Callable, size: tuple[int, int, int]) -> float:
    """The largest singular value of `dense`."""
    return torch.linalg.matrix_norm(dense(layer, size).flatten(0, 1), ord=2).item()


def exponentials(frequencies: torch.Tensor, positions: torch.Tensor, period: int) -> torch.Tensor:
    """exp(2 pi i f p / period) for all frequencies f (rows) and positions p (columns)."""
    turns = frequencies.double()[:, None] * positions.double()[None, :] / period
    return torch.exp(2j * math.pi * turns)


def energy(
    weight: torch.Tensor,
    ring: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
) -> torch.Tensor:
    """Sum over inputs of |W^|^2 on an n x m ring of outputs: (O, n, m), all frequencies.

    Strided outputs: the mean over the aliases on the s_h n x s_w m ring before subsampling.
    """
    waves = [
        exponentials(torch.arange(n * s), torch.arange(k) * d, n * s)
        for n, s, k, d in zip(ring, stride, weight.shape[2:], dilation, strict=True)
    ]
    transform = torch.einsum("oihw,yh,xw->oiyx", weight.to(torch.complex128), *waves)
    fine = transform.abs().square().sum(1)  # (O, s_h n, s_w m)
    return fine.view(-1, stride[0], ring[0], stride[1], ring[1]).mean((1, 3))


def gain(weight: torch.Tensor, ring, dilation, stride, eps: float) -> torch.Tensor:
    """(P + eps * |W|^2)^(-1/2): (O, n, m)."""
    square = weight.square().sum((1, 2, 3))[:, None, None]
    return (energy(weight, ring, dilation, stride) + eps * square).rsqrt()


def explicit(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    grid: str = "full",
    eps: float = 1e-6,
) -> torch.Tensor:
    """The layer by explicit complex exponentials: sums over frequencies, no FFT, no Gram matrix.

    full: x lies on a ring long enough that nothing wraps (circular: the map is the ring), the
    convolution is a product on all frequencies, and the inverse sums are taken at the outputs'
    positions. native: torch's own convolution, filtered on the ring of its output.
    """
    mode = "constant" if padding_mode == "zeros" else padding_mode
    if grid == "native":
        c = F.conv2d(F.pad(x, padding, mode), weight, None, stride, 0, dilation, groups)
        ring = tuple(c.shape[2:])
        waves = [exponentials(torch.arange(n), torch.arange(n), n) for n in ring]
        spectrum = torch.einsum("ncyx,uy,vx->ncuv", c + 0j, *(w.conj() for w in waves))
        spectrum = spectrum * gain(weight, ring, dilation, stride, eps)
        y = torch.einsum("ncuv,uy,vx->ncyx", spectrum, *waves) / math.prod(ring)
        return y.real
    if padding_mode in ("reflect", "replicate"):
        x, padding = F.pad(x, padding, mode), (0, 0, 0, 0)
    pads = ((padding[2], padding[3]), (padding[0], padding[1]))
    to_frequency, kernel_waves, to_position, ring = [], [], [], []
    for size, k, s, d, (before, after) in zip(
        x.shape[2:], weight.shape[2:], stride, dilation, pads, strict=True
    ):
        reach = d * (k - 1)
        n = size if padding_mode == "circular" else size + 2 * max(reach, before, after) - reach
        outputs = torch.arange((size + before + after - reach - 1) // s + 1) * s - before
        frequencies = torch.arange(n)
        to_frequency.append(exponentials(frequencies, torch.arange(size), n).conj())
        kernel_waves.append(exponentials(frequencies, torch.arange(k) * d, n))
        to_position.append(exponentials(frequencies, outputs, n) / n)
        ring.append(n)
    full_weight = torch.zeros(len(weight), x.shape[1], *weight.shape[2:], dtype=weight.dtype)
    rows, width = len(weight) // groups, weight.shape[1]
    for g in range(groups):
        block = slice(g * rows, (g + 1) * rows)
        full_weight[block, g * width : (g + 1) * width] = weight[block]
    spectrum = torch.einsum("nihw,uh,vw->niuv", x + 0j, *to_frequency)
    symbol = torch.einsum("oihw,uh,vw->oiuv", full_weight + 0j, *kernel_waves)
    product = torch.einsum("oiuv,niuv->nouv", symbol, spectrum)
    product = product * gain(weight, tuple(ring), dilation, (1, 1), eps)
    return torch.einsum("nouv,uy,vx->noyx", product, *to_position).real


def published(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    """ConvNorm as the reference implementation computes it in training mode (Liu et al. 2021).

    Square kernels, zero padding up to k - 1, one stride; no eps.
    """
    k = weight.shape[-1]
    c = F.conv2d(x, weight, padding=k - 1)
    size = c.shape[-2:]
    power = torch.fft.rfft2(weight.detach(), s=size).abs().square().sum(1)
    y = torch.fft.irfft2(torch.fft.rfft2(c) * torch.exp(-0.5 * power.log()), s=size)
    crop = k - 1 - padding
    y = y[..., crop : size[0] - crop, crop : size[1] - crop]
    return y[..., ::stride, ::stride]


# Kernels whose spectrum has zeros: name -> (2, 1, 3, 3), to be used with one input channel.
DEGENERATE = {
    "zero": [[[0.0, 0, 0], [0, 0, 0], [0, 0, 0]]],
    "laplacian": [[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]],
    "sobel": [[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]],
    "box": [[[1.0, 1, 1], [1, 1, 1], [1, 1, 1]]],
}


def stages(layer: nn.Conv2d) -> dict[str, Callable]:
    """What a ConvNorm2d with circular padding computes after each of its parts, without offsets.

    Each is a function of (N, I, H, W); the stride divides H and W.
    """
    weight, scale = layer.weight.detach(), layer.scale
    stride, pads = layer.stride, tuple(layer._reversed_padding_repeated_twice)
    geometry = (pads, layer.dilation, layer.groups, "circular")

    def conv(x):
        return F.conv2d(
            F.pad(x, pads, "circular"), weight, None, stride, 0, layer.dilation, layer.groups
        )

    def gain(x, stride=stride):
        found = explicit(x, weight, stride, *geometry, grid=layer.grid, eps=layer.eps)
        return scale * found

    def convolved(y):
        kernel = layer.affine.weight.detach()
        k = kernel.shape[2:]
        ring = F.pad(y, (k[1] // 2, k[1] // 2, k[0] // 2, k[0] // 2), "circular")
        return F.conv2d(ring, kernel, None, groups=len(kernel))

    def affine(x):
        if layer.affine_mode == "circular" and layer.grid == "full":  # before the stride
            return convolved(gain(x, (1, 1)))[:, :, :: stride[0], :: stride[1]]
        return convolved(gain(x))

    def batch_norm(x):
        norm = layer.batch_norm
        factor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        return affine(x) * factor[:, None, None]

    return {"conv": conv, "gain": gain, "affine": affine, "batch_norm": batch_norm}
