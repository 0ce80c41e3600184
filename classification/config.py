"""The configuration of a classification run.

The defaults are ConvNorm's recipe for CIFAR-10, but for `model.init`.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from classification.adversary_config import AdversaryConfig
from classification.label_noise import NoiseConfig
from classification.networks import ARCHITECTURES
from classification.networks.layers import ACTIVATIONS, INITS, NORM_POSITIONS
from classification.splits import SplitConfig
from convnorm.experiment.config import options_of, require
from convnorm.experiment.config.fields import (
    LARGEST_SEED,
    bounded,
    check_ranges,
    choosing,
)
from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import InputError
from convnorm.normalizers import Normalizer


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Args:
        arch: as in classification.networks.
        options: of the architecture, each by its own name, as in model.options.NAME; what is left
            out is as published.
        activation: as in classification.networks.layers.
        norm_position: where what normalizes a map stands; see
            classification.networks.layers.Builder.
        init: what draws the weights of convolutions. kaiming_fan_out: N(0, 2 / fan_out). default:
            nn.Conv2d's own, as in ConvNorm's code, with squares that are 6 C_in / C_out times
            smaller. Where a layer ignores the scale of its weights, they learn faster by that.
    """

    arch: Literal[tuple(ARCHITECTURES)] = "resnet18"
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"options": {name: arch.options for name, arch in ARCHITECTURES.items()}},
    )
    activation: Literal[tuple(ACTIVATIONS)] = "relu"
    norm_position: Literal[NORM_POSITIONS] = "before_activation"
    init: Literal[tuple(INITS)] = "kaiming_fan_out"

    def __post_init__(self):
        architecture = ARCHITECTURES[self.arch]
        options_of(architecture.options, self.options, "model.options")
        require(
            self.norm_position in architecture.norm_positions,
            "model.norm_position",
            self.norm_position,
            f"{' or '.join(architecture.norm_positions)} in {self.arch}",
        )


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate as a function of the step.

    Args:
        name: SGD or AdamW.
        lr: learning rate.
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        betas: decays of AdamW's means of the gradients and of their squares.
        weight_decay: of all weights.
        schedule: multistep: times `gamma` at each of `milestones`. cosine: to 0 at the last step.
            onecycle: from 0 up to `lr` over `warmup` of the steps, then down to 0, in straight
            lines. constant.
        milestones: epochs at which the learning rate changes.
        gamma: what it is multiplied by there.
        warmup: the fraction of the steps in which it grows.
    """

    name: Literal["sgd", "adamw"] = choosing(
        "sgd", {"sgd": ("momentum", "nesterov"), "adamw": ("betas",)}
    )
    lr: float = bounded(0.1, above=0, most=1e30)  # a run that diverges says so itself
    momentum: float = bounded(0.9, least=0, below=1)
    nesterov: bool = False
    betas: tuple[float, float] = bounded((0.9, 0.999), least=0, below=1)
    weight_decay: float = bounded(1e-4, least=0, most=100)
    schedule: Literal["multistep", "cosine", "onecycle", "constant"] = choosing(
        "multistep",
        {
            "multistep": ("milestones", "gamma"),
            "cosine": (),
            "onecycle": ("warmup",),
            "constant": (),
        },
    )
    milestones: tuple[int, ...] = bounded((40, 80), least=1, most=10**6)
    gamma: float = bounded(0.1, above=0, most=1)
    warmup: float = bounded(0.4, above=0, below=1)

    def __post_init__(self):
        check_ranges(self, "optim")
        require(
            not self.nesterov or self.momentum > 0,
            "optim.nesterov",
            self.nesterov,
            "false where optim.momentum is 0",
        )
        grows = all(a < b for a, b in pairwise(self.milestones))
        require(grows, "optim.milestones", self.milestones, "growing numbers of epochs")


@dataclass(frozen=True)
class TrainConfig:
    """How long and on what the network is trained.

    Args:
        epochs: passes over the training images; free adversarial training does `repeats` updates
            on each minibatch of them, so a comparison at equal cost divides its epochs by that.
        batch_size: over all processes together; BatchNorm sees the part of each, so with it a run
            on two is another run than on one.
        flip: mirror half of the images.
        crop: cut each image out of itself padded by so many black pixels.
        label_smoothing: the fraction of the target that is spread over all classes.
        ema_decay: of the average over weights and statistics, per step; 0 keeps none.
        ema_statistics: what the running statistics of BatchNorm are in the average. averaged: over
            the steps, like the weights. own: those of the averaged weights, gathered anew whenever
            the average is scored or saved (Izmailov et al., 2018), on up to 10,000 training images
            in batches of batch_size, which follow from the seed: clean ones, neither attacked nor
            mirrored nor cropped, whatever the training is on.
        precision: bfloat16 runs the network under autocast; float32 is PyTorch's, which on recent
            GPUs means TF32 in convolutions.
    """

    epochs: int = bounded(120, least=1, most=10**6)
    batch_size: int = bounded(128, least=2, most=65_536)
    flip: bool = True
    crop: int = bounded(4, least=0, most=512)
    label_smoothing: float = bounded(0.0, least=0, below=1)
    ema_decay: float = bounded(0.0, least=0, below=1)
    ema_statistics: Literal["averaged", "own"] = "averaged"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check_ranges(self, "train")
        require(
            self.ema_statistics == "averaged" or self.ema_decay > 0,
            "train.ema_statistics",
            self.ema_statistics,
            "averaged where train.ema_decay is 0, which keeps no average",
        )


@dataclass(frozen=True)
class SelectConfig:
    """Which weights become best.pt, by the images of the validation split.

    Args:
        metric: accuracy; or pgd10, accuracy under PGD with 10 steps of eps / 4 at adversary.eps.
        every: epochs between two validations; there is one after the last epoch too.
    """

    metric: Literal["accuracy", "pgd10"] = "accuracy"
    every: int = bounded(1, least=1, most=10**6)

    def __post_init__(self):
        check_ranges(self, "select")


@dataclass(frozen=True)
class LogConfig:
    """What is written how often.

    Args:
        every: steps between two log lines.
        norms_every: epochs between two lines with the norms of layers; 0 writes none.
    """

    every: int = bounded(100, least=1, most=10**9)
    norms_every: int = bounded(0, least=0, most=10**6)

    def __post_init__(self):
        check_ranges(self, "log")


def _published_with_affine_and_batch_norm() -> Normalizer:
    return Normalizer(
        "convnorm", multiplier=True, affine=True, affine_init="default", batch_norm=True
    )


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that decides the result of a classification run.

    Args:
        data: the images.
        split: which of the training images train and validate.
        noise: of the labels.
        model: the network.
        normalizer: of the network's convolutions.
        adversary: which images the network is trained on.
        optim: the optimizer.
        train: how long and on what.
        select: which weights become best.pt.
        log: what is written how often.
        seed: of the weights, of the order of the data and of all that is drawn in training.
    """

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    normalizer: Normalizer = field(default_factory=_published_with_affine_and_batch_norm)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = bounded(0, least=0, most=LARGEST_SEED)

    def __post_init__(self):
        check_ranges(self)
        if not isinstance(self.data.image_size, int):
            raise InputError(
                f"data.image_size: {list(self.data.image_size)} is not allowed; expected one "
                "number, as classifiers take squares"
            )
        fits = self.train.crop < self.data.image_size
        require(fits, "train.crop", self.train.crop, "less than data.image_size")
        require(
            self.normalizer.definition.observe is None,
            "normalizer.kind",
            self.normalizer.kind,
            "a kind that does not adapt to the logits of a discriminator",
        )
        if self.select.metric == "pgd10":
            require(
                self.split.validation > 0,
                "select.metric",
                "pgd10",
                "images to attack, and split.validation holds none out",
            )
        if self.adversary.awp > 0:
            require(
                self.adversary.awp_warmup < self.train.epochs,
                "adversary.awp_warmup",
                self.adversary.awp_warmup,
                f"fewer than the {self.train.epochs} epochs of train.epochs",
            )
        optim = self.optim
        if optim.schedule == "multistep" and max(optim.milestones, default=0) >= self.train.epochs:
            raise InputError(
                f"optim.milestones: {list(optim.milestones)} is not allowed; expected epochs "
                f"before the last of {self.train.epochs} (train.epochs)"
            )

    def extends(self, there: dict[str, Any]) -> str | None:
        """Return the key of the length where this run is a longer one of the config `there`.

        None where it is not, or where the first epochs would not be those of a longer run: the
        schedule depends on the length, or the last epoch of a short run is validated where a
        longer one is not.
        """
        train = there.get("train")
        epochs = train.get("epochs") if isinstance(train, dict) else None
        fits = self.optim.schedule in ("constant", "multistep") and type(epochs) is int
        longer = fits and epochs < self.train.epochs and epochs % self.select.every == 0
        return "train.epochs" if longer else None
