"""ConvNormTranspose2d: nn.ConvTranspose2d, normalized as the adjoint of a ConvNorm2d.

A transposed convolution from I to O channels with stride s is the adjoint of a convolution from O
to I channels. Of that one, ConvNorm2d on its native grid makes a layer A = G C whose every output
channel is an isometry; C convolves, G filters. This is B = A^T = C^T G: each input channel is
filtered on the ring of its own map, then everything is convolved as before.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from convnorm.affine import behind_filter, depthwise_affine, odd_size
from convnorm.convolution import as_given
from convnorm.filtering import circular_filter
from convnorm.functional import (
    checked_batch,
    constant_gain,
    gain_of,
    in_layout_of,
    pointwise,
    spectral_gain,
)
from convnorm.layer import check_options
from convnorm.plain import check_plain, geometry_of, in_place_of
from convnorm.tables import Pair

PADDING_MODES = ("zeros", "circular")

# torch.fx does not trace into it: its ways depend on the input.
torch.fx.wrap("conv_norm_transpose2d")


def conv_norm_transpose2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    output_padding: Pair = (0, 0),
    groups: int = 1,
    dilation: Pair = (1, 1),
    padding_mode: str = "zeros",
    *,
    eps: float = 1e-6,
    gradient_through_gain: bool = False,
) -> torch.Tensor:
    """Divide every input channel by the spectrum of its kernels, then convolve transposed.

    x: (N, I, H, W) or (I, H, W); weight: (I, O / groups, k_h, k_w); the rest as
    torch.nn.functional.conv_transpose2d. Returns what that would, (N, O, H', W') or (O, H', W'), in
    channels_last where x is. padding_mode: see ConvNormTranspose2d. Raises ValueError for an input
    of other dimensions or channels, without pixels, or whose output would have none, and for
    circular padding that `check_turn` refuses; TypeError for complex numbers.
    """
    maps = checked_batch(x, weight)
    kernel = tuple(weight.shape[2:])
    if padding_mode == "circular":
        check_turn(kernel, stride, padding, output_padding, dilation)
    if maps.shape[1] != len(weight):
        raise ValueError(f"the input has {maps.shape[1]} channels; expected {len(weight)}")
    size = tuple(int(side) for side in maps.shape[2:])  # torch.jit.trace has tensors there
    places = zip(size, kernel, stride, padding, output_padding, dilation, strict=True)
    result = tuple((n - 1) * s + d * (k - 1) + 1 - 2 * p + o for n, k, s, p, o, d in places)
    if min(*size, *result) < 1:
        raise ValueError(f"an input of {size} pixels gives {result}; expected 1 or more")

    gain = spectral_gain if gradient_through_gain else constant_gain
    if kernel == (1, 1):
        weight, filtered = pointwise(weight, gain, eps), maps
    else:
        filtered = circular_filter(maps, gain_of(weight, gain, size, dilation, stride, eps))
    if padding_mode == "zeros":
        y = F.conv_transpose2d(
            filtered, weight, None, stride, padding, output_padding, groups, dilation
        )
    else:
        y = F.conv_transpose2d(filtered, weight, None, stride, 0, 0, groups, dilation)
        y = _wound_up(y, padding, result)
    return as_given(in_layout_of(maps, y), x)


def check_turn(
    kernel: Pair, stride: Pair, padding: Pair, output_padding: Pair, dilation: Pair
) -> None:
    """Raise ValueError where the output is not one turn of the ring, stride times the input."""
    places = zip(kernel, stride, padding, output_padding, dilation, strict=True)
    excess = tuple(d * (k - 1) + 1 - s - 2 * p + o for k, s, p, o, d in places)
    if excess != (0, 0):
        raise ValueError(
            "circular padding needs an output of stride times the input, and here it has "
            f"{excess} pixels more; expected a kernel that covers stride + 2 * padding - "
            "output_padding pixels"
        )


def _wound_up(y: torch.Tensor, padding: Pair, ring: Pair) -> torch.Tensor:
    """Add the whole output (N, O, L, M) to itself around a ring; padding: where its origin lies."""
    (n, m), (top, left) = ring, (-p % side for p, side in zip(padding, ring, strict=True))
    height, width = y.shape[2:]
    y = F.pad(y, (left, -(left + width) % m, top, -(top + height) % n))
    return y.unflatten(3, (-1, m)).sum(3).unflatten(2, (-1, n)).sum(2)


class ConvNormTranspose2d(nn.ConvTranspose2d):
    """Filter of each input channel, transposed convolution, then affine and BatchNorm.

    The adjoint of ConvNorm2d(grid="native") from O to I channels. On a ring (circular padding) and
    with eps=0, without affine and BatchNorm, every input channel B_i is an isometry, B_i^T B_i = I,
    and the layer's operator norm lies in [max(1, sqrt(I / (s^2 O))), sqrt(I)] for I inputs and O
    outputs, of one group each, and a stride s. Outputs that are left out of a ring keep the upper
    bound and not the isometry.

    Zero padding is no such crop: what the kernels carry over the edge of the map is lost, and does
    not come in again at the other edge, but the gain is that of the ring. So nothing is guaranteed:
    where the kernels of an input channel all vanish at a frequency the layer can be much larger
    than sqrt(I), up to eps**-0.5 times. Those of many outputs have no such frequency. A `padding`
    of dilation * (k - 1) or more leaves all out that the edge has changed, and the bound holds.

    The first arguments are those of nn.ConvTranspose2d, with bias off. Input (N, I, H, W), where N
    may be 0, or (I, H, W); output as nn.ConvTranspose2d's, and channels_last for an input in
    channels_last.

    padding_mode: "zeros" as nn.ConvTranspose2d. "circular": the output is a ring of stride times
        the input, from where `padding` says; ValueError where kernel, padding and output_padding
        ask for another size.
    affine: a learned depthwise convolution with bias behind it, of the kernel's size rounded down
        to odd.
    affine_init, batch_norm, gradient_through_gain, eps, scale: as in ConvNorm2d.
    bias: added behind the transposed convolution, before the affine.

    Raises ValueError for options that contradict each other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: int | tuple[int, int] = 1,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        affine: bool = True,
        affine_init: Literal["default", "dirac"] = "default",
        batch_norm: bool = True,
        gradient_through_gain: bool = False,
        eps: float = 1e-6,
        scale: float = 1.0,
    ):
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {PADDING_MODES}, not {padding_mode!r}")
        check_options(affine_init, eps, scale, dtype)
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            "zeros",  # the only one that torch takes
            **factory,
        )
        self.padding_mode = padding_mode
        self.gradient_through_gain = gradient_through_gain
        self.eps = eps
        self.scale = scale
        circular = padding_mode == "circular"
        if circular:
            geometry = (self.stride, self.padding, self.output_padding, self.dilation)
            check_turn(self.kernel_size, *geometry)
        size = odd_size(self.kernel_size)
        self.affine = (
            depthwise_affine(out_channels, size, affine_init, circular, **factory)
            if affine
            else None
        )
        self.batch_norm = nn.BatchNorm2d(out_channels, **factory) if batch_norm else None

    @classmethod
    def from_conv(cls, conv: nn.ConvTranspose2d, **options) -> "ConvNormTranspose2d":
        """Return a ConvNormTranspose2d with the geometry of `conv`, its parameters and its mode.

        The affine asks for gradients if `conv.weight` does. TypeError or ValueError for what is no
        plain transposed convolution, or would lose something on the way: see convnorm.plain.
        """
        check_plain(conv, nn.ConvTranspose2d)
        like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        geometry = {**geometry_of(conv), "output_padding": conv.output_padding}
        return in_place_of(conv, cls(**geometry, **like, **options))

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """output_size: as in nn.ConvTranspose2d, in place of `output_padding`."""
        geometry = (list(self.stride), list(self.padding), list(self.kernel_size))
        output_padding = self._output_padding(x, output_size, *geometry, 2, list(self.dilation))
        y = conv_norm_transpose2d(
            x,
            self.weight,
            self.stride,
            self.padding,
            tuple(output_padding),
            self.groups,
            self.dilation,
            self.padding_mode,
            eps=self.eps,
            gradient_through_gain=self.gradient_through_gain,
        )
        if self.scale != 1:
            y = self.scale * y
        return behind_filter(y, self.bias, self.affine, self.batch_norm)

    def extra_repr(self) -> str:
        scale = f", scale={self.scale:g}" if self.scale != 1 else ""
        return f"{super().extra_repr()}, eps={self.eps:g}{scale}"
