"""An evaluation's record, its picture and its results of single images as files.

They lie beside the checkpoint, and are read again only as long as they belong together.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from classification.evaluation_report import plot
from classification.records import Evaluation, PerImage
from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.errors import InputError
from convnorm.experiment.files import write, write_json
from convnorm.experiment.run.checkpoint import EVALUATION


def save(record: Evaluation, per_image: dict[str, Tensor], checkpoint_file: Path) -> Path:
    """Write what `evaluate` returned, and its picture, beside the checkpoint.

    Returns the record's file, which is written last: with the SHA-256 of the .npz in it, a kill in
    between cannot pair the numbers of one evaluation with the images of another.
    """
    split = record.data.split
    name = checkpoint_file.stem + ("" if split == "test" else f"_{split}")
    file = checkpoint_file.parent / EVALUATION / f"{name}.json"
    picture, images = file.with_suffix(".png"), file.with_suffix(".npz")
    if png := plot(record):
        write(picture, lambda opened: opened.write(png))
    else:
        picture.unlink(missing_ok=True)  # it would be that of another record
    content = io.BytesIO()
    np.savez(content, **{name: values.numpy() for name, values in per_image.items()})
    write(images, lambda opened: opened.write(content.getbuffer()))
    sha256 = hashlib.sha256(content.getbuffer()).hexdigest()
    write_json(file, to_json(replace(record, per_image=PerImage(images.name, sha256))))
    return file


def load(checkpoint_file: Path) -> tuple[Evaluation, dict[str, np.ndarray]]:
    """Read what `save` wrote of the test split, as long as it is of this very checkpoint.

    Raises:
        InputError: A file is missing, damaged or of another version, or the files are not of one
            evaluation.
    """
    file = checkpoint_file.parent / EVALUATION / f"{checkpoint_file.stem}.json"
    images = file.with_suffix(".npz")
    expected = f"expected what evaluate_cls.py writes of {checkpoint_file}"
    try:
        with checkpoint_file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        record = from_json(Evaluation, json.loads(file.read_text()), file)
        content = images.read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; {expected}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{file}: not readable as JSON; {expected}") from None
    if record.checkpoint.sha256 != sha256:
        raise InputError(f"{file}: is of a checkpoint that was there before; {expected}")
    found = hashlib.sha256(content).hexdigest()
    if record.per_image is None or record.per_image.sha256 != found:
        raise InputError(f"{images}: is of another evaluation than {file.name}; {expected}")
    try:
        with np.load(io.BytesIO(content)) as arrays:
            per_image = dict(arrays)
    except (EOFError, TypeError, ValueError, zipfile.BadZipFile):
        raise InputError(f"{images}: damaged; {expected}") from None
    _check_counts(record, per_image, images)
    return record, per_image


def _check_counts(record: Evaluation, per_image: dict[str, np.ndarray], file: Path) -> None:
    """Where the flags of single images are not what the record counts, one of them is wrong."""
    counted = {"clean": record.clean.top1}
    counted |= {attack.name: attack.accuracy for attack in record.attacks if attack.accuracy}
    for name, accuracy in counted.items():
        if name not in per_image:
            raise InputError(f"{file}: lacks {name}; expected all that the record counts")
        flags = per_image[name]
        if (flags.sum(), *flags.shape) != (accuracy.correct, accuracy.n):
            raise InputError(
                f"{file}: {name}: right about {flags.sum()} of {len(flags)} images; expected the "
                f"{accuracy.correct} of {accuracy.n} that the record counts"
            )
