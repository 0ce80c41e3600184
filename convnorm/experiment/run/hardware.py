"""Which hardware and which code a number comes from."""

import platform
import subprocess
from pathlib import Path

import torch

from convnorm.experiment.config import ROOT
from convnorm.experiment.records import Segment
from convnorm.experiment.run.distributed import Process


def segment(process: Process, *, sync_batch_norm: bool = False) -> Segment:
    """Return what this start of a run is carried out with, from step 0 on.

    sync_batch_norm: whether several processes would share BatchNorm's statistics.
    """
    return Segment(
        step=0,
        commit=commit(),
        torch=str(torch.__version__),
        python=platform.python_version(),
        cuda=torch.version.cuda,
        device=process.device.type,
        hardware=hardware(process.device),
        world_size=process.world_size,
        sync_batch_norm=sync_batch_norm and process.world_size > 1,
    )


def hardware(device: torch.device) -> str:
    """Return the GPU's name; of a CPU its name, instruction set and number of threads in use.

    On another instruction set, sums are rounded in another order: numbers differ in their last
    digits, and trained networks visibly.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    threads = torch.get_num_threads()
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {instructions}, {threads} thread{'s' if threads > 1 else ''}"


def commit() -> str | None:
    """Return the commit of the clone that holds the code, with -dirty if the clone is changed.

    None if the code is not in a clone.
    """
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not our clone
        return None
