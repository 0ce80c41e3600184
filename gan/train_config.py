"""The configuration of a step of a GAN."""

from dataclasses import dataclass
from typing import Literal

from convnorm.experiment.config import require
from convnorm.experiment.config.fields import bounded, check_ranges
from gan.augmentation import AUGMENTATIONS


@dataclass(frozen=True)
class TrainConfig:
    """What happens in one step: n_dis updates of the discriminator, then one of the generator.

    Args:
        batch_size: real images, and as many generated ones, in an update of the discriminator,
            over all processes together.
        generator_batch_size: generated images in an update of the generator, over all processes
            together.
        n_dis: updates of the discriminator in a step.
        dequantize: uniform noise of one grey level on real images.
        flip: mirror half of the real images.
        fraction: of the training images of each class that train, drawn by the run's seed; scores
            have all images.
        diffaugment: what happens to real and generated images before the discriminator sees them
            in training (Zhao et al., 2020): names of color, translation and cutout in the order of
            application, separated by commas; empty for none.
        ema_decay: of the average over the generator's weights and buffers, per step; 0 keeps none.
            At step t it is at most (1 + t) / (10 + t), so that the average forgets the first
            weights.
        precision: bfloat16 runs the networks under autocast; float32 is PyTorch's, which on recent
            GPUs means TF32 in convolutions.
        one_pass: the discriminator sees real and generated images, where a loss takes both, as one
            batch. Its power iterations then take one step there and not two; all else is the same
            but for rounding. Not with kinds that mix a batch.
        accumulate: equal parts of a batch that go through the networks one after another, in a
            fraction of the memory. Their gradients are added, and random numbers and power
            iterations are those of the whole batch, so that all is the same but for rounding, and
            for the generator's BatchNorm, which sees a part. Not with kinds that mix a batch, nor
            with loss.lecam.
        sync_batch_norm: the BatchNorms of both networks take their statistics over all processes of
            a run, and not each over its part. Those of one process are the same.
        channels_last: maps lie in memory by pixel and not by channel, which convolutions of a CPU
            and half precision on a GPU like. Networks whose normalizer needs whole maps, as
            ConvNorm's filter does, lose by it. The same but for rounding.
        capture: graph makes a CUDA graph of a step after three, so that a GPU gets it in one
            launch. Adam then takes its rate and its corrections in float32 on the device, which
            changes a step by about 1e-7 of itself; the rest is the same to the last bit. Of one
            process on a CUDA device, without kinds that wait for it (own), optim.final_beta2 and a
            loss.lecam_start.
    """

    batch_size: int = bounded(64, least=2, most=65_536)  # 2 for BatchNorm
    generator_batch_size: int = bounded(128, least=2, most=65_536)
    n_dis: int = bounded(5, least=1, most=1000)
    dequantize: bool = True
    flip: bool = False
    fraction: float = bounded(1.0, above=0, most=1)
    diffaugment: str = ""
    ema_decay: float = bounded(0.0, least=0, below=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    one_pass: bool = False
    accumulate: int = bounded(1, least=1, most=65_536)
    sync_batch_norm: bool = False
    channels_last: bool = False
    capture: Literal["none", "graph"] = "none"

    def __post_init__(self):
        check_ranges(self, "train")
        names = self.augmentations
        require(
            set(names) <= set(AUGMENTATIONS) and len(set(names)) == len(names),
            "train.diffaugment",
            self.diffaugment,
            f"{', '.join(AUGMENTATIONS)}, each at most once, with commas and without spaces "
            "between them, or nothing",
        )

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in `diffaugment`, in the order of application."""
        return tuple(self.diffaugment.split(",")) if self.diffaugment else ()
