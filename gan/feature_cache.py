"""A cache of features, so that every run does not extract those of the same real images again."""

import hashlib
import io
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from convnorm.experiment import files
from convnorm.experiment.data import Images, Pixels, parts_of, pixels
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import ALONE, Process
from gan import digits_network, extractors, fidelity, lite0_network, pillow, timm_extractors
from gan import extractor as extractor_module
from gan.extraction import extract_features
from gan.extractor import Extractor, Features
from gan.models import PART


def cached_features(
    images: Pixels, extractor: Extractor, folder: Path | None = None, process: Process = ALONE
) -> Features | None:
    """Return `extractor(images)`, from a file whose name is a hash of all that it depends on.

    Where there is no such file, each process extracts its share. Returns None in all processes but
    the main one, whose folder decides.

    Args:
        images: (N, C, H, W) uint8, the same in every process.
        folder: Where the files are; None for $XDG_CACHE_HOME/convnorm-suite, or
            ~/.cache/convnorm-suite where that is not set.

    Raises:
        InputError: The folder is not writable.
    """
    saved = None
    if process.is_main:
        folder = _home() / "convnorm-suite" if folder is None else Path(folder)
        file = folder / f"{_cache_key(images, extractor)}.features"
        saved = _saved(file, len(images))
    if not process.any(process.is_main and saved is None):
        return None if saved is None else saved.map(lambda part: part.to(extractor.device))
    parts = parts_of(images, PART, process.turns)
    features = extract_features(parts, len(images), extractor, process)
    if features is not None:
        _save(features, file)
    return features


def _save(features: Features, file: Path) -> None:
    buffer = io.BytesIO()
    torch.save(list(features.map(Tensor.cpu)), buffer)
    content = buffer.getvalue()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be made a folder ({error.strerror})") from error
    files.write(file, lambda out: out.write(hashlib.sha256(content).digest() + content))


def _home() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user without a home
        raise InputError(
            f"XDG_CACHE_HOME: is not set ({error}); expected a folder for caches"
        ) from None


def _saved(file: Path, num: int) -> Features | None:
    """Return the features of `num` images that a file holds; None if it holds anything else."""
    try:
        if not file.is_file():
            return None
        content = file.read_bytes()
        # The file begins with a hash of the rest: a damaged one is never believed.
        if content[:32] != hashlib.sha256(content[32:]).digest():
            return None
        saved = Features(*torch.load(io.BytesIO(content[32:]), weights_only=True))
        fits = all(part is None or part.shape == (num, part.shape[-1]) for part in saved)
    except Exception:  # foreign bytes fail in many ways, and computing them again is always right
        return None
    return saved if fits else None


def _cache_key(images: Pixels, extractor: Extractor) -> str:
    # The images are hashed as selected, so split, number and subset are in it. The code that makes
    # features of them is too: a changed preprocessing must not find the old numbers.
    networks = (digits_network, lite0_network, timm_extractors, fidelity)
    modules = (extractor_module, extractors, *networks, pixels, pillow)
    code = [Path(module.__file__).read_bytes() for module in modules]
    depends_on = [
        sha256_of(images),
        extractor.spec.name,
        extractor.weights_sha256,
        extractor.details,
        extractor.device.type,
        hashlib.sha256(b"".join(code)).hexdigest(),
        fidelity.VERSION,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


def sha256_of(images: Pixels) -> str:
    """Return the content hash of (N, C, H, W) uint8 images, the one of `Images.sha256`."""
    return Images(images, torch.zeros(len(images), dtype=torch.int64), ()).sha256()
