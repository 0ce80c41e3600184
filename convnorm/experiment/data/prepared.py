"""Reads the files of scripts/prepare_data.py, into memory or as they are needed."""

import json
from pathlib import Path

from convnorm.experiment.data.images import Images, images_of
from convnorm.experiment.data.pixels import Size, size_of, size_text
from convnorm.experiment.data.split_files import SUFFIXES, split_file, train_file
from convnorm.experiment.data.split_names import Split
from convnorm.experiment.data.stored import StoredImages, open_file
from convnorm.experiment.data.stream import IsLarge
from convnorm.experiment.errors import InputError
from convnorm.experiment.memory import require_memory


def read_prepared(root: Path, split: Split | None, size: Size | None, is_large: IsLarge) -> Images:
    """Read the file of a split; see `split_file` for how it is found, and `stored` for what it is.

    size: that of its images, or None, which asks for nothing.
    is_large: Whether images of so many bytes are left on disk.

    Raises:
        InputError: The file is missing, damaged or of another kind, its images have another size,
            do not fit into memory, or the test file has other classes than the training file.
    """
    path, skipped = split_file(root, split, SUFFIXES["prepared"])
    file = open_file(path)
    found = size_of(*file.shape[2:])
    if size not in (None, found):
        raise InputError(
            f"{path}: holds images of {size_text(found)} pixels, expected data.image_size "
            f"{json.dumps(found)}, or a file of prepare_data.py --size {json.dumps(size)}"
        )
    train = train_file(root, path) if split == "test" else None
    if train and open_file(train).classes != file.classes:
        raise InputError(f"{path}: other classes than in {train.name}, expected the same")
    images = StoredImages(file)
    if not is_large(file.shape.numel()):
        what = f"{path}: {len(images)} images of {size_text(found)} pixels"
        require_memory(file.shape.numel(), what)
        images = images[:]
    where = f"{path} ({file.about.made})"
    return images_of(images, file.labels, file.classes, (found, found), where, skipped)
