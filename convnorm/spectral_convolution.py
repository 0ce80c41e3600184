"""A convolution on a ring, frequency by frequency: what ConvNorm's `full` grid asks for at once.

On a ring of n x m pixels a convolution is one small matrix K(w) at every frequency w, and a filter
G_o behind it a factor on the rows of that matrix. So convolution, filter, crop and stride are

    x^ = DFT(x);  y^(w) = K(w) x^(w);  y = inverse DFT of y^ where an output is wanted
    K_oi(w) = G_o(w) sum_t W_oi[t] exp(i w . t)

with about 2 multiplications a pixel, input and output channel in place of k_h * k_w, and without
outputs that a stride throws away. Complex numbers are pairs of real ones here and the transforms
are products with tables: on a CPU that beats FFTs of the sizes H + k - 1, which are seldom smooth.

Every frequency of the half spectrum counts, (n // 2 + 1) * m = F of them, by rows first. Maps at
frequencies are (F, 2, N, C); the 2 is the real and the imaginary part.
"""

import math
from collections.abc import Sequence

import torch

from convnorm.modes import applied, holds
from convnorm.precision import products_are_rounded
from convnorm.tables import (
    Pair,
    analysis_columns,
    analysis_rows,
    kernel_waves,
    synthesis_columns,
    synthesis_rows,
)

Complex = tuple[torch.Tensor, torch.Tensor]  # real and imaginary part

LARGEST_RING = 72  # a transform by tables costs as the side of the ring, that by FFT as its log


def spectral_convolution(
    x: torch.Tensor, kernel: Complex, ring: Pair, rows: Sequence[int], columns: Sequence[int]
) -> torch.Tensor:
    """Convolve maps, which lie at the origin of a ring, and keep some of the outputs.

    x: (N, I, H, W) with H <= n and W <= m; kernel: that of `frequency_kernel`; ring: (n, m); rows
    and columns: places of outputs, modulo n and m. Returns (N, O, len(rows), len(columns)).
    """
    (n, m), (num, inputs, height, width) = ring, x.shape
    half, outputs = n // 2 + 1, kernel[0].shape[1]
    like = (x.device, x.dtype)
    pixels = x.flatten(2).flatten(0, 1).t().reshape(height, width * num * inputs)
    waves = (analysis_rows(n, height, *like) @ pixels).view(half, 2 * width, num * inputs)
    waves = torch.bmm(analysis_columns(m, width, *like).expand(half, -1, -1), waves)
    waves = applied(Product, waves.view(half * m, 2, num, inputs), *kernel)
    waves = waves.view(half, 2 * m, num * outputs)
    waves = torch.bmm(synthesis_columns(m, tuple(columns), *like).expand(half, -1, -1), waves)
    pixels = synthesis_rows(n, tuple(rows), *like) @ waves.view(2 * half, -1)
    maps = pixels.view(-1, num * outputs).t()
    return maps.reshape(num, outputs, len(rows), len(columns))


def frequency_kernel(
    weight: torch.Tensor, gain: torch.Tensor, ring: Pair, dilation: Pair
) -> Complex:
    """K of the module docstring, its parts (F, O, I), for a weight (O, I, k_h, k_w).

    gain: (O, n // 2 + 1, m), half along the rows of the ring.
    """
    outputs, inputs, *kernel = weight.shape
    like = (weight.device, weight.dtype)
    waves = kernel_waves(tuple(kernel), ring, dilation, (0, 0), *like).chunk(2)
    taps = weight.flatten(2).flatten(0, 1).t().contiguous()
    gain = gain.permute(1, 2, 0).reshape(-1, outputs, 1)
    # Part by part, so that no gradient is copied to be put together.
    return tuple((part @ taps).view(-1, outputs, inputs) * gain for part in waves)


def behind(kernel: Complex, symbol: Complex) -> Complex:
    """The kernel at all frequencies times that of a filter behind it, parts (F, O) each."""
    (real, imaginary), (c, s) = kernel, (part[:, :, None] for part in symbol)
    return c * real - s * imaginary, c * imaginary + s * real


