"""Minibatches of real images as a pure function of (seed, index): there is no state to save."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from convnorm.experiment import streams
from convnorm.experiment.data import Images
from convnorm.experiment.data.stored import StoredImages
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.reading_ahead import ReadAhead, sent_ahead


def sha256_of(images: Images) -> str:
    """Return the SHA-256 of images and their labels, as hexadecimal digits."""
    return hashlib.sha256(images.sha256().encode() + images.labels.numpy().tobytes()).hexdigest()


class Batches:
    """Shuffled minibatches of images, mirrored and cropped at random on request.

    An epoch shows every image once, in its own order, but for those of a last, partial batch.
    Nothing in a call waits for the device. Images on disk are read ahead, and give the same
    batches as in memory.

    Args:
        data: Images and labels, on the process's device unless they are on disk.
        batch_size: Images in a batch, over all processes.
        seed: Batches of equal seed and index are equal.
        process: Which part of each batch is returned; the parts of all processes, one after
            another, are the batch of a single one.
        flip: Mirror each image left to right with probability 1/2.
        crop: Pad each image by so many black pixels and cut it out again at a random place.
        stream: Tells these batches from others of the same run.
        key: Of the batch size, for messages.

    Raises:
        InputError: There are fewer images than one batch takes, or a batch cannot be divided among
            the processes.
    """

    def __init__(
        self,
        data: Images,
        batch_size: int,
        seed: int,
        process: Process,
        *,
        flip: bool = False,
        crop: int = 0,
        stream: tuple[str, ...] = (),
        key: str = "train.batch_size",
    ) -> None:
        if not 1 <= batch_size <= len(data.images):
            raise InputError(
                f"{key}: got {batch_size}, expected 1 to {len(data.images)}, "
                "the number of training images"
            )
        self.data = data
        self.batch_size = batch_size
        self.key = (seed, *stream)
        self.flip, self.crop = flip, crop
        self.process = process
        self.local_slice = process.local_slice(batch_size, key)
        self.per_epoch = len(data.images) // batch_size
        on_disk = isinstance(data.images, StoredImages)
        place = torch.device("cpu") if on_disk else data.images.device
        self._order = Order(len(data.images), batch_size, self.local_slice, self.key, place)
        self._ahead = ReadAhead(data, self._order, process.device) if on_disk else None

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return this process's part of batch `index` >= 0.

        Images (batch_size / world_size, C, H, W) uint8 and their labels, int64.
        """
        images, labels = self._plain(index) if self._ahead is None else self._ahead(index)
        # Numbers are drawn for the whole batch: a part depends on no other setting.
        if self.flip:
            draw = self.process.random(
                torch.rand, (self.batch_size, 1, 1, 1), *self.key, "flip", index
            )
            images = torch.where(draw < 0.5, images.flip(-1), images)
        if self.crop > 0:
            draw = self.process.random(torch.rand, (self.batch_size, 2), *self.key, "crop", index)
            images = shifted(images, (draw * (2 * self.crop + 1)).long(), self.crop)
        return images, labels

    def _plain(self, index: int) -> tuple[Tensor, Tensor]:
        """The batch as the images in memory are."""
        batch = self._order(index)
        return self.data.images[batch], self.data.labels[batch]


class Order:
    """Which images are this process's part of a batch: all are shuffled anew in each epoch.

    num: of images. local_slice: of a batch. key: of the permutations, which lie on `device`.
    """

    def __init__(
        self,
        num: int,
        batch_size: int,
        local_slice: slice,
        key: tuple[int | str, ...],
        device: torch.device,
    ):
        self.num, self.batch_size, self.local_slice = num, batch_size, local_slice
        self.key, self.device = key, device
        self._known: tuple[int, Tensor] | None = None  # the epoch and its permutation

    def __call__(self, index: int) -> Tensor:
        """Return the positions of the images of batch `index` >= 0, int64."""
        epoch, position = divmod(index, self.num // self.batch_size)
        if self._known is None or self._known[0] != epoch:
            random = streams.generator("cpu", *self.key, "order", epoch)
            order = torch.randperm(self.num, generator=random)
            self._known = epoch, sent_ahead(order, self.device)
        return self._known[1][position * self.batch_size :][: self.batch_size][self.local_slice]


def shifted(images: Tensor, corners: Tensor, padding: int) -> Tensor:
    """Pad images (N, C, H, W) with 0 and cut them out at `corners` (N, 2), y and x.

    Corners are 0 to 2 * padding; (padding, padding) changes nothing.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    rows = corners[:, :1] + torch.arange(height, device=images.device)
    columns = corners[:, 1:] + torch.arange(width, device=images.device)
    taken = padded.gather(2, rows[:, None, :, None].expand(*padded.shape[:2], -1, padded.shape[3]))
    return taken.gather(3, columns[:, None, None, :].expand(*taken.shape[:3], -1))
