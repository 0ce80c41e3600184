"""Starting the affine of a ConvNorm2d so that the layer is close to the convolution that it was.

With c_o an output channel of the convolution and z_o = G_o c_o what the filter makes of it, the
affine has a kernel r_o and an offset b_o, and r_o * z_o + b_o should be c_o. The exact answer is
the inverse filter 1 / G_o, which no kernel of the affine's size is. The nearest one leaves an
error of about 0.28 / sqrt(I) for random 3x3 kernels of I input channels, more for trained ones,
which are smoother. So this is where fine-tuning starts, and not an equivalence.
"""

import math

import torch
from torch import nn
from torch.func import functional_call

from convnorm.convolution import pad
from convnorm.functional import spectral_gain
from convnorm.layer import ConvNorm2d
from convnorm.replacement import without_hooks

RING = 64  # the least size of the ring on which 1 / G is inverted
RIDGE = 1e-6  # of the mean of the diagonal of the normal equations
BLOCK = 2**23  # float64 numbers of patches at a time, 64 MB


@torch.no_grad()
def calibrate_on_weights(layer: ConvNorm2d) -> float:
    """Set the affine to what is nearest under white inputs, which the weight alone tells.

    There |r * z - c|^2 is the integral of |1 / G - r^|^2 over the frequencies, so r is the middle
    of irfft2(1 / G), in steps of the stride where the affine comes behind it. The bias of a channel
    keeps its value away from the border: b = bias (1 - sum r).

    Returns the error |r * z - c| / |c| that is to be expected under white inputs, borders aside:
    the root of what the middle leaves of the energy of irfft2(1 / G), which is that of c.
    """
    native = layer.grid == "native"
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    ring = tuple(max(RING, 4 * r) for r in reach)
    stride = layer.stride if native else (1, 1)
    gain = spectral_gain(layer.weight.double(), ring, layer.dilation, stride, layer.eps)
    response = torch.fft.irfft2(1 / (layer.scale * gain), s=ring)  # (O, n, m)
    # On the full grid an affine of mode "same" sees every stride-th pixel of the ring.
    step = (1, 1) if native or layer.affine_mode == "circular" else layer.stride
    rows, columns = (
        s * torch.arange(-(k // 2), k // 2 + 1, device=response.device) % n
        for s, k, n in zip(step, layer.affine.kernel_size, ring, strict=True)
    )
    middle = response[:, rows][:, :, columns]
    layer.affine.weight.copy_(middle[:, None])
    offset = 0 if layer.bias is None else layer.bias * (1 - middle.sum((1, 2)))
    layer.affine.bias.copy_(torch.as_tensor(offset))
    return math.sqrt(max(0.0, 1 - (middle.square().sum() / response.square().sum()).item()))


class LeastSquares:
    """The affine that is nearest on given inputs, by the normal equations of each channel.

    r and b of a channel minimize the sum of |r * z + b - c|^2 over all positions: a system of
    k^2 + 1 equations, in float64. The patches are made in blocks of at most BLOCK numbers, so that
    the memory does not grow with the number of inputs. The ridge pulls towards
    `calibrate_on_weights`, which is what a channel without signal keeps.
    """

    @torch.no_grad()
    def __init__(self, layer: ConvNorm2d):
        if layer.affine_mode == "circular" and layer.grid == "full":
            raise ValueError(
                "an affine of mode 'circular' on the full grid cannot be fitted to images: take "
                "affine_mode='same' or grid='native', or calibrate on the weights"
            )
        calibrate_on_weights(layer)
        self.layer = without_hooks(layer)  # the convolution, which has them too, has called them
        channels, taps = layer.out_channels, layer.affine.weight[0].numel()
        zeros = torch.zeros(
            channels, taps + 1, taps + 2, dtype=torch.float64, device=layer.weight.device
        )
        self.gram, self.moment = zeros[..., :-1], zeros[..., -1:]
        self.energy = zeros.new_zeros(channels)

    @torch.no_grad()
    def add(self, x: torch.Tensor, c: torch.Tensor) -> None:
        """Add inputs x, (N, I, H, W) or (I, H, W), and what the convolution made of them."""
        if x.dim() == 3:
            x, c = x[None], c[None]
        affine = self.layer.affine
        taps = affine.weight[0].numel()
        identity = {
            "affine.weight": nn.init.dirac_(torch.empty_like(affine.weight), affine.groups),
            "affine.bias": torch.zeros_like(affine.bias),
        }
        z = functional_call(self.layer, identity, (x,))
        ring = self.layer.affine_mode == "circular" or affine.padding_mode == "circular"
        sides = [k // 2 for k in reversed(affine.kernel_size) for _ in range(2)]
        per_map = (taps + 1) * c[0, 0].numel()
        channels = min(len(self.energy), max(1, BLOCK // per_map))
        images = max(1, BLOCK // (per_map * channels))
        for one, other in zip(z.split(images), c.split(images), strict=True):
            padded = pad(one, tuple(sides), "circular" if ring else "zeros")
            for first in range(0, len(self.energy), channels):
                block = slice(first, first + channels)
                p = padded[:, block].unfold(2, affine.kernel_size[0], 1)
                p = p.unfold(3, affine.kernel_size[1], 1).double()  # (n, B, H', W', k_h, k_w)
                p = p.permute(1, 4, 5, 0, 2, 3).reshape(p.shape[1], taps, -1)
                p = torch.cat([p, torch.ones_like(p[:, :1])], 1)
                target = other[:, block].transpose(0, 1).flatten(1).double()
                self.gram[block] += p @ p.mT
                self.moment[block] += p @ target[..., None]
                self.energy[block] += target.square().sum(1)

    @torch.no_grad()
    def solve(self) -> float | None:
        """Set the affine. Returns |r * z + b - c| / |c| over all channels; None without inputs.

        Raises ValueError if the maps were not finite.
        """
        affine = self.layer.affine
        start = torch.cat([affine.weight.flatten(1), affine.bias[:, None]], 1).double()[..., None]
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        if not (diagonal.isfinite().all() and self.energy.isfinite().all()):
            raise ValueError("its maps are not finite")
        if not self.energy.sum() > 0:
            return None
        ridge = torch.diag_embed(RIDGE * diagonal.mean(1, keepdim=True).expand_as(diagonal))
        change = torch.linalg.solve(self.gram + ridge, self.moment - self.gram @ start)
        found = start + change
        affine.weight.copy_(found[:, :-1].view_as(affine.weight))
        affine.bias.copy_(found[:, -1, 0])
        left = self.energy + (found * (self.gram @ found - 2 * self.moment)).sum((1, 2))
        return math.sqrt(max(0.0, (left.sum() / self.energy.sum()).item()))
