"""What a person reads before the first step: which run this is, on what, and how far it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from convnorm.experiment.records import Segment
from convnorm.experiment.run.cost import num_parameters


def opening(
    run_dir: Path,
    data: str,
    place: str,
    networks: Mapping[str, nn.Module],
    segments: Sequence[Segment],
    steps: int,
) -> str:
    """Return the block of lines with which a training begins.

    data: what was found, in words. place: where it is, see `Images.place`. networks: name -> the
    network. segments: the parts of the training, the last of which begins now. steps: how many
    there will be.
    """
    *before, now = segments
    sizes = {name: num_parameters(network) for name, network in networks.items()}
    lines = {
        "run": str(run_dir),
        "device": f"{now.device}: {now.place}",
        "data": data,
        "data.stream": place,
        "parameters": ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
        "steps": f"{steps}, resuming from step {now.step}" if before else str(steps),
    }
    if before:
        for name, (old, new) in now.changes(before[-1]).items():
            lines[f"another {name}"] = f"{new}; the steps before had {old}"
    return "\n".join(f"{name}: {words}" for name, words in lines.items())
