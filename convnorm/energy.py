"""The spectral energy of a convolution's kernels, P of convnorm.functional.

P_o is the DFT of the kernel's autocorrelation, which has only (2k-1)^2 numbers; so no kernel is
ever padded to the grid.
"""

import torch

from convnorm.precision import widened
from convnorm.tables import Pair, cosine_table, offset_indicator


def autocorrelation(weight: torch.Tensor) -> torch.Tensor:
    """Sum over input channels of each kernel's autocorrelation.

    weight: (O, I, k_h, k_w). Returns R: (O, 2 k_h - 1, 2 k_w - 1) with
    R_o[d] = sum_i sum_p W_oi[p] W_oi[p + d]; the middle entry R_o[0] is |W_o|^2.
    """
    out_channels, _, height, width = weight.shape
    taps = widened(weight).flatten(2)
    gram = torch.bmm(taps.transpose(1, 2), taps).flatten(1)  # (O, K * K)
    summed = gram @ offset_indicator((height, width), gram.device, gram.dtype)
    return summed.view(out_channels, 2 * height - 1, 2 * width - 1).to(weight.dtype)


def spectral_energy(
    weight: torch.Tensor, grid: Pair, dilation: Pair = (1, 1), stride: Pair = (1, 1)
) -> torch.Tensor:
    """P on an n x m ring of outputs: (O, n, m // 2 + 1), >= 0.

    With a stride s, the energy that the strided layer has on its own, coarser grid: the mean of
    the s_h * s_w aliases of P on the fine grid.
    """
    correlation = autocorrelation(widened(weight)).flatten(1)
    kernel = (weight.shape[2], weight.shape[3])
    cosines = cosine_table(kernel, grid, dilation, stride, weight.device, correlation.dtype)
    # Rounding can take a zero of the spectrum below zero.
    energy = (correlation @ cosines).clamp(min=0).view(-1, grid[0], grid[1] // 2 + 1)
    return energy.to(weight.dtype)
