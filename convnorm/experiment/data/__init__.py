"""Real images: which, where from, and how they are read into one uint8 tensor."""

from convnorm.experiment.data.images import Images, Pixels, evenly_spaced, parts_of, taken
from convnorm.experiment.data.loading import (
    DataConfig,
    data_path,
    has_split,
    load_images,
    read_images,
)

__all__ = [
    "DataConfig",
    "Images",
    "Pixels",
    "data_path",
    "evenly_spaced",
    "has_split",
    "load_images",
    "parts_of",
    "read_images",
    "taken",
]
