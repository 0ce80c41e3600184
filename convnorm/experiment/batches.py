"""Real minibatches as a pure function of (seed, index), so that there is no state to save."""

import torch
from torch import Tensor

from convnorm.experiment import streams
from convnorm.experiment.data import from_uint8
from convnorm.experiment.errors import InputError


class Batches:
    """Shuffled, augmented minibatches of images that are in memory.

    An epoch shows every image once, in an order of its own; the last, partial batch is dropped.
    Nothing in a call waits for the device.

    Args:
        images: (N, C, H, W) uint8, on the device where the batches are wanted.
        batch_size: Images in a batch, over all ranks.
        seed: Batches of equal seed and index are equal.
        flip: Mirror each image left to right with probability 1/2.
        dequantize: Spread each gray level u evenly over [u, u + 1) / 128 - 1, as the official
            code of SNGAN (Miyato et al. 2018) does; else levels are mapped by `from_uint8`.
        rank: Which share of each batch is returned; the shares of all ranks, one after another,
            are the batch of a single process.
        world_size: How many shares there are.

    Raises:
        InputError: There are fewer images than one batch takes, or the shares are not equal.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        seed: int,
        *,
        flip: bool,
        dequantize: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 1 <= batch_size <= len(images):
            raise InputError(
                f"train.batch_size: got {batch_size}, expected 1 to {len(images)}, "
                "the number of training images"
            )
        if batch_size % world_size:
            raise InputError(
                f"train.batch_size: got {batch_size}, expected a multiple of the {world_size} "
                "processes"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.dequantize = dequantize
        share = batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        self._order: tuple[int, Tensor] | None = None  # the epoch and its permutation

    def __call__(self, index: int) -> Tensor:
        """Return this rank's share of batch `index` >= 0.

        Shape (batch_size / world_size, C, H, W), float32 in [-1, 1]; in [-1, 1) if dequantized.
        """
        device = self.images.device
        epoch, position = divmod(index, len(self.images) // self.batch_size)
        batch = self._permutation(epoch)[position * self.batch_size :][: self.batch_size]
        images = self.images[batch[self.share]]
        # Numbers are drawn for the whole batch: a rank's share depends on no other setting.
        random = streams.generator(device, self.seed, "augmentation", index)
        if self.flip:
            flipped = torch.rand(self.batch_size, 1, 1, 1, generator=random, device=device) < 0.5
            images = torch.where(flipped[self.share], images.flip(-1), images)
        if not self.dequantize:
            return from_uint8(images)
        shape = (self.batch_size, *images.shape[1:])
        noise = torch.rand(shape, generator=random, device=device)[self.share]
        # Just below 1, or rounding would now and then lift a pixel to the next level.
        return (images + noise * (1 - 2**-16)) / 128 - 1

    def _permutation(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            random = streams.generator("cpu", self.seed, "order", epoch)
            order = torch.randperm(len(self.images), generator=random)
            self._order = epoch, order.to(self.images.device, non_blocking=True)
        return self._order[1]
