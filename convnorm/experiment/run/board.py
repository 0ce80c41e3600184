"""What TensorBoard shows of a run: numbers in groups, pictures and the config.

`tensorboard --logdir runs` names a run by its folder: gan/sngan_convnorm/seed0/tensorboard.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

COST = ("steps_per_second", "seconds", "peak_memory")
GAIN = ("gain/real", "gain/fake", "margin")  # of a discriminator, in a line of log.jsonl


def tags(names: Iterable[str]) -> dict[str, str]:
    """Return name in a line of log.jsonl -> tag.

    Costs are in perf/, a discriminator's gain and margin in gain/, everything else that training
    tells is in loss/. A singular value is in norm/ below the place and the name of its layer, by
    which TensorBoard sorts: conv03 (blocks.1).

    names: layers in the order of the network, as `convnorm.spectrum.by_name` has them.
    """
    names = list(names)
    of_layers = [name for name in names if "/" in name and name not in GAIN]
    layers = list(dict.fromkeys(name.partition("/")[2] for name in of_layers))
    digits = len(str(len(layers)))
    places = {layer: f"conv{n:0{digits}} ({layer})" for n, layer in enumerate(layers, 1)}
    found = {}
    for name in names:
        kind, _, layer = name.partition("/")
        if name in GAIN:
            found[name] = f"gain/{layer or kind}"
        elif layer:
            found[name] = f"norm/{places[layer]}/{kind}"
        else:
            found[name] = f"{'perf' if name in COST else 'loss'}/{name}"
    return found


class Board:
    """The file that TensorBoard reads, from `step` on: what came after it is hidden."""

    def __init__(self, run_dir: Path, step: int, config: str):
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        if step == 0:
            self._writer.add_text("config", f"```yaml\n{config}```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show a line of log.jsonl."""
        for name, tag in tags(values).items():
            self._writer.add_scalar(tag, values[name], step)

    def score(self, step: int, record: Mapping[str, Any]) -> None:
        """Show the scores of a record, and those by which a step can be selected if it has some."""
        selection = record.get("selection") or {"scores": {}}
        for group, scores in (("score", record), ("score/selection", selection)):
            for name, value in scores["scores"].items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{group}/{name}", value, step)

    def picture(self, tag: str, image: torch.Tensor, step: int) -> None:
        """Show an image (C, H, W) uint8."""
        self._writer.add_image(tag, image, step)

    def close(self) -> None:
        self._writer.close()
