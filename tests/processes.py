"""Functions run by several processes that know of each other, as those of torchrun do."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import Child


def pair(tmp_path: Path, function: Callable[..., Any], *args: Any) -> list[tuple[int, str]]:
    """Run a function as two ranks, without the seconds that torchrun takes to start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        Child(tmp_path / f"output{rank}.txt", _as_rank, rank, port, function, *args)
        for rank in range(2)
    ]
    return [rank.end() for rank in ranks]


def _as_rank(rank: int, port: int, function: Callable[..., Any], *args: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    function(*args)
