"""BatchNorm by the statistics of all processes, in the place of torch's SyncBatchNorm.

Torch's needs a GPU. This one computes the same on any device, and can be tested without one.
"""

from typing import Any

import torch
from torch import Tensor, nn

from convnorm.experiment.run.distributed import Process


def with_global_statistics(network: nn.Module, process: Process) -> None:
    """Let every BatchNorm2d of a network take its statistics in training over all processes.

    Names, parameters, buffers and what else a module has stay as they are. Every process has to
    run each pass in training mode, on as many images. Of one process, nothing changes.
    """
    if process.world_size == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = GlobalBatchNorm2d  # as torch's parametrize does
            module.process = process


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """y = (x - m) / sqrt(v + eps) * weight + bias, with m and v over (processes, N, H, W).

    In evaluation mode it is BatchNorm2d.
    """

    process: Process

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), as many images in every process."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = self._over_processes(wide.mean((0, 2, 3)))
        centred = wide - mean[:, None, None]
        var = self._over_processes(centred.square().mean((0, 2, 3)))
        self._track(mean.detach(), var.detach(), x.numel() // x.shape[1])
        factor = (var + self.eps).rsqrt()
        if self.affine:
            factor = factor * self.weight
        y = centred * factor[:, None, None]
        if self.affine:
            y = y + self.bias[:, None, None]
        return y.to(x.dtype)

    def _over_processes(self, value: Tensor) -> Tensor:
        return _Mean.apply(value, self.process)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, num: int) -> None:
        """Move the running statistics as torch does; num: values of a channel in this process."""
        self.num_batches_tracked.add_(1)
        num *= self.process.world_size
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (num / (num - 1)), self.momentum)


class _Mean(torch.autograd.Function):
    """The mean over the processes; so is its gradient, of the mean of their losses."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, process: Process) -> Tensor:
        ctx.process = process
        return _mean(value, process)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _mean(gradient, ctx.process), None


def _mean(value: Tensor, process: Process) -> Tensor:
    value = value.clone()
    process.average_([value])
    return value
