"""How much memory there is, asked before anything large is allocated."""

import os
from pathlib import Path

from convnorm.experiment.errors import InputError

# Controller, where its groups are, and the files with the limit, the use, and what can be dropped.
CONTROL_GROUPS = (
    ("", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
    (
        "memory",
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file ",
    ),
)


def require_memory(num_bytes: int, what: str) -> None:
    """Raise an InputError where `num_bytes` are more than this process can still get.

    what: the start of the error, with the file or key and what would take so much.
    """
    if num_bytes > (free := available_bytes()):
        raise InputError(
            f"{what} would take {num_bytes / 2**30:.3g} GiB of memory, of which "
            f"{free / 2**30:.3g} GiB are free"
        )


def available_bytes() -> int:
    """Return how many bytes this process can still allocate, as far as the system says.

    The least of what the machine has free, what the process's control group (a container, a job of
    a cluster) leaves, and what `ulimit -v` leaves. Where none is known, all that the machine has.
    """
    limits = [_machine(), _control_group(), _address_space()]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _machine() -> int | None:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group() -> int | None:
    """What is left in the process's control group or in one above it, of version 2 or 1."""
    left = [
        _left(group, limit, used, cache)
        for controller, root, limit, used, cache in CONTROL_GROUPS
        for group in _groups(controller, root)
    ]
    return min((each for each in left if each is not None), default=None)


def _groups(controller: str, root: str) -> list[str]:
    """The folders of the process's group, as a job of Slurm has one, and of all above it."""
    entries = (line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines())
    own = [entry[2] for entry in entries if controller in entry[1].split(",")]
    parts = [part for path in own[:1] for part in path.split("/") if part]
    if ".." in parts:  # of a group outside of the namespace
        parts = []
    return ["/".join([root, *parts[:depth]]) for depth in range(len(parts) + 1)]


def _left(group: str, limit: str, used: str, cache: str) -> int | None:
    """Of one group; pages of files that the kernel can drop count as free."""
    most, now = _read(f"{group}/{limit}").strip(), _read(f"{group}/{used}").strip()
    if not most.isdigit() or not now.isdigit():
        return None
    lines = _read(f"{group}/memory.stat").splitlines()
    dropped = sum(int(line.split()[1]) for line in lines if line.startswith(cache))
    return max(0, int(most) - int(now) + dropped)


def _address_space() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _read("/proc/self/statm").split()
    if most == resource.RLIM_INFINITY or not used:
        return None
    return max(0, most - int(used[0]) * resource.getpagesize())


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
