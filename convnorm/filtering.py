"""The circular filter of maps by its spectrum, by whichever way is the faster."""

import torch

from convnorm.fixed import computed_once
from convnorm.fused_filter import fused_filter
from convnorm.tables import Pair, circulant_index


class _FilterFFT(torch.autograd.Function):
    """irfft2(gain * rfft2(x)) for a gain that takes no gradient.

    The adjoint is the filter by the conjugate gain, a real one by itself: only the gain is saved,
    and the backward pass avoids the full complex transforms that autograd takes through rfft2.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gain)
        return torch.fft.irfft2(gain * torch.fft.rfft2(x), s=x.shape[-2:])

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (gain,) = ctx.saved_tensors
        return _FilterFFT.apply(grad.contiguous(), gain.conj()), None


def matrix_is_faster(num_outputs: int, batch_size: int, device_type: str) -> bool:
    """Whether `num_outputs` of each map come cheaper from one matrix per channel than by FFT.

    Per point of the grid the matrix costs as many products as there are outputs, so the size of
    the grid does not matter; and making it has to pay over the batch. On a CPU it is within 5 % of
    the faster of the two in the 45 cases that were measured (scripts/bench_speed.py filter), on an
    H100 within 15 % in the 18 of results/check_device_h100.json.
    """
    if device_type == "cuda":
        return num_outputs <= min(324, 144 + batch_size)
    return num_outputs <= min(144, 16 * batch_size)


def _filter_matrix(
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
    with torch.autocast(x.device.type, enabled=False):
        if fused and not gain.requires_grad and not gain.is_complex():
            return fused_filter(x, gain, rows, columns)
        maps = x.to(gain.real.dtype)
        if matrix_is_faster(len(rows) * len(columns), len(x), x.device.type):
            matrix = computed_once(_filter_matrix, gain, (n, m), tuple(rows), tuple(columns))
            y = torch.bmm(maps.flatten(2).transpose(0, 1), matrix.transpose(1, 2))
            return y.transpose(0, 1).unflatten(2, (len(rows), len(columns))).to(x.dtype)
        maps = maps.contiguous()  # channels_last input has failed in compiled FFTs
        if not maps.numel():  # an FFT refuses a batch of none, which nn.Conv2d takes
            y = maps * gain.real.sum()  # so that gradients are zero and not missing
        elif gain.requires_grad:
            y = torch.fft.irfft2(gain * torch.fft.rfft2(maps), s=(n, m))
        else:
            y = _FilterFFT.apply(maps, gain)
    rows, columns = (slice(r.start, r.stop, r.step) for r in (rows, columns))
    return y[..., rows, columns].to(x.dtype)
