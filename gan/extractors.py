"""Networks whose features and class logits are compared, and what the scores of each are called.

`EXTRACTORS` is the one place that knows: an extractor is added by one entry there. Networks of timm
have no entries, as there are a thousand.
"""

import hashlib
import io
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from convnorm.experiment.errors import InputError
from gan import fidelity, weight_files
from gan.digits_network import DIGITS_SHA256, DIGITS_WEIGHTS, DigitsNet, digits_input
from gan.extractor import GPU_BATCH, Extractor, ExtractorSpec
from gan.keys import OPTIONS, Keys
from gan.lite0_network import LITE0_SHA256, LITE0_TRAINED, LITE0_WEIGHTS, Lite0, lite0_input
from gan.score_names import (
    FROM_FEATURES,
    FROM_LOGITS,
    HIGHER,
    LOWER,
    ScoreName,
    Scores,
    renamed,
)
from gan.timm_extractors import DINOV2_SIZE, PREFIX, load_dinov2, load_timm, timm_recipe
from gan.weight_files import Loaded


def extractor_named(name: str) -> ExtractorSpec:
    """Return the extractor called `name`, or raise an InputError that lists them."""
    if name.startswith(PREFIX):
        return _timm(name.removeprefix(PREFIX))
    if name not in EXTRACTORS:
        expected = " or ".join((*EXTRACTORS, f"{PREFIX}NAME"))
        raise InputError(f"extractor: got {name!r}, expected {expected}")
    return EXTRACTORS[name]


def load_extractor(
    name: str,
    device: torch.device | str,
    *,
    weights: Path | None = None,
    allow_unverified: bool = False,
    keys: Keys = OPTIONS,
) -> Extractor:
    """Load the extractor called `name`, one of `EXTRACTORS` or timm:NAME, onto `device`.

    Args:
        weights: A file of the weights of Inception, DINOv2 or a network of timm; None for the one
            in the hub folder of PyTorch or timm. If it is not there, it is downloaded.
        allow_unverified: Accept Inception weights other than those that define FID. The scores are
            then not called FID or IS.
        keys: What errors call these settings.

    Raises:
        InputError: The name is unknown, or the weights are missing, damaged or not those that the
            name stands for.
    """
    device, spec = torch.device(device), extractor_named(name)
    forward, sha256, verified, details = Loaded(*spec.load(weights, device, allow_unverified, keys))
    batch_size = spec.cpu_batch if device.type == "cpu" else GPU_BATCH
    return Extractor(spec, sha256, verified, forward, device, batch_size, details)


def scores_with(name: str, weights: Path | None, keys: Keys) -> Scores:
    """Return the scores of the extractor called `name` under the names that weights permit.

    weights: A file that is accepted whatever it holds; None for weights that define the names.

    Raises:
        InputError: The name is unknown, or the file cannot be read.
    """
    spec = extractor_named(name)
    if weights is None:
        return spec.scores
    sha256 = hashlib.sha256(weight_files.read(weight_files.given(weights, keys))).hexdigest()
    return spec.scores if sha256 == fidelity.INCEPTION_SHA256 else spec.unverified_scores()


def _digits(
    weights: Path | None, device: torch.device, allow_unverified: bool, keys: Keys
) -> Loaded:
    state = weight_files.shipped(
        DIGITS_WEIGHTS, DIGITS_SHA256, weights, "the digits extractor", keys
    )
    with torch.random.fork_rng(devices=[]):  # the layers draw weights before they are overwritten
        network = DigitsNet()
    network.load_state_dict(state)
    network.eval().requires_grad_(False).to(device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        return network(digits_input(images))

    return Loaded(forward, DIGITS_SHA256, True)


def _lite0(size: int) -> ExtractorSpec:
    """EfficientNet-Lite0 on images of `size` pixels, which decides what its features see.

    Its Fréchet distance needs many images: between equal distributions of N it is 3.9e5 / N at 96
    pixels, more than mild noise adds to it. So KID, which has no bias, is the headline. Classes
    mean something at 224 pixels alone, at which it was trained.
    """
    name = f"lite0@{size}"

    def load(
        weights: Path | None, device: torch.device, allow_unverified: bool, keys: Keys
    ) -> Loaded:
        state = weight_files.shipped(LITE0_WEIGHTS, LITE0_SHA256, weights, name, keys)
        with torch.random.fork_rng(devices=[]):
            network = Lite0()
        network.load(state)
        network.eval().requires_grad_(False).to(device)

        def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
            features, logits = network(lite0_input(images, size, device))
            return features, logits if size == LITE0_TRAINED else None

        return Loaded(forward, LITE0_SHA256, True)

    first = ("kernel", "kernel_error", "frechet_corrected")
    scores = {number: FROM_FEATURES[number] for number in first} | FROM_FEATURES
    if size == LITE0_TRAINED:
        scores |= FROM_LOGITS
    return ExtractorSpec(
        name,
        renamed(f"{{}} ({name})", scores),
        "kernel",
        load,
        is_positive=True,
        cpu_batch=16,  # more take 2.5 times as long: every layer then asks for new memory
    )


def _inception(
    weights: Path | None, device: torch.device, allow_unverified: bool, keys: Keys
) -> Loaded:
    file = weight_files.inception(keys) if weights is None else weight_files.given(weights, keys)
    data = weight_files.read(file)
    sha256 = hashlib.sha256(data).hexdigest()
    verified = sha256 == fidelity.INCEPTION_SHA256
    if not verified and not allow_unverified:
        raise InputError(
            f"{file}: its SHA-256 is {sha256}, expected {fidelity.INCEPTION_SHA256}; "
            f"{keys.allow_unverified_weights} accepts it, but its scores are not called FID or IS"
        )
    try:
        network = fidelity.inception(torch.load(io.BytesIO(data), weights_only=True))
    except Exception as error:  # foreign bytes fail in many ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{file}: not the Inception weights expected ({reason[0]})") from error
    network.to(device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        return network(images.expand(-1, 3, -1, -1))  # gray images become RGB

    return Loaded(forward, sha256, verified)


def _timm(name: str) -> ExtractorSpec:
    """A network of timm, at the size that its weights were made for."""
    recipe = timm_recipe(name)
    name = f"{PREFIX}{recipe.model}"
    scores = renamed(f"{{}} ({name}@{recipe.size})", FROM_FEATURES)
    return ExtractorSpec(
        name, scores, "kernel", partial(load_timm, recipe), has_known_weights=False
    )


EXTRACTORS = {
    spec.name: spec
    for spec in (
        # A Fréchet distance is called FID only with the TensorFlow network that defines it.
        ExtractorSpec(
            "inception",
            FROM_FEATURES
            | {
                "frechet": ScoreName("FID", LOWER),
                "frechet_corrected": ScoreName("FID corrected", LOWER),
                "classifier": ScoreName("IS", HIGHER),
                "classifier_std": ScoreName("IS std", None),
            },
            "frechet",
            _inception,
            is_positive=True,
        ),
        ExtractorSpec(
            "digits",
            renamed("{} (digits)", FROM_FEATURES | FROM_LOGITS),
            "frechet",
            _digits,
            is_positive=True,
        ),
        _lite0(96),
        _lite0(LITE0_TRAINED),
        # Stein et al. 2023 call its Fréchet distance FD-DINOv2; never FID.
        ExtractorSpec(
            "dinov2",
            renamed(f"{{}} (dinov2-vitl14@{DINOV2_SIZE})", FROM_FEATURES),
            "frechet",
            load_dinov2,
            has_known_weights=False,
        ),
    )
}
