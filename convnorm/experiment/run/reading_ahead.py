"""Batches of images that are on disk, read by a thread while others are trained on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from convnorm.experiment.data import Images

AHEAD = 8  # batches; a step of a GAN takes several at once


class ReadAhead:
    """Reads the batch that is asked for, and begins to read those after it.

    What a call returns depends on its index alone. The thread ends when this object is dropped, or
    with the process, once it has read what it was asked for.

    data: with images on disk. order: index of a batch -> positions of its images, int64.
    device: where batches are wanted.
    """

    def __init__(self, data: Images, order: Callable[[int], Tensor], device: torch.device):
        self.images, self.labels = data.images, data.labels.cpu()
        self.order, self.device = order, device
        self._reader = ThreadPoolExecutor(1, "read_ahead")
        self._begun: dict[int, tuple[Future, Tensor, Tensor]] = {}

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) uint8 and labels (N,) int64 of batch `index` on the device.

        Raises InputError where the file cannot be read.
        """
        wanted = range(index, index + AHEAD + 1)
        for other in set(self._begun) - set(wanted):
            self._begun.pop(other)[0].cancel()
        self._begun = {each: self._begun.get(each) or self._begin(each) for each in wanted}
        future, images, labels = self._begun.pop(index)
        future.result()
        return sent_ahead(images, self.device), sent_ahead(labels, self.device)

    def _begin(self, index: int) -> tuple[Future, Tensor, Tensor]:
        """Let the thread fill memory from which a copy to the device waits for nothing."""
        positions = self.order(index)
        images = self.images.room(len(positions), pin_memory=self.device.type == "cuda")
        future = self._reader.submit(self.images.read, positions, images)
        return future, images, self.labels[positions]


def sent_ahead(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`, without waiting for it."""
    # From other than pinned memory the copy waits, whatever it is asked for.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
