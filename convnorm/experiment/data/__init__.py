"""Real images: which, where from, and how they are read into one uint8 tensor."""

from convnorm.experiment.data.images import Images
from convnorm.experiment.data.loading import (
    DataConfig,
    data_path,
    has_split,
    load_images,
    read_images,
)

__all__ = ["DataConfig", "Images", "data_path", "has_split", "load_images", "read_images"]
