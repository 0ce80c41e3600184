"""What a network and a run cost: parameters, multiply-adds of a forward pass, peak memory."""

import copy
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def num_parameters(network: nn.Module) -> int:
    """Return how many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def _fft(flops: float, signal: Tensor, dim: list[int]) -> float:
    """`flops` per point and octave: 5 of a complex signal, half as many of a real one."""
    points = math.prod(signal.shape[axis] for axis in dim)
    return flops * signal.numel() * math.log2(points)


def _solve(A: Tensor, B: Tensor) -> float:
    """LU, then a triangular solve on each side for every column."""
    rows, columns = A.shape[-1], B.numel() * A.shape[-1] // A.numel()
    return A.numel() * (2 / 3 * rows + 2 * columns)


# operation -> flops of (its arguments, out_val=what it returns). PyTorch has convolutions and
# matrix products; an FFT is counted as radix 2 (Cooley & Tukey, 1965), as is usual, and dense
# matrices as in Golub & Van Loan, "Matrix Computations", 4th ed., 3.2 and 8.3.
FLOPS: dict[Any, Callable[..., float]] = {
    **flop_registry,
    aten.mv: lambda A, x, out_val: 2 * A.numel(),
    aten._fft_r2c: lambda x, dim, *_, out_val: _fft(2.5, x, dim),
    aten._fft_c2r: lambda x, dim, *_, out_val: _fft(2.5, out_val, dim),
    aten._fft_c2c: lambda x, dim, *_, out_val: _fft(5, x, dim),
    aten._linalg_eigh: lambda A, *_, out_val, **__: 9 * A.numel() * A.shape[-1],
    aten._linalg_solve_ex: lambda A, B, *_, out_val, **__: _solve(A, B),
}


class _Counter(TorchDispatchMode):
    """Flops of whatever runs inside, backward passes too.

    torch.utils.flop_counter.FlopCounterMode has the formulas, but tracks modules with hooks that
    fail where a layer calls torch.autograd.grad: a power iteration on a convolution does.
    """

    flops = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = FLOPS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def macs(network: nn.Module, inputs: Tensor, *others: Tensor) -> int:
    """Return the multiply-adds of one forward pass in training mode, per image of `inputs`.

    The work of a normalizer is included: FFTs, power iterations, orthogonalizations. What is done
    once a pass, such as a gain of ConvNorm, is divided by the number of images, so the result
    depends on that number. Element-wise work (activations, BatchNorm) is not counted, nor are
    penalties on weights, which are no part of the forward pass. The pass runs on a copy of the
    network: buffers, modes and random numbers stay as they are.

    inputs, others: (N, ...) on the network's device, as the network takes them.
    """
    copied = copy.deepcopy(network).train()
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), _Counter() as counter:
        copied(inputs, *others)
    return round(counter.flops / 2 / len(inputs))


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use at a time.

    On a GPU: by tensors, since the start or the last `forget_peak_memory`. On a CPU: by the whole
    process with its libraries, since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's getrusage includes the peak of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_memory(device: torch.device) -> int:
    """Return the most bytes of a GPU that this process has held for tensors so far; 0 on a CPU.

    PyTorch keeps what was in use once, scores included, so it is what other processes cannot have.
    """
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` of a GPU begin anew; that of a process cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
