"""The circular filter of maps by its spectrum, by whichever way is the faster."""

import torch

from convnorm.fixed import computed_once
from convnorm.fused_filter import fused_filter
from convnorm.modes import applied, holds, is_transformed
from convnorm.precision import outside_autocast
from convnorm.tables import (
    Pair,
    analysis_columns,
    analysis_rows,
    circulant_index,
    synthesis_columns,
    synthesis_rows,
)


class _FilterFFT(torch.autograd.Function):
    """irfft2(gain * rfft2(x)) for a gain that takes no gradient.

    The adjoint is the filter by the conjugate gain, a real one by itself: only the gain is saved,
    and the backward pass avoids the full complex transforms that autograd takes through rfft2.
    """

    @staticmethod
    def forward(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(gain * torch.fft.rfft2(x), s=x.shape[-2:])

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (gain,) = ctx.saved_tensors
        return applied(_FilterFFT, grad.contiguous(), gain.conj()), None


LARGEST_MATRIX = 2**26  # numbers of the filter's matrices in all channels: 256 MiB of float32


def matrix_is_faster(num_outputs: int, batch_size: int, device_type: str) -> bool:
    """Whether `num_outputs` of each map come cheaper from one matrix per channel than by FFT.

    Per point of the grid the matrix costs as many products as there are outputs, so the size of
    the grid does not matter; and making it has to pay over the batch. On a CPU it is the faster
    of the two in 44 of 45 cases and 1.33 times as slow in one (results/speed_cpu.json), on an H100
    within 15 % in the 18 of results/check_device_h100.json.
    """
    # The batch last, and in no `min`: a compiler may leave its size open, and `holds` asks then.
    if device_type == "cuda":
        return num_outputs <= 324 and num_outputs <= 144 + batch_size
    return num_outputs <= 144 and num_outputs <= 16 * batch_size


def filter_matrix(
    gain: torch.Tensor, grid: Pair, rows: tuple[int, ...], columns: tuple[int, ...]
) -> torch.Tensor:
    """The filter as one matrix a channel: (C, kept outputs, n * m)."""
    response = torch.fft.irfft2(gain, s=grid).flatten(1)  # (C, n * m)
    index = circulant_index(grid, rows, columns, gain.device)
    # Indexing with `index` itself takes six times as long.
    return response.index_select(1, index.flatten()).unflatten(1, index.shape)


def circular_filter(
    x: torch.Tensor,
    gain: torch.Tensor,
    rows: range | None = None,
    columns: range | None = None,
    *,
    fused: bool = False,
) -> torch.Tensor:
    """Filter each channel on the ring of its own map, and keep some of the outputs.

    x: (N, C, n, m) of any floating dtype, which the result has too, where N may be 0; gain:
    (C, n, m // 2 + 1), real and even or the half spectrum of a real kernel, in whose precision is
    computed. Returns (N, C, len(rows), len(columns)); None keeps all. fused: by
    convnorm.fused_filter, where the gain is real and takes no gradient.
    """
    n, m = x.shape[-2:]
    rows = range(n) if rows is None else rows
    columns = range(m) if columns is None else columns
    with outside_autocast(x.device.type):
        ours = fused and not gain.requires_grad and not gain.is_complex()
        if ours and not is_transformed(x, gain):
            return fused_filter(x, gain, rows, columns)
        maps = x.to(gain.real.dtype)
        kept = len(rows) * len(columns)
        fits = x.shape[1] * kept * n * m <= LARGEST_MATRIX
        if fits and holds(matrix_is_faster(kept, x.shape[0], x.device.type)):
            matrix = computed_once(filter_matrix, gain, (n, m), tuple(rows), tuple(columns))
            y = torch.bmm(maps.flatten(2).transpose(0, 1), matrix.transpose(1, 2))
            return y.transpose(0, 1).unflatten(2, (len(rows), len(columns))).to(x.dtype)
        maps = maps.contiguous()  # channels_last input has failed in compiled FFTs
        if holds(maps.numel() == 0):  # an FFT refuses a batch of none, which nn.Conv2d takes
            y = maps * gain.real.sum()  # so that gradients are zero and not missing
        elif gain.requires_grad:
            y = _FilterFFT.forward(maps, gain)
        else:
            y = applied(_FilterFFT, maps, gain)
    whole = rows.step == columns.step == 1
    rows, columns = (slice(r.start, r.stop, r.step) for r in (rows, columns))
    y = y[..., rows, columns].to(x.dtype)
    # A view would keep what a stride throws away for as long as it is needed itself.
    return y if whole else y.contiguous()


def filter_by_products(
    x: torch.Tensor,
    real: torch.Tensor,
    imaginary: torch.Tensor | None = None,
    *,
    rows: range,
    columns: range,
) -> torch.Tensor:
    """`circular_filter` by products with cosines and sines, without an FFT or a complex number.

    real, imaginary: the parts of its gain. What exports at all exports these products.
    """
    n, m = (int(side) for side in x.shape[-2:])
    half = m // 2 + 1
    like = (x.device, real.dtype)
    with outside_autocast(x.device.type):
        waves = x.to(real.dtype) @ analysis_rows(m, m, *like).t()  # (N, C, n, half x parts)
        waves = waves.unflatten(3, (half, 2)).permute(0, 1, 3, 4, 2)
        waves = waves.flatten(3) @ analysis_columns(n, n, *like).t()
        waves = waves.unflatten(3, (n, 2))  # (N, C, half, n, parts)
        filtered = waves * real.mT[..., None]
        if imaginary is not None:
            a, b = waves.unbind(4)
            filtered = filtered + torch.stack([-b, a], 4) * imaginary.mT[..., None]
        waves = filtered.flatten(3) @ synthesis_columns(n, tuple(rows), *like).t()
        waves = waves.unflatten(3, (2, len(rows))).permute(0, 1, 4, 2, 3)
        y = waves.flatten(3) @ synthesis_rows(m, tuple(columns), *like).t()
    return y.to(x.dtype)
