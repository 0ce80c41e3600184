"""The images of each class in random order, to take the same fraction of every class."""

from collections.abc import Iterator

import torch
from torch import Tensor

from convnorm.experiment.streams import generator


def shuffled_classes(labels: Tensor, *key: int | str) -> Iterator[tuple[int, Tensor]]:
    """Give each class in `labels` (N,) with the positions of its images, shuffled, int64.

    The order is a function of the key and of the class, so that the first positions for a smaller
    fraction are among those for a larger one.
    """
    counts = labels.unique(return_counts=True)[1].tolist()
    for positions in labels.argsort(stable=True).split(counts):  # of one class, in order
        label = labels[positions[0]].item()
        random = generator("cpu", *key, label)
        yield label, positions[torch.randperm(len(positions), generator=random)]
