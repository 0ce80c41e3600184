"""The networks whose spectra are taken: of runs, or torchvision's and timm's by name."""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classification.models import load_classifier
from convnorm.experiment.benchmark.run_files import by_step, norms
from convnorm.experiment.data import DataConfig, data_path, load_images
from convnorm.experiment.data.pixels import from_uint8, height_and_width
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import NormPoint
from convnorm.experiment.streams import generator
from gan.models import load_discriminator
from gan.runs import checkpoint_of
from gan.timm_extractors import PREFIX as TIMM
from gan.timm_extractors import untrained

TORCHVISION = "torchvision:"
PREFIXES = (TORCHVISION, TIMM)
CHANNELS = 3  # of the networks of others
# By which torchvision's and timm's networks shift and scale pixels in [0, 1], as most of them do.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Images = Callable[[int], Tensor]


@dataclass(frozen=True)
class Options:
    """What the script was told of its networks; fields as its options.

    data: of MODELs, with the size of their images. seed: of random weights and of which images.
    """

    device: torch.device
    which: str | None
    input_size: int | None
    weights: Path | None
    data: DataConfig | None
    data_root: str | None
    seed: int


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode.

    source: as it was given. kind: of its normalizer. settings: of its config, by dotted names,
    without the seed and the place of the data. norms: layer -> operator norms in the run's log.
    images: n -> so many test images, as the network sees them (n, C, H, W); None without any.
    notes: what is to be said of what is not measured.
    """

    source: str
    network: nn.Module
    image_size: torch.Size
    kind: str | None
    seed: int | None
    step: int | None
    settings: dict[str, Any]
    norms: dict[str, tuple[NormPoint, ...]]
    images: Images | None
    notes: tuple[str, ...] = ()


def is_model(source: str) -> bool:
    return source.startswith(PREFIXES)


def open_subject(source: str, options: Options) -> Subject:
    """Open what was given as RUN or MODEL; InputError where it is none."""
    return _model(source, options) if is_model(source) else _run(source, options)


# --------------------------------------------------------------------------------------- of a run


def _run(source: str, options: Options) -> Subject:
    path = data_path(source, "RUN")
    if not path.exists():
        expected = f"the folder of a run, a checkpoint .pt, {TORCHVISION}NAME or {TIMM}NAME"
        raise InputError(f"RUN: {source}: no such folder or file; expected {expected}")
    file = checkpoint_of(path, options.which)
    try:
        loaded = load_classifier(file, options.device)
    except InputError as error:  # it names the format that was found
        if "holds 'convnorm-suite/gan/" not in str(error):
            raise
        loaded, as_input = load_discriminator(file, options.device), from_uint8
    else:
        as_input = _in_unit_range
    config, channels = loaded.config, loaded.channels
    data = config.data if options.data_root is None else config.data.at(options.data_root)

    def images(n: int) -> Tensor:
        return as_input(_chosen(data, n, channels, source, options)).to(options.device)

    settings = _settings(asdict(config))
    of_a_class = settings.get("model.conditional") == "projection"
    return Subject(
        source,
        loaded.network,
        torch.Size((channels, *height_and_width(data.image_size))),
        config.normalizer.kind,
        config.seed,
        loaded.step,
        settings,
        _logged(path),
        None if of_a_class else images,
        ("no Jacobian and no bound: the logit of an image depends on a class",) * of_a_class,
    )


def _in_unit_range(images: Tensor) -> Tensor:
    return images.float() / 255


def _settings(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config by dotted names, but for those that all runs of a method may have."""
    found = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            found |= _settings(value, f"{key}.")
        elif key not in ("seed", *(f"data.{name}" for name in DataConfig.PLACE)):
            found[key] = value
    return found


def _logged(run: Path) -> dict[str, tuple[NormPoint, ...]]:
    log = run / "log.jsonl"
    return norms(by_step(log, None)).get("operator", {}) if log.is_file() else {}


def _chosen(data: DataConfig, n: int, channels: int, source: str, options: Options) -> Tensor:
    """Choose n test images (N, channels, H, W), all of them where there are fewer."""
    try:
        images = load_images(data, "test").images
    except InputError as error:
        raise InputError(f"{source}: {error}; --images 0 does without test images") from None
    if images.shape[1] != channels and (images.shape[1], channels) != (1, CHANNELS):
        raise InputError(
            f"{source}: a network for {channels} channels; the images have {images.shape[1]}"
        )
    order = torch.randperm(len(images), generator=generator("cpu", options.seed, "spectrum"))
    return images[order[:n].sort().values].expand(-1, channels, -1, -1)


# ----------------------------------------------------------------------------------- of a library


def _model(source: str, options: Options) -> Subject:
    prefix = next(prefix for prefix in PREFIXES if source.startswith(prefix))
    name = source.removeprefix(prefix)
    size, data = options.input_size, options.data
    if size is None:
        raise InputError(f"--input_size: missing; expected the pixels of an image for {source}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = untrained(name) if prefix == TIMM else _torchvision(name)
    if options.weights is not None:
        _load_weights(network, options.weights)
    settings = {"model": source, "weights": str(options.weights)}
    return Subject(
        source,
        network.to(options.device).eval().requires_grad_(False),
        torch.Size((CHANNELS, size, size)),
        None,
        options.seed if options.weights is None else None,
        None,
        settings,
        {},
        None if data is None else lambda n: _standardized(_chosen(data, n, 3, source, options)),
    )


def _standardized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return (_in_unit_range(images) - mean) / std


def _torchvision(name: str) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = [each for each in known if each.startswith(name[:6])] or known
        raise InputError(
            f"MODEL: {TORCHVISION}{name}: no such classifier; expected one such as "
            f"{', '.join(near[:5])}"
        )
    with warnings.catch_warnings(action="ignore"):  # of how long the weights of some take to draw
        return torchvision.models.get_model(name, weights=None)


def _load_weights(network: nn.Module, file: Path) -> None:
    expected = "expected a state dict of this network, as torch.save writes it"
    if not file.is_file():
        raise InputError(f"--weights: {file}: no such file; {expected}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError, KeyError, EOFError, OSError,
            pickle.UnpicklingError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"--weights: {file}: {reason}; {expected}") from None
