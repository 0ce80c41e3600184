"""Files of extractors' weights: given, found or downloaded, and read once."""

import stat
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch

from convnorm.experiment.errors import InputError
from gan import fidelity
from gan.keys import Keys


def read(file: Path) -> bytes:
    """Return what a file holds: the bytes that were checked are then the bytes that are loaded.

    Raises InputError where it cannot be read.
    """
    try:
        if stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for
            return file.read_bytes()
        reason = "not a file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise InputError(f"{file}: cannot read these weights ({reason})")


def given(weights: Path, keys: Keys) -> Path:
    """Return the file that a user named; InputError where its ~USER has no home."""
    try:
        return Path(weights).expanduser()
    except RuntimeError as error:
        raise InputError(f"{keys.weights}: {weights}: {error}") from None


def inception(keys: Keys) -> Path:
    """Return torch-fidelity's file in PyTorch's hub folder, downloaded if it is not there.

    Raises InputError where it cannot be downloaded.
    """
    url = fidelity.INCEPTION_URL
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.exists():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # It writes to a temporary name, and renames when the hash is right.
        torch.hub.download_url_to_file(
            url, str(file), hash_prefix=fidelity.INCEPTION_SHA256, progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError, HTTPException) as error:
        raise InputError(
            f"{file.name} is not in {file.parent} and could not be downloaded from {url} "
            f"({error}); give the file with {keys.weights} FILE, or score by {keys.offline}, which "
            "needs no download"
        ) from error
    return file
