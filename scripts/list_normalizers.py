"""Print the catalogue of normalizers as a Markdown table: what each acts on, controls and costs.

    python scripts/list_normalizers.py

docs/normalizers.md holds what it prints, and says how to read it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from convnorm.catalogue import CATALOGUE
from convnorm.experiment.config.arguments import Parser
from convnorm.experiment.errors import exit_code
from convnorm.experiment.run.cost import macs, num_parameters
from convnorm.normalizers import Normalizer
from convnorm.spectrum import operator_norm

CHANNELS, SIZE, BATCH = 32, 16, 32  # of the layer that is measured: a 3x3 convolution
COLUMNS = (
    "`normalizer.kind`",
    "what it does to each convolution",
    "acts on",
    "free of scale",
    "mixes the batch",
    "generator",
    "operator norm",
    "multiply-adds",
    "parameters",
    "reads",
)


def layer_of(kind: str) -> nn.Module:
    """The layer that is measured, of the same weights for every kind, with the kind's defaults."""
    torch.manual_seed(0)
    return Normalizer(kind)(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1))


def row(kind: str) -> list[str]:
    """The cells of a kind, in the order of COLUMNS."""
    known, options = CATALOGUE[kind], Normalizer(kind)
    plain, layer = layer_of("none"), layer_of(kind)
    x = torch.zeros(BATCH, CHANNELS, SIZE, SIZE)
    work = macs(layer, x) / macs(plain, x)
    added = num_parameters(layer) - num_parameters(plain)
    norm = None if known.normalizes_map else operator_norm(layer.eval(), x[:1].shape)
    places = {
        "convolution": known.normalizes_convolution,
        "map": known.normalizes_map,
        "head": known.normalizes_linear,
        "embedding": known.normalizes_embedding,
        "loss": known.penalty is not None,
    }
    return [
        f"`{kind}`",
        known.does,
        ", ".join(place for place, acts in places.items() if acts) or "nothing",
        "yes" if options.ignores_scale else "no",
        "yes" if options.mixes_batch else "no",
        "yes" if known.stands_in_generators else "no",
        "" if norm is None else f"{norm:.2f}",
        f"{work:.2f}x",
        f"{added:+d}" if added else "0",
        ", ".join(f"`{name}`" for name in known.reads if name != "scale"),
    ]


def table() -> str:
    """The table in Markdown, a line for each kind."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *map(row, CATALOGUE)]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in rows)


def main() -> int:
    Parser(__doc__).parse_args()
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
