"""The files that --out gets, none of which is there before."""

import json
from pathlib import Path

from convnorm.experiment import files
from convnorm.experiment.errors import InputError
from spectra.figures import draw
from spectra.records import Measured
from spectra.tables import as_csv, as_json

CSV, JSON = "spectrum.csv", "spectrum.json"
PICTURES = ("norms.png", "conditions.png", "values.png", "training.png", "bound.png")
OWN = (CSV, JSON, *PICTURES)


def check_out(folder: Path, overwrite: bool) -> None:
    """Make the folder; InputError where it cannot be used or holds such files already."""
    there = [name for name in OWN if (folder / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"--out: {folder} holds {', '.join(there)}; expected another folder, or --overwrite"
        )
    files.make_folder(folder, "--out")


def write(methods: dict[str, list[Measured]], layer: str | None, folder: Path) -> list[str]:
    """Write all files, remove others of an earlier look, and return the names of those written."""
    contents = {
        CSV: as_csv(methods).encode(),
        JSON: (json.dumps(as_json(methods), indent=1) + "\n").encode(),
        **draw(methods, layer),
    }
    for name, content in contents.items():
        files.write(folder / name, lambda file, content=content: file.write(content))
    for name in set(OWN).difference(contents):
        (folder / name).unlink(missing_ok=True)
    return list(contents)
