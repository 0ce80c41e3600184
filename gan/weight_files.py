"""Files of extractors' weights: given, found or downloaded, and read once."""

import hashlib
import io
import stat
import sys
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor

from convnorm.experiment.errors import InputError
from gan import fidelity
from gan.keys import Keys

# (N, C, H, W) uint8 -> features (N, D) and logits (N, K); None from a network without logits.
Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Loaded(NamedTuple):
    """A network with its weights.

    weights_sha256, verified, details: see `ExtractorFacts`.
    """

    forward: Forward
    weights_sha256: str
    verified: bool
    details: dict[str, str | int | float] = {}  # noqa: RUF012 - nobody changes it


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


def shipped(file: Path, expected: str, weights: Path | None, name: str, keys: Keys) -> dict:
    """Read weights that come with an installation and have no other version.

    expected: their SHA-256. weights: what the user gave in their place. name: of the extractor.

    Raises InputError where a file is given, and where the installation is damaged.
    """
    if weights is not None:
        raise InputError(f"{keys.weights}: got {weights}, but {name} has weights of its own")
    data = read(file)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != expected:
        raise InputError(f"{file}: its SHA-256 is {sha256}, expected {expected}; install again")
    return torch.load(io.BytesIO(data), weights_only=True)


def inception(keys: Keys) -> Path:
    """Return torch-fidelity's file in PyTorch's hub folder, see `hub_file`."""
    return hub_file(fidelity.INCEPTION_URL, fidelity.INCEPTION_SHA256, keys)


def hub_file(url: str, sha256: str | None, keys: Keys) -> Path:
    """Return a file in PyTorch's hub folder, downloaded if it is not there.

    sha256: of the file; None where none is published.

    Raises InputError where it cannot be downloaded.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.exists():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # It writes to a temporary name, and renames when the hash is right.
        torch.hub.download_url_to_file(
            url, str(file), hash_prefix=sha256, progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError, HTTPException) as error:
        raise InputError(
            f"{file.name} is not in {file.parent} and could not be downloaded from {url} "
            f"({error}); give the file with {keys.weights} FILE, or score by {keys.offline}, which "
            "needs no download"
        ) from error
    return file
