"""What can be scored: generators of runs, folders and files of images, and named data sets."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from convnorm.experiment.data import DataConfig, Images, Pixels, data_path, load_images, read_images
from convnorm.experiment.data.folder import has_splits
from convnorm.experiment.data.pixels import (
    RESIZED_BY,
    Size,
    height_and_width,
    require_shape,
    resize,
)
from convnorm.experiment.data.split_files import SUFFIXES
from convnorm.experiment.data.split_names import Split
from convnorm.experiment.errors import InputError
from gan.config import GanConfig
from gan.extraction import Labels, Sample
from gan.models import load_generator
from gan.protocols import Protocol, protocol_named
from gan.records import Origin
from gan.runs import Which, checkpoint_of, is_run
from gan.statistics_files import Statistics, has_statistics, read_statistics

NAMES = ("digits", "cifar10", "cifar100", "stl10")
SOURCES = (
    "a run folder, a checkpoint .pt, a folder of images, an .npz file, a .npy file of "
    "prepare_data.py, or digits, cifar10, cifar100, stl10; any but a run with :train or :test if "
    "wanted"
)


@dataclass(frozen=True)
class ImageSource:
    """Images that can be scored, (N, C, H, W) uint8, or a generator of them; or statistics of real
    ones, which images can be scored against.

    image_size: in pixels. origin: where they come from. config: of a
        generator's run; None of images.
    classes: the names of the classes that images are of, or that a conditional generator knows.
    labels: the class of each image, (N,); None of a generator. asked_for: of such a generator, what
    tells the classes that its images are asked for as.
    """

    images: Pixels | Sample | Statistics
    image_size: Size
    origin: Origin
    config: GanConfig | None = None
    classes: tuple[str, ...] = ()
    labels: Tensor | None = None
    asked_for: Labels | None = None


def read_source(
    text: str,
    role: str,
    split: Split,
    device: torch.device,
    root: str,
    size: Size | None = None,
    checkpoint: Which | None = None,
) -> ImageSource:
    """Read one of `SOURCES`.

    role: FAKE or REAL, for the error. split: of a data set whose text names none. root: the folder
        of the CIFAR archives. size: to which images are resized as they are read; None leaves
        them as they are. checkpoint: of a run folder; see `checkpoint_of`.

    Raises:
        InputError: The text is none of them or could be two, or what it names cannot be read.
    """
    name, given = _parts(text, role)
    path = data_path(name, role)
    if checkpoint is not None and not is_run(path):
        raise InputError(
            f"--checkpoint: {checkpoint} is not allowed with {role} {text!r}; expected it with the "
            "folder of a run"
        )
    if name in NAMES:
        if path.exists():
            raise InputError(
                f"{role}: {text!r} is the name of a data set and of {path.absolute()}; expected "
                f"./{text} for what lies here, or to be started where nothing of that name does"
            )
        return _images(name, text, root, given or split, size)
    if is_run(path):
        if given:
            raise InputError(f"{role}: {text!r}: a generator has no splits, expected {name}")
        source = _generator(path, text, checkpoint, device)
        return source if size is None else resized(source, size)
    if path.is_dir():
        for kind, suffix in SUFFIXES.items():
            if any(path.glob(f"[!.]*{suffix}")):
                return _images(kind, text, name, given or split, size)
        return _images("folder", text, name, given or (split if has_splits(path) else None), size)
    if path.is_file() and path.suffix == ".npz":
        if role == "REAL" and not given and has_statistics(path):
            statistics = read_statistics(path)
            origin = Origin(text, found=statistics.found, kind="statistics")
            return ImageSource(statistics, size, origin)
        return _images("npz", text, name, given, size)
    if path.is_file() and path.suffix == SUFFIXES["prepared"]:
        return _images("prepared", text, name, given, size)
    state = "neither of these" if path.exists() else "not found"
    raise InputError(f"{role}: {text!r} is {state}: {SOURCES}")


def _generator(
    path: Path, text: str, checkpoint: Which | None, device: torch.device
) -> ImageSource:
    """Read the generator of a run and say where it comes from."""
    file = checkpoint_of(path, checkpoint)
    loaded = load_generator(file, device)
    told = str(file) if checkpoint == "best" else text
    origin = Origin(told, step=loaded.step, ema=loaded.ema, sha256=loaded.sha256)
    return ImageSource(
        loaded.parts,
        loaded.config.data.image_size,
        origin,
        loaded.config,
        loaded.classes,
        asked_for=loaded.labels if loaded.classes else None,
    )


def require_generator(source: ImageSource) -> None:
    """Raise an InputError for images: only a generator can be drawn from again."""
    if isinstance(source.images, Pixels):
        raise InputError(
            f"--draws: not allowed with the images of {source.origin.source}; expected a "
            "generator, which draws others"
        )


def classes_of(fake: ImageSource, real: ImageSource) -> dict[str, Any]:
    """Return what `reference_of` takes to score classes by themselves; nothing where it cannot.

    That needs a conditional generator and real images of the classes that it knows.
    """
    if fake.asked_for is None or fake.classes != real.classes or real.labels is None:
        return {}
    return {"labels": real.labels, "classes": real.classes}


def own_config(source: ImageSource) -> GanConfig:
    """Return the config of a generator's run; InputError for images, which have none."""
    if source.config is None:
        raise InputError(
            f"REAL: missing; expected one of {SOURCES}, as FAKE {source.origin.source} is no run "
            "with data of its own"
        )
    return source.config


