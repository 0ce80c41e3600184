"""Networks whose features and class logits the scores compare, and a cache of what they return.

Either the TensorFlow Inception that defines IS and FID, or a small CNN for handwritten digits that
comes with the package. A Fréchet distance is called FID only with the former's verified weights.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from tqdm import tqdm

from convnorm.experiment import data as data_module
from convnorm.experiment import files
from convnorm.experiment.data import Images, resize
from convnorm.experiment.errors import InputError
from gan import fidelity

DIGITS_WEIGHTS = Path(__file__).parent / "weights" / "digits_extractor.pt"
# Other weights are another score: who retrains them changes this line, and every number.
DIGITS_SHA256 = "24361c3e553f67d5f12e4397c09700ffd427c65c21a60d3e6390933ba6dd357b"
DIGITS_SIZE = 16  # height and width of the images that the digits network sees


class DigitsNet(nn.Module):
    """Classify digits: (N, 1, 16, 16) in [-1, 1] -> features (N, 64) >= 0, logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_stage(1, 32, stride=1), *_stage(32, 64, stride=2), *_stage(64, 64, stride=2)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images).mean(dim=(2, 3))
        return features, self.head(features)


def _stage(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU()


class Features(NamedTuple):
    """What the scores are computed from: `features` (N, D) and `logits` (N, K), float32."""

    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Extractor:
    """A network together with what a record has to say about it.

    Args:
        name: inception or digits.
        weights_sha256: SHA-256 of the file that the weights are from.
        verified: Whether that file is the one which everybody who uses the name means.
        forward: (N, C, H, W) uint8, on `device` -> features (N, D), logits (N, K).
        device: Where it runs.
        batch_size: How many images it sees at a time.
    """

    name: str
    weights_sha256: str
    verified: bool
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    device: torch.device
    batch_size: int = 128

    def __call__(self, images: Tensor) -> Features:
        """Return the features and logits, on `device`, of (N, C, H, W) uint8 images."""
        batches = tqdm(
            images.split(self.batch_size), desc=f"{self.name} features", leave=False, disable=None
        )
        # Full float32, whatever a training run around this prefers: the score must not depend on it
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            outputs = [self.forward(batch.to(self.device)) for batch in batches]
        return Features(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))

    def label(self, score: str) -> str:
        """Return what `score` (FD, KID, CS, precision, ...) may be called with this extractor."""
        return label(score, self.name, self.verified)


def label(score: str, extractor: str, verified: bool = True) -> str:
    """Return what `score` may be called with an extractor of this name, verified or not."""
    if extractor != "inception":
        return f"{score} ({extractor})"
    if not verified:
        return f"{score} (unverified inception)"
    return score.replace("FD", "FID").replace("CS", "IS")


def load_extractor(
    name: str,
    device: torch.device | str,
    *,
    weights: Path | None = None,
    allow_unverified: bool = False,
) -> Extractor:
    """Load the extractor called `name`, inception or digits, onto `device`.

    Args:
        weights: A file of Inception weights; None for the one in PyTorch's hub folder, which is
            downloaded there if it is missing.
        allow_unverified: Accept Inception weights other than those that define FID. The scores are
            then not called FID or IS.

    Raises:
        InputError: No weights, damaged ones, or others than `name` stands for.
    """
    if name == "digits":
        if weights is not None:
            raise InputError(f"weights: got {weights}, but the digits extractor has its own")
        return _digits(torch.device(device))
    if name == "inception":
        file = Path(weights).expanduser() if weights else _hub_file()
        return _inception(file, torch.device(device), allow_unverified)
    raise InputError(f"extractor: got {name!r}, expected inception or digits")


def _digits(device: torch.device) -> Extractor:
    data = _read(DIGITS_WEIGHTS)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != DIGITS_SHA256:
        raise InputError(
            f"{DIGITS_WEIGHTS}: its SHA-256 is {sha256}, expected {DIGITS_SHA256}; install again"
        )
    with torch.random.fork_rng(devices=[]):  # the layers draw weights before they are overwritten
        network = DigitsNet()
    network.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
    network.eval().requires_grad_(False).to(device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        return network(digits_input(images))

    return Extractor("digits", sha256, True, forward, device)


def digits_input(images: Tensor) -> Tensor:
    """Turn (N, C, H, W) uint8 into what `DigitsNet` sees: gray, 16x16, in [-1, 1]."""
    gray = images.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
    return resize(gray, DIGITS_SIZE).float() / 127.5 - 1


def _inception(file: Path, device: torch.device, allow_unverified: bool) -> Extractor:
    data = _read(file)
    sha256 = hashlib.sha256(data).hexdigest()
    verified = sha256 == fidelity.INCEPTION_SHA256
    if not verified and not allow_unverified:
        raise InputError(
            f"{file}: its SHA-256 is {sha256}, expected {fidelity.INCEPTION_SHA256}; "
            "--allow_unverified_weights accepts it, but its scores are not called FID or IS"
        )
    try:
        network = fidelity.inception(torch.load(io.BytesIO(data), weights_only=True))
    except Exception as error:  # foreign bytes fail in many ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{file}: not the Inception weights expected ({reason[0]})") from error
    network.to(device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        return network(images.expand(-1, 3, -1, -1))  # gray ones too

    return Extractor("inception", sha256, verified, forward, device)


def _read(file: Path) -> bytes:
    # Read once, so that the bytes that were checked are the bytes that are loaded.
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot read these weights ({error.strerror})") from error


def _hub_file() -> Path:
    """Return torch-fidelity's file in PyTorch's hub folder, downloaded if it is not there."""
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
            f"({error}); give the file with --weights FILE"
        ) from error
    return file


def cached_features(images: Tensor, extractor: Extractor, folder: Path | None = None) -> Features:
    """Return `extractor(images)`, from a file whose name is a hash of all that it depends on.

    Args:
        images: (N, C, H, W) uint8.
        folder: Where the files are; None for $XDG_CACHE_HOME/convnorm-suite, or
            ~/.cache/convnorm-suite where that is not set.

    Raises:
        InputError: The folder is not writable.
    """
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "convnorm-suite"
    file = Path(folder) / f"{_cache_key(images, extractor)}.features"
    if file.exists():
        content = file.read_bytes()
        # The file begins with a hash of the rest: a damaged one is never believed.
        if content[:32] == hashlib.sha256(content[32:]).digest():
            saved = torch.load(io.BytesIO(content[32:]), weights_only=True)
            return Features(*(part.to(extractor.device) for part in saved))
    features = extractor(images)
    buffer = io.BytesIO()
    torch.save([part.cpu() for part in features], buffer)
    content = buffer.getvalue()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be made a folder ({error.strerror})") from error
    files.write(file, lambda out: out.write(hashlib.sha256(content).digest() + content))
    return features


def _cache_key(images: Tensor, extractor: Extractor) -> str:
    # The images are hashed as selected, so split, number and subset are in it. The code that makes
    # features of them is too: a changed preprocessing must not find the old numbers.
    code = [Path(file).read_bytes() for file in (__file__, fidelity.__file__, data_module.__file__)]
    depends_on = [
        sha256_of(images),
        extractor.name,
        extractor.weights_sha256,
        extractor.device.type,
        hashlib.sha256(b"".join(code)).hexdigest(),
        fidelity.VERSION,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


def sha256_of(images: Tensor) -> str:
    """Return the content hash of (N, C, H, W) uint8 images, the one of `Images.sha256`."""
    return Images(images, torch.zeros(len(images), dtype=torch.int64), ()).sha256()
