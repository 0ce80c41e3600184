"""The plain modules that a folded layer is made of, beside those of torch.

As those, they take one image without its batch too.
"""

import torch
from torch import nn

from convnorm.convolution import Pads, as_batch, as_given
from convnorm.filtering import filter_by_products
from convnorm.tables import Pair

PADDINGS = {
    "zeros": nn.ZeroPad2d,
    "circular": nn.CircularPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
}


def plain_convolution(
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    mode: str = "zeros",
) -> nn.Module:
    """A plain convolution by a kernel, behind a padding of its own where sides differ."""
    left, right, top, bottom = pads
    even = mode == "zeros" and (left, top) == (right, bottom)
    outputs, inputs, *size = kernel.shape
    conv = nn.Conv2d(
        inputs * groups,
        outputs,
        tuple(size),
        stride,
        (top, left) if even else 0,
        dilation,
        groups,
        bias is not None,
        device="meta",
    )
    conv.weight = nn.Parameter(kernel.contiguous())
    if bias is not None:
        conv.bias = nn.Parameter(bias.clone())
    return conv if even or not any(pads) else nn.Sequential(PADDINGS[mode](pads), conv)


class Crop(nn.Module):
    """Rows and columns of maps (N, C, H, W) by slices, a pair of numbers each."""

    def __init__(self, rows: Pair, columns: Pair):
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., slice(*self.rows), slice(*self.columns)]

    def extra_repr(self) -> str:
        return f"rows={self.rows}, columns={self.columns}"


class MatrixFilter(nn.Module):
    """(N, C, n, m) -> (N, C, *size) by `matrix`, (C, outputs, n * m), and an offset a channel."""

    def __init__(self, matrix: torch.Tensor, offset: torch.Tensor, size: Pair):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("offset", offset)
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = as_batch(x).flatten(2).transpose(0, 1)
        y = torch.matmul(pixels, self.matrix.transpose(1, 2)).transpose(0, 1)
        return as_given(y.unflatten(2, self.size) + self.offset[:, None, None], x)


class ProductFilter(nn.Module):
    """(N, C, n, m) -> its `rows` and `columns` after a filter, and an offset a channel.

    real, imaginary: of the filter's half spectrum, (C, n, m // 2 + 1).
    """

    def __init__(self, spectrum: torch.Tensor, offset: torch.Tensor, rows: range, columns: range):
        super().__init__()
        self.register_buffer("real", spectrum.real.contiguous())
        self.register_buffer("imaginary", spectrum.imag.contiguous())
        self.register_buffer("offset", offset)
        self.rows, self.columns = rows, columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = {"rows": self.rows, "columns": self.columns}
        y = filter_by_products(as_batch(x), self.real, self.imaginary, **kept)
        return as_given(y + self.offset[:, None, None], x)