def own_protocol(config: GanConfig) -> Protocol:
    """Return the protocol that a run is scored by unless another one is asked for."""
    usual = "digits" if config.data.name == "digits" else "fid50k_train"
    return config.score.reported or protocol_named(usual)


def own_data(data: DataConfig, split: Split, root: str | None) -> ImageSource:
    """Read a split of the data that a run is trained on.

    root: where they are, if they were moved. Raises InputError where they cannot be read.
    """
    data = data.at(root) if root else data
    text = data.name if data.name in NAMES else data.root
    return _source(load_images(data, split), text, split)


def _parts(text: str, role: str) -> tuple[str, Split | None]:
    """Split `text` into a name or path and the split that it asks for."""
    name, _, given = text.rpartition(":")
    if given not in get_args(Split):
        return text, None
    if not data_path(text, role).exists():
        return name, given
    if data_path(name, role).exists():
        raise InputError(f"{role}: there are both {text!r} and {name!r}, expected one of them")
    return text, None


def _images(name: str, text: str, root: str, split: Split | None, size: Size | None) -> ImageSource:
    """Read images and say where they come from."""
    return _source(read_images(name, root, split, size), text, split)


def _source(loaded: Images, text: str, split: Split | None) -> ImageSource:
    smallest, largest = loaded.native_sizes
    source = text.removesuffix(f":{split}")
    origin = Origin(source, split, found=loaded.found)
    final = loaded.size
    if (smallest, largest) != (final, final):
        before = largest if smallest == largest else None
        origin = replace(origin, resized_from=before, resized_by=RESIZED_BY)
    return ImageSource(loaded.images, final, origin, classes=loaded.classes, labels=loaded.labels)


def resized(source: ImageSource, size: Size) -> ImageSource:
    """Return a generator's source with images of `size`; its origin says what they were before.

    Raises InputError where its images have another shape.
    """
    if source.image_size == size:
        return source
    require_shape(*height_and_width(source.image_size), size, f"{source.origin.source}: is")

    def sample(num: int, seed: int, share: slice) -> Iterator[Tensor]:
        # On the CPU: the floats of a GPU would round to other levels now and then.
        return (resize(part.cpu(), size) for part in source.images(num, seed, share))

    origin = replace(source.origin, resized_from=source.image_size, resized_by=RESIZED_BY)
    return ImageSource(sample, size, origin)
