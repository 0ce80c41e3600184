"""Everything that is random in a step of a GAN, its real images, and what a schedule sets.

What is drawn is a function of the seed, of what it is for and of the step: the normalizer, the
number of processes and whether the run was resumed do not enter. So an update, which takes the
draws, has nothing to draw, to hash or to count. A number that changes from step to step is a float
or a tensor: `Captured` makes tensors of the floats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from convnorm.experiment.data import Images
from convnorm.experiment.data.pixels import from_uint8
from convnorm.experiment.run.averaging import decay_at
from convnorm.experiment.run.batches import Batches
from convnorm.experiment.run.distributed import Process
from gan.augmentation import AUGMENTATIONS
from gan.config import GanConfig
from gan.lecam import DECAY
from gan.losses import LOSSES, Batch
from gan.models import Latents
from gan.schedules import Rates, penalty_factor, rates


@dataclass(frozen=True)
class DiscriminatorDraws:
    """Of one update of the discriminator.

    mix: (N, 1, 1, 1) uniform in [0, 1), for a penalty between the two batches; None without one.
    penalty_factor: (), on the weights of the penalties that decay.
    fake_augmentation: of the generated images, as `Batch.augmentation` is of the real ones.
    lecam: whether that term has begun. lecam_decay: of its anchors in this update.
    """

    real: Batch
    latents: Latents
    mix: Tensor | None
    penalty_factor: Tensor
    fake_augmentation: Mapping[str, Tensor]
    lecam: bool
    lecam_decay: float


@dataclass(frozen=True)
class GeneratorDraws:
    """Of one update of the generator; `real` is None where the loss looks at fakes alone.

    fake_augmentation: of the generated images.
    """

    latents: Latents
    real: Batch | None
    fake_augmentation: Mapping[str, Tensor]


@dataclass(frozen=True)
class Draws:
    """Of one step: n_dis updates of the discriminator, then one of the generator.

    rates: of Adam, at this step.
    ema_decay: of the generator's average, at this step.
    """

    discriminator: tuple[DiscriminatorDraws, ...]
    generator: GeneratorDraws
    rates: Rates
    ema_decay: float


class Drawing:
    """Draws the steps of a run: step -> `Draws`, this process's part of them.

    images: the training images, on the device where the networks are.
    Raises InputError where a batch does not fit the images or the number of processes.
    """

    def __init__(self, config: GanConfig, images: Images, process: Process):
        self.config, self.process = config, process
        self.num_classes = len(images.classes)
        train, seed = config.train, config.seed
        size, key = train.generator_batch_size, "train.generator_batch_size"
        process.local_slice(size, key)
        self.batches = Batches(images, train.batch_size, seed, process, flip=train.flip)
        self.generator_batches = None
        if LOSSES[config.loss.name].compares:
            self.generator_batches = Batches(
                images, size, seed, process, flip=train.flip, stream=("g",), key=key
            )
        self.mixes = any(penalty.mixes for penalty in config.loss.penalties)

    def __call__(self, step: int) -> Draws:
        """Return the draws of step `step`, counted from 0."""
        config = self.config
        repeats = range(config.train.n_dis)
        return Draws(
            discriminator=tuple(self._for_discriminator(step, repeat) for repeat in repeats),
            generator=self._for_generator(step),
            rates=rates(config, step),
            ema_decay=decay_at(config.train.ema_decay, step),
        )

    def _for_discriminator(self, step: int, repeat: int) -> DiscriminatorDraws:
        size, index = self.config.train.batch_size, step * self.config.train.n_dis + repeat
        loss = self.config.loss
        has_begun = step >= loss.lecam_start
        return DiscriminatorDraws(
            real=self._real(
                self.batches,
                index,
                "augmentation",
                self._augmentation(size, "real", step, repeat),
            ),
            latents=self._latents(size, "z_d", step, repeat),
            mix=self._random(torch.rand, (size, 1, 1, 1), "mix", step, repeat)
            if self.mixes
            else None,
            penalty_factor=torch.full(
                (), penalty_factor(self.config, step), device=self.process.device
            ),
            fake_augmentation=self._augmentation(size, "fake", step, repeat),
            lecam=loss.lecam > 0 and has_begun,
            # Until then, and in a first update, the anchors are the means of the update itself.
            lecam_decay=DECAY if has_begun and index > 0 else 0.0,
        )

    def _for_generator(self, step: int) -> GeneratorDraws:
        batches = self.generator_batches
        size, real = self.config.train.generator_batch_size, None
        if batches is not None:
            augmentation = self._augmentation(size, "real_g", step)
            real = self._real(batches, step, "augmentation_g", augmentation)
        return GeneratorDraws(
            latents=self._latents(size, "z_g", step),
            real=real,
            fake_augmentation=self._augmentation(size, "fake_g", step),
        )

    def _real(
        self, batches: Batches, index: int, stream: str, augmentation: Mapping[str, Tensor]
    ) -> Batch:
        """Real images in [-1, 1], see `from_uint8`; `stream` is that of their noise."""
        images, labels = batches(index)
        if not self.config.train.dequantize:
            return Batch(from_uint8(images), labels, augmentation)
        noise = self._random(torch.rand, (batches.batch_size, *images.shape[1:]), stream, index)
        return Batch(from_uint8(images, noise), labels, augmentation)

    def _augmentation(self, size: int, role: str, *key: int) -> dict[str, Tensor]:
        """What `augmented` takes for a batch; a name has the same numbers in every policy."""
        return {
            name: self._random(
                torch.rand, (size, AUGMENTATIONS[name].numbers), "diffaugment", name, role, *key
            )
            for name in self.config.train.augmentations
        }

    def _latents(self, num: int, *key: int | str) -> Latents:
        z = self._random(torch.randn, (num, self.config.model.z_dim), *key)
        labels = self._random(torch.rand, (num,), "labels", *key)
        return Latents(z, (labels * self.num_classes).long())

    def _random(self, draw: Callable, size: tuple[int, ...], *key: int | str) -> Tensor:
        """This process's part of random numbers for a whole batch."""
        return self.process.random(draw, size, self.config.seed, *key)
