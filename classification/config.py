"""The configuration of a classification run. The defaults are ConvNorm's recipe for CIFAR-10."""

from dataclasses import dataclass, field
from typing import Any, Literal

from classification.label_noise import NoiseConfig
from classification.networks import ARCHITECTURES
from classification.networks.layers import ACTIVATIONS, NORM_POSITIONS
from classification.radii import Length, grey_levels, step_levels
from classification.splits import SplitConfig
from convnorm.experiment.config import options_of, require
from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import InputError
from convnorm.normalizers import Normalizer


@dataclass(frozen=True)
class ModelConfig:
    """arch, activation: see classification.networks.

    options: fields of the architecture's own `Options`; what is left out is as published.
    norm_position: where what normalizes a map stands; see classification.networks.layers.Builder.
    """

    arch: Literal[tuple(ARCHITECTURES)] = "resnet18"
    options: dict[str, Any] = field(default_factory=dict)
    activation: Literal[tuple(ACTIVATIONS)] = "relu"
    norm_position: Literal[NORM_POSITIONS] = "before_activation"

    def __post_init__(self):
        options_of(ARCHITECTURES[self.arch].options, self.options, "model.options")


@dataclass(frozen=True)
class AdversaryConfig:
    """Which images the network is trained on; sources are in classification.adversarial_training.

    kind: standard: the clean ones. free: one gradient for weights and perturbation, m `repeats`
        of each minibatch. fast: FGSM from a random start. pgd: `steps` of it. trades: clean ones,
        and the KL divergence of PGD's from them with weight `beta`.
    eps, step_size: of an l_inf perturbation, in grey levels of 255: 8 or 8/255, from 0.5; kept as
        the number of levels. A step_size of null is the published fraction of eps, and one of more
        than 2 eps would leave the ball. A network is evaluated with this eps by default, also after
        clean training.
    steps: up to 1,000, as are `repeats`. beta: from 0 to 1,000.
    reset_perturbation: free: each minibatch begins at zero, as in ConvNorm's code, and not where
        the last one ended.
    """

    kind: Literal["standard", "free", "fast", "pgd", "trades"] = "standard"
    eps: Length = 8.0
    step_size: Length | None = None
    steps: int = 10
    repeats: int = 4
    reset_perturbation: bool = False
    beta: float = 6.0

    def __post_init__(self):
        eps = grey_levels(self.eps, "adversary.eps")
        step_size = step_levels(self.step_size, "adversary.step_size", eps)
        # One form for all that is written alike, so that 8 and 8/255 are the same run.
        object.__setattr__(self, "eps", eps)
        object.__setattr__(self, "step_size", step_size)
        for key in ("steps", "repeats"):
            value = getattr(self, key)
            require(1 <= value <= 1000, f"adversary.{key}", value, "1 to 1,000")
        require(0 <= self.beta <= 1000, "adversary.beta", self.beta, "0 to 1,000")


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate as a function of the step.

    schedule: multistep: times `gamma` at each of `milestones`, in epochs. cosine: to 0 at the last
        step. onecycle: from 0 up to `lr` over `warmup` of the steps, then down to 0, in straight
        lines. constant.
    momentum, nesterov: of SGD. betas: of AdamW.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    schedule: Literal["multistep", "cosine", "onecycle", "constant"] = "multistep"
    milestones: tuple[int, ...] = (40, 80)
    gamma: float = 0.1
    warmup: float = 0.4

    def __post_init__(self):
        require(self.lr > 0, "optim.lr", self.lr, "more than 0")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "0 <= momentum < 1")
        require(
            not self.nesterov or self.momentum > 0,
            "optim.nesterov",
            self.nesterov,
            "false where optim.momentum is 0",
        )
        for beta in self.betas:
            require(0 <= beta < 1, "optim.betas", self.betas, "two of 0 <= beta < 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        grows = all(a < b for a, b in zip((0, *self.milestones), self.milestones, strict=False))
        require(grows, "optim.milestones", self.milestones, "growing numbers of epochs above 0")
        require(0 < self.gamma <= 1, "optim.gamma", self.gamma, "0 < gamma <= 1")
        require(0 < self.warmup < 1, "optim.warmup", self.warmup, "0 < warmup < 1")


@dataclass(frozen=True)
class TrainConfig:
    """How long and on what the network is trained.

    epochs: passes over the training images; `free` does `repeats` updates on each minibatch of
        them, so a comparison at equal cost divides its epochs by that.
    batch_size: over all processes together; BatchNorm sees the part of each, so with it a run on
        two is another run than on one.
    flip: mirror half of the images; crop: cut each out of itself padded by so many black pixels.
    label_smoothing: the fraction of the target that is spread over all classes.
    ema_decay: of weights and buffers, per step; 0 keeps no average.
    precision: bfloat16 runs the network under autocast; float32 is PyTorch's, which on recent
        GPUs means TF32 in convolutions.
    """

    epochs: int = 120
    batch_size: int = 128
    flip: bool = True
    crop: int = 4
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        require(self.epochs >= 1, "train.epochs", self.epochs, "1 or more")
        require(self.batch_size >= 2, "train.batch_size", self.batch_size, "2 or more")
        require(self.crop >= 0, "train.crop", self.crop, "0 or more")
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "train.label_smoothing", smoothing, "0 <= fraction < 1")
        require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "0 <= decay < 1")


@dataclass(frozen=True)
class SelectConfig:
    """Which weights become best.pt, by the images of the validation split.

    metric: accuracy; or pgd10, accuracy under PGD with 10 steps of eps / 4 at adversary.eps.
    every: epochs between two validations; there is one after the last epoch too.
    """

    metric: Literal["accuracy", "pgd10"] = "accuracy"
    every: int = 1

    def __post_init__(self):
        require(self.every >= 1, "select.every", self.every, "1 or more")


@dataclass(frozen=True)
class LogConfig:
    """Steps between two log lines; epochs between two lines with the norms of layers (0: none)."""

    every: int = 100
    norms_every: int = 0

    def __post_init__(self):
        require(self.every >= 1, "log.every", self.every, "1 or more")
        require(self.norms_every >= 0, "log.norms_every", self.norms_every, "0 or more")


def _published_with_affine_and_batch_norm() -> Normalizer:
    return Normalizer(
        "convnorm", multiplier=True, affine=True, affine_init="default", batch_norm=True
    )


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that decides the result of a classification run."""

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
    seed: int = 0

    def __post_init__(self):
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        fits = self.train.crop < self.data.image_size
        require(fits, "train.crop", self.train.crop, "less than data.image_size")
        if self.select.metric == "pgd10":
            require(
                self.split.validation > 0,
                "select.metric",
                "pgd10",
                "images to attack, and split.validation holds none out",
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
