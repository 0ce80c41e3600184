"""ConvNorm2d: a drop-in nn.Conv2d whose output channels are normalized by their spectrum."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from convnorm.affine import AFFINE_INITS, behind_filter, depthwise_affine, odd_size
from convnorm.convolution import convolve, convolve_adjoint, pads_of
from convnorm.functional import (
    FILTERS,
    GRIDS,
    check_real,
    conv_norm2d,
    conv_norm2d_adjoint,
    is_pointwise,
    spectral_gain,
)
from convnorm.plain import check_plain, geometry_of, in_place_of
from convnorm.ring import check_ring

AFFINE_MODES = ("same", "circular")

# torch.fx does not trace into it: its ways depend on the input.
torch.fx.wrap("conv_norm2d")


def check_options(affine_init: str, eps: float, scale: float, dtype: torch.dtype | None) -> None:
    """Raise ValueError for an option out of its range, TypeError for complex numbers."""
    if affine_init not in AFFINE_INITS:
        raise ValueError(f"affine_init must be one of {AFFINE_INITS}, not {affine_init!r}")
    if eps < 0:
        raise ValueError(f"eps must be 0 or more, not {eps}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be more than 0 and finite, not {scale}")
    check_real(dtype or torch.get_default_dtype())


class ConvNorm2d(nn.Conv2d):
    """Convolution, spectral normalization of each output channel, then affine and BatchNorm.

    Liu et al., NeurIPS 2021 (arXiv 2103.00673); the formulas are in convnorm.functional. Under
    circular padding every output channel A_o is an isometry, A_o A_o^T = I, and for O output and I
    input channels and a stride s that divides the map the operator norm of all of them lies in
    [max(1, sqrt(O / (s^2 I))), sqrt(O)]. It is not 1-Lipschitz. With zeros around the map
    A_o A_o^T = I fails near the border; on the full grid sqrt(O) still bounds the norm, on the
    native grid nothing does where a kernel's spectrum vanishes, as that of few inputs may.

    The first arguments are those of nn.Conv2d. Input (N, I, H, W), where N may be 0, or (I, H, W);
    output as nn.Conv2d's, and channels_last for an input in channels_last.

    grid: where the filter lives.
        "full": the published method. The map is convolved with stride 1 and zero padding
            k_eff - 1 (or `padding`, if larger), filtered on that (H + k_eff - 1)-grid, then
            cropped to what `padding` asks for and subsampled by `stride`;
            k_eff = dilation * (k - 1) + 1. Equal to the reference implementation in training
            mode (with eps=0).
        "native": the ordinary, strided convolution, filtered on its own output grid with the
            energy that a strided layer has there. The same isometry where the stride divides
            a circular map, at about half the multiplications, but not the same function.
    affine: a learned depthwise convolution with bias after the filter.
    affine_size: of its kernel, (a, b) or one number; None: that of the layer's kernel, rounded down
        to odd, which keeps the size of the map. It is padded by (a - 1) // 2 pixels on each side,
        so an even one shrinks the map by 1: the published layer has the kernel's own size, 4x4
        where the layer has 4x4. Needs affine_mode="same" where it is even.
    affine_init: "default" as nn.Conv2d (published), or "dirac", which starts as the identity.
    affine_mode: "same" is published: the affine sees the layer's outputs, padded as the input is.
        "circular" is another function: the affine convolves on the ring of the filter, before crop
        and stride, and so is a factor of the filter's spectrum, which costs next to nothing.
    batch_norm: BatchNorm2d at the end.
    gradient_through_gain: let gradients flow through the gain (published: no).
    eps: added to the energy, relative to its mean over frequencies; bounds the gain.
    filter: the same function, with other rounding, by other means.
        "auto": by the fastest of FFTs, a matrix for each channel and, on a CPU, the convolution
            frequency by frequency.
        "fused": in one Triton kernel on a GPU (convnorm.fused_filter), where it has not run yet.
            On a CPU it takes FFTs. With gradient_through_gain and in transforms it is "auto".
        "matmul": by products with tables of cosines and sines, without a complex number: for
            torch.jit.trace, exporters and devices without FFT.
    scale: a factor on the filtered map; it sees neither the bias nor what comes behind.
    bias: added after the filter, where it is a plain offset of the channel.

    padding_mode: "zeros" as above. "circular": the map itself is the ring (padding may not
    exceed k_eff - 1 in all with grid="full": one turn of the ring). "reflect" and "replicate":
    the padded map is taken as the layer's input.

    The gain is computed from the weight in every forward pass, at little cost: writes through
    `weight.data` leave no trace that a cache could check. Inside `convnorm.fixed_weights`, where
    no weight changes, it is computed once for each size of map. So the state is the parameters
    alone, and any input size works at any time.

    Raises ValueError for options that contradict each other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Literal["same", "valid"] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        grid: Literal["full", "native"] = "full",
        affine: bool = True,
        affine_init: Literal["default", "dirac"] = "default",
        affine_mode: Literal["same", "circular"] = "same",
        affine_size: int | tuple[int, int] | None = None,
        batch_norm: bool = True,
        gradient_through_gain: bool = False,
        eps: float = 1e-6,
        filter: Literal["auto", "fused", "matmul"] = "auto",
        scale: float = 1.0,
    ):
        if grid not in GRIDS:
            raise ValueError(f"grid must be one of {GRIDS}, not {grid!r}")
        if affine_mode not in AFFINE_MODES:
            raise ValueError(f"affine_mode must be one of {AFFINE_MODES}, not {affine_mode!r}")
        if filter not in FILTERS:
            raise ValueError(f"filter must be one of {FILTERS}, not {filter!r}")
        check_options(affine_init, eps, scale, dtype)
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            **factory,
        )
        self.grid = grid
        self.gradient_through_gain = gradient_through_gain
        self.eps = eps
        self.filter = filter
        self.scale = scale
        if grid == "full" and padding_mode == "circular":
            check_ring(pads_of(self), self.kernel_size, self.dilation)
        self.affine_mode = affine_mode
        self.affine = self._depthwise_affine(affine_size, affine_init, factory) if affine else None
        self.batch_norm = nn.BatchNorm2d(out_channels, **factory) if batch_norm else None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options) -> "ConvNorm2d":
        """Return a ConvNorm2d with the geometry of `conv`, its very parameters and its mode.

        The affine asks for gradients if `conv.weight` does. TypeError or ValueError for what is no
        plain convolution, or would lose something on the way: see convnorm.plain.
        """
        check_plain(conv)
        like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        return in_place_of(conv, cls(**geometry_of(conv), **like, **options))

    def _depthwise_affine(
        self, size: int | tuple[int, int] | None, init: str, factory: dict
    ) -> nn.Conv2d:
        if size is None:
            size = odd_size(self.kernel_size)
        elif isinstance(size, int):
            size = (size, size)
        if self.affine_mode == "circular" and not all(k % 2 for k in size):
            raise ValueError(f"affine_mode='circular' needs an odd affine_size, not {size}")
        circular = self.padding_mode == "circular"
        return depthwise_affine(self.out_channels, size, init, circular, **factory)

    def _geometry(self) -> tuple:
        return self.stride, pads_of(self), self.dilation, self.groups, self.padding_mode

    def _filtered(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution behind its filter and an affine on its ring, times `scale`."""
        y = conv_norm2d(
            x,
            self.weight,
            *self._geometry(),
            grid=self.grid,
            eps=self.eps,
            gradient_through_gain=self.gradient_through_gain,
            filter=self.filter,
            affine=self._affine_on_ring(),
        )
        return self.scale * y if self.scale != 1 else y

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """The layer less its offsets and BatchNorm, which is a linear map of x."""
        y = self._filtered(x)
        if self.affine is not None and self.affine_mode == "same":
            y = convolve(y, self.affine.weight, *self._affine_map())
        return y

    def linear_adjoint(self, y: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The adjoint of `linear` on maps of `size`, (H, W): <linear(x), y> = <x, adjoint(y)>."""
        if self.affine is not None and self.affine_mode == "same":
            y = convolve_adjoint(y, self.affine.weight, tuple(y.shape[2:]), *self._affine_map())
        x = conv_norm2d_adjoint(
            y,
            self.weight,
            size,
            *self._geometry(),
            grid=self.grid,
            eps=self.eps,
            affine=self._affine_on_ring(),
        )
        return self.scale * x if self.scale != 1 else x

    @property
    def is_pointwise(self) -> bool:
        """Whether the filter, with an affine on its ring, is a mere factor of each channel."""
        return is_pointwise(self.weight, self._affine_on_ring())

    def _affine_on_ring(self) -> torch.Tensor | None:
        circular = self.affine is not None and self.affine_mode == "circular"
        return self.affine.weight if circular else None

    def _affine_map(self) -> tuple:
        """How the affine convolves: stride, padding, dilation, groups and mode of padding."""
        affine = self.affine
        return (1, 1), pads_of(affine), (1, 1), affine.groups, affine.padding_mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._filtered(x)
        bias, affine = self.bias, self.affine
        if self._affine_on_ring() is not None:
            bias, affine = self.affine.bias, None
            if self.bias is not None:  # a constant map is filtered by the sum of a kernel
                bias = bias + self.bias * self.affine.weight.sum((1, 2, 3))
        return behind_filter(y, bias, affine, self.batch_norm)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        affine = state_dict.get(f"{prefix}affine.weight")
        if self.affine is not None and affine is not None:
            size = tuple(affine.shape[2:])
            if size != self.affine.kernel_size:  # beside torch's own line
                args[-1].append(f"{prefix}affine: make the layer with affine_size={size}")

    def extra_repr(self) -> str:
        scale = f", scale={self.scale:g}" if self.scale != 1 else ""
        way = f", filter={self.filter!r}" if self.filter != "auto" else ""
        return f"{super().extra_repr()}, grid={self.grid!r}, eps={self.eps:g}{scale}{way}"


def from_reference(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate a state dict of the reference implementation, of a layer or a whole model.

    `bpconv` becomes `affine`, `batch_norm` stays, `running_V` is dropped: the gain comes from
    the weight. The reference adds a convolution's bias before the filter, which multiplies it
    by the gain at frequency zero; that factor is moved into the bias here (with eps=0). Its affine
    has the kernel's own size: a layer with an even kernel takes it with `affine_size`.
    """
    prefixes = {key.removesuffix("running_V") for key in state_dict if key.endswith("running_V")}
    translated = {}
    for key, value in state_dict.items():
        prefix, _, name = key.rpartition(".")
        prefix = f"{prefix}." if prefix else ""
        if name == "running_V":
            continue
        if name == "bias" and prefix in prefixes:
            gain = spectral_gain(state_dict[f"{prefix}weight"].double(), (1, 1), eps=0.0)
            value = (value * gain.flatten()).to(value.dtype)
        translated[key.replace("bpconv.", "affine.")] = value
    return translated
