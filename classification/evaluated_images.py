"""The images that a classifier is evaluated on, if they fit it."""

import math

import torch
from torch import Tensor

from classification.evaluation_options import Options
from classification.models import LoadedClassifier
from classification.per_image import Subject, sha256_of
from classification.splits import split
from convnorm.experiment.config import require
from convnorm.experiment.data import Images, load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.batches import sha256_of as sha256_of_file
from convnorm.experiment.streams import generator


def subject_of(loaded: LoadedClassifier, options: Options, device: torch.device) -> Subject:
    """Return a classifier that is on `device` with the images that `options` choose.

    Raises:
        InputError: The data cannot be read or do not fit the classifier, or an option does not fit
            the data.
    """
    data = loaded.config.data
    if options.data_root is not None:
        data = data.at(options.data_root)
    if options.split == "validation" and loaded.data_sha256 is None:
        raise InputError(
            f"split: validation is not allowed, as {loaded.file} does not say what it was trained "
            "on; expected test"
        )
    images = load_images(data, "train" if options.split == "validation" else "test")
    _check_fit(loaded, images)
    _check_radius(options.budget.eps_l2, images)
    if options.split == "validation" and sha256_of_file(images) != loaded.data_sha256:
        raise InputError(
            f"data.root: {data.root} has other training data than the run had, so what was held "
            "out is not known; expected the same file, or --split test"
        )
    positions = _positions(loaded, options, images)
    folder = loaded.file.parent / checkpoint.EVALUATION
    facts = {
        "checkpoint_sha256": loaded.sha256,
        "images_sha256": images.sha256(),
        "labels_sha256": sha256_of(images.labels),
        "batch_size": options.batch_size,
        "device": device.type,
        "torch": str(torch.__version__),
    }
    return Subject(loaded.network, images, positions, device, options.batch_size, folder, facts)


def _check_fit(loaded: LoadedClassifier, images: Images) -> None:
    channels, known = images.images.shape[1], loaded.classes
    if channels != loaded.channels:
        raise InputError(
            f"{loaded.file}: a network for {loaded.channels} channels; the images have {channels}"
        )
    if images.classes != known:
        raise InputError(
            f"{loaded.file}: a network for the {len(known)} classes {_shown(known)}; "
            f"the images have the {len(images.classes)} classes {_shown(images.classes)}"
        )


def _check_radius(eps_l2: float, images: Images) -> None:
    """Within half the diagonal of the cube of all images, each one can become one uniform grey."""
    channels, height, width = images.images.shape[1:]
    most = math.sqrt(channels * height * width) / 2
    size = f"{channels}x{height}x{width}"
    fits = f"at most {most:.4g}, within which every image of {size} can become one grey"
    require(eps_l2 <= most, "eps_l2", eps_l2, fits)


def _shown(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:10]) + ", ..." * (len(classes) > 10)


def _positions(loaded: LoadedClassifier, options: Options, images: Images) -> Tensor:
    positions = torch.arange(len(images.labels))
    if options.split == "validation":
        positions = split(images.labels, loaded.config.split)[1]
        if len(positions) == 0:
            raise InputError(
                "split: validation has no image, as the run's split.validation is 0; expected test"
            )
    if options.num is None:
        return positions
    if options.num > len(positions):
        raise InputError(
            f"num: {options.num} is not allowed; expected at most the {len(positions)} images "
            f"of the {options.split} split"
        )
    random = generator("cpu", options.budget.seed, "evaluation")
    return positions[torch.randperm(len(positions), generator=random)[: options.num]].sort().values
