"""The memory that work needs at a time."""

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from convnorm.experiment.run.cost import forget_peak_memory, peak_memory
from speed.clock import Run

MEMORY_EVENT = "[memory]"  # the profiler's name of what it saw allocated and freed


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most bytes of tensors that a call holds at a time, beyond those there before.

    What a library takes for itself without a tensor is not in it.
    """
    run()  # tables are made and kept
    if device.type == "cuda":
        torch.cuda.synchronize()
        forget_peak_memory(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize()
        return peak_memory(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        run()
    events = [
        event
        for event in found.profiler.kineto_results.events()
        if event.name() == MEMORY_EVENT and event.device_type() == DeviceType.CPU
    ]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