def spectrum_is_faster(x: torch.Tensor, weight: torch.Tensor, groups: int, ring: Pair) -> bool:
    """Whether `spectral_convolution` beats a convolution on the whole ring and a filter behind it.

    Only on a CPU: on other devices nothing is known. It keeps to full precision, and half precision
    and rounded products do not. Multiplications a frequency, input and output channel:
    2 k_h k_w - 4 fewer for an image; from making K 350 more, and a fixed sum for each frequency.
    The transforms of an image cost 190 a frequency and channel, those of the filter 520. The four
    numbers are fitted to times of 44 layers (scripts/bench_speed.py filter).
    """
    outputs, inputs, *kernel = weight.shape
    saved = 2 * math.prod(kernel) - 4 + (520 - 190) / inputs - 190 / outputs
    return (
        max(ring) <= LARGEST_RING
        and groups == 1
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not products_are_rounded("cpu")
        and holds(x.shape[0] * saved >= 350 + 50_000 / (inputs * outputs))
    )


def _by_rows(x: torch.Tensor) -> torch.Tensor:
    """(F, 2, N, C) -> (F, 2 N, C): real parts above imaginary parts."""
    return x.reshape(len(x), -1, x.shape[-1])


def _times(x: torch.Tensor, real: torch.Tensor, imaginary: torch.Tensor, sign: int) -> torch.Tensor:
    """x (F, 2, N, C) times (real + sign i imaginary), parts (F, C, D): (F, 2, N, D)."""
    shape = (*x.shape[:3], real.shape[2])
    by_real, by_imaginary = (torch.bmm(_by_rows(x), K).view(shape) for K in (real, imaginary))
    by_real[:, 0].sub_(by_imaginary[:, 1], alpha=sign)
    by_real[:, 1].add_(by_imaginary[:, 0], alpha=sign)
    return by_real


class _Bilinear(torch.autograd.Function):
    """A function that is linear in X and in Y; so are its gradients, which are of its own kind."""

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        ctx.save_for_backward(*inputs)


class Product(_Bilinear):
    """X K^T at every frequency: X (F, 2, N, I), K = real + i imaginary (F, O, I)."""

    @staticmethod
    def forward(X: torch.Tensor, real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
        return _times(X, real.mT, imaginary.mT, sign=1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        X, *K = ctx.saved_tensors
        to_X = applied(ConjugateProduct, grad, *K) if ctx.needs_input_grad[0] else None
        to_K = applied(OuterProduct, grad, X) if any(ctx.needs_input_grad[1:]) else (None, None)
        return to_X, *to_K


class ConjugateProduct(_Bilinear):
    """Y conj(K) at every frequency: Y (F, 2, N, O), K = real + i imaginary (F, O, I)."""

    @staticmethod
    def forward(Y: torch.Tensor, real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
        return _times(Y, real, imaginary, sign=-1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        Y, *K = ctx.saved_tensors
        to_Y = applied(Product, grad, *K) if ctx.needs_input_grad[0] else None
        to_K = applied(OuterProduct, Y, grad) if any(ctx.needs_input_grad[1:]) else (None, None)
        return to_Y, *to_K


class OuterProduct(_Bilinear):
    """Y^T conj(X) at every frequency: Y (F, 2, N, O), X (F, 2, N, I) -> both parts (F, O, I)."""

    @staticmethod
    def forward(Y: torch.Tensor, X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = torch.bmm(_by_rows(Y).mT, _by_rows(X))
        if X.shape[-1] < Y.shape[-1]:  # i X or -i Y: the smaller is made
            turned = torch.cat([-X[:, 1], X[:, 0]], 1)
            return real, torch.bmm(_by_rows(Y).mT, turned)
        turned = torch.cat([Y[:, 1], -Y[:, 0]], 1)
        return real, torch.bmm(turned.mT, _by_rows(X))

    @staticmethod
    def backward(ctx, *K: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        Y, X = ctx.saved_tensors
        to_Y = applied(Product, X, *K) if ctx.needs_input_grad[0] else None
        to_X = applied(ConjugateProduct, Y, *K) if ctx.needs_input_grad[1] else None
        return to_Y, to_X
