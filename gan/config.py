"""The configuration of a GAN run. The defaults are the published SNGAN recipe for CIFAR-10."""

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from convnorm.experiment.config import options_of, require
from convnorm.experiment.config.fields import LARGEST_SEED, bounded, check_ranges, choosing
from convnorm.experiment.data import DataConfig
from convnorm.experiment.errors import InputError
from gan import parts
from gan.losses import LOSSES, Penalty, gradient_penalty, r1, r2
from gan.networks import ARCHITECTURES, check_conditional
from gan.networks.conditional import Kind
from gan.normalizer import GanNormalizer
from gan.score_config import ScoreConfig
from gan.train_config import TrainConfig


@dataclass(frozen=True)
class ModelConfig:
    """The generator and the discriminator.

    Args:
        arch: the family of both, as in gan.networks.
        z_dim: length of the generator's input.
        options: of the architecture, each by its own name, as in model.options.NAME; what is left
            out is as published.
        gradient_normalization: the discriminator f is trained and measured as the function
            f / (|grad f| + |f|) (Wu et al., 2021). It needs the gradient of one image, so no kind
            that mixes a batch, and leaves nothing to gradient_penalty, r1, r2 and weight_clip.
        conditional: how both networks know classes, as in gan.networks.conditional; acgan has the
            weights of gan.losses.
    """

    arch: Literal[tuple(ARCHITECTURES)] = "sngan_cnn"
    z_dim: int = bounded(128, least=1, most=65_536)
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"options": {name: arch.options for name, arch in ARCHITECTURES.items()}},
    )
    gradient_normalization: bool = False
    conditional: Kind = "none"

    def __post_init__(self):
        check_ranges(self, "model")
        check_conditional(self.arch, self.conditional)
        if self.gradient_normalization and self.conditional == "acgan":
            raise InputError(
                "model.gradient_normalization: true normalizes one logit, and model.conditional "
                "'acgan' has those of a classifier too; expected false, or none or projection there"
            )
        options_of(ARCHITECTURES[self.arch].options, self.options, "model.options")


@dataclass(frozen=True)
class LossConfig:
    """The loss, and what else acts on the discriminator; 0 switches a term off.

    Args:
        name: of both networks, as in gan.losses. Of relativistic, which compares real and generated
            images in pairs, logits mean something by their differences alone.
        gradient_penalty: weight of (|grad D| - 1)^2 between real and fake (Gulrajani et al., 2017).
        r1: gamma of gamma / 2 * |grad D|^2 on real images (Mescheder et al., 2018).
        r2: the same on generated ones; it may stand beside r1, as in R3GAN (Huang et al., 2024).
        weight_clip: the discriminator's weights stay in [-c, c] (Arjovsky et al., 2017).
        final_penalty_factor: what gradient_penalty, r1 and r2 are multiplied by at the end of
            optim.decay, on the way of the learning rate; 1 keeps them as they are.
        lecam: weight of what holds the discriminator near its logits of before, see gan.lecam
            (Tseng et al., 2021).
        lecam_start: the steps before it begins.
    """

    name: Literal[tuple(LOSSES)] = "hinge"
    gradient_penalty: float = bounded(0.0, least=0, most=10**6)
    r1: float = bounded(0.0, least=0, most=10**6)
    r2: float = bounded(0.0, least=0, most=10**6)
    weight_clip: float = bounded(0.0, least=0, most=10**6)
    final_penalty_factor: float = bounded(1.0, least=0, most=10**6)
    lecam: float = bounded(0.0, least=0, most=10**6)
    lecam_start: int = bounded(1000, least=0, most=10**9)

    def __post_init__(self):
        check_ranges(self, "loss")
        for one, other in combinations(self.regularizers, 2):
            # One pulls |grad D| to 1, r1 and r2 to 0, and a clip bounds what they would shape.
            if (one, other) != ("r1", "r2"):
                raise InputError(f"loss.{one} and loss.{other} contradict each other: set one")

    @property
    def regularizers(self) -> list[str]:
        """The fields that hold the discriminator back and are on."""
        known = ("gradient_penalty", "r1", "r2", "weight_clip")
        return [name for name in known if getattr(self, name) > 0]

    @property
    def penalties(self) -> list[Penalty]:
        """The terms that are added to the discriminator's loss."""
        known = [
            Penalty(
                "gradient_penalty", self.gradient_penalty, gradient_penalty, mixes=True, decays=True
            ),
            Penalty("r1", self.r1, r1, decays=True),
            Penalty("r2", self.r2, r2, decays=True),
        ]
        return [penalty for penalty in known if penalty.weight > 0]


@dataclass(frozen=True)
class OptimConfig:
    """Adam for both networks.

    Args:
        lr: learning rate.
        lr_d: the discriminator's; null is lr. With it, lr is the generator's (TTUR, Heusel et al.,
            2017).
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        decay: how learning rates go from their first values to their last, in a straight line or
            along half a cosine; none keeps them.
        decay_steps: in which they go there, to stay there in all steps after; null is `steps`. A
            run with it can be made longer, and its first steps are those of a shorter one.
        final_lr_factor: what lr and lr_d are multiplied by at the end.
        final_beta2: what beta2 goes to, on the same way; null keeps it.
        fused: one kernel for a step of Adam on all weights. Its rounding is its own: steps differ
            by about 1e-7 of the weights.
    """

    lr: float = bounded(2e-4, above=0, most=1e30)  # a run that diverges says so itself
    lr_d: float | None = bounded(None, above=0, most=1e30)
    beta1: float = bounded(0.0, least=0, below=1)
    beta2: float = bounded(0.9, least=0, below=1)
    decay: Literal["linear", "cosine", "none"] = choosing(
        "linear",
        {
            "linear": ("decay_steps", "final_lr_factor", "final_beta2"),
            "cosine": ("decay_steps", "final_lr_factor", "final_beta2"),
            "none": (),
        },
    )
    decay_steps: int | None = bounded(None, least=1, most=10**9)
    final_lr_factor: float = bounded(0.0, least=0, most=1)
    final_beta2: float | None = bounded(None, least=0, below=1)
    fused: bool = False

    def __post_init__(self):
        check_ranges(self, "optim")


@dataclass(frozen=True)
class LogConfig:
    """What is written how often; always after the last step too.

    Args:
        every: steps between log lines.
        samples_every: steps between grids of samples.
        norms_every: steps between lines with the norms of layers.
        gain_every: steps between lines with the gain of the discriminator, the first of which is
            written before the first step.
    """

    every: int = bounded(100, least=1, most=10**9)
    samples_every: int = bounded(1000, least=1, most=10**9)
    norms_every: int = bounded(1000, least=1, most=10**9)
    gain_every: int = bounded(100, least=1, most=10**9)

    def __post_init__(self):
        check_ranges(self, "log")


@dataclass(frozen=True)
class CheckpointsConfig:
    """Which weights are kept, beside the last ones and those that score.select chose.

    Args:
        every: steps between two files of generators in checkpoints/; 0 keeps none.
    """

    every: int = bounded(0, least=0, most=10**9)

    def __post_init__(self):
        check_ranges(self, "checkpoints")


@dataclass(frozen=True)
class GanConfig:
    """Everything that decides the result of a GAN run.

    Args:
        data: the real images.
        model: the networks.
        normalizer: of the discriminator's layers and the generator's convolutions.
        loss: what is minimized.
        optim: the optimizer of both networks.
        train: what happens in a step.
        log: what is written how often.
        score: what is measured during training.
        checkpoints: which weights are kept.
        seed: of the weights, of the order of the data and of the latents.
        steps: updates of the generator.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    normalizer: GanNormalizer = field(default_factory=lambda: GanNormalizer("convnorm"))
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    seed: int = bounded(0, least=0, most=LARGEST_SEED)
    steps: int = bounded(100_000, least=1, most=10**9)

    def __post_init__(self):
        check_ranges(self)
        if self.loss.lecam > 0:
            whole = self.optim.decay_steps or self.steps  # a pilot may end before
            start, expected = self.loss.lecam_start, f"less than {whole}, the number of steps"
            require(start < whole, "loss.lecam_start", start, expected)
        normalizer = self.normalizer
        scale_free = normalizer.ignores_scale and normalizer.definition.normalizes_linear
        if self.loss.weight_clip > 0 and scale_free:
            raise InputError(
                f"loss.weight_clip: bounds nothing, as normalizer.kind {normalizer.kind!r} takes "
                "the scale out of all weights; expected another kind, or a factor of its own "
                "(normalizer.multiplier or batch_norm, where the kind reads it)"
            )
        require(
            self.loss.final_penalty_factor == 1 or self.optim.decay != "none",
            "loss.final_penalty_factor",
            self.loss.final_penalty_factor,
            "1 where optim.decay is none",
        )
        if normalizer.definition.observe is not None and not LOSSES[self.loss.name].splits_at_zero:
            split = [name for name, loss in LOSSES.items() if loss.splits_at_zero]
            raise InputError(
                f"loss.name: {self.loss.name!r} is not allowed, as normalizer.kind "
                f"{normalizer.kind!r} adapts to the sign of logits; expected one of "
                f"{', '.join(split)}, or another kind"
            )
        of_one_image = [f"loss.{penalty.name}" for penalty in self.loss.penalties]
        if self.model.gradient_normalization:
            of_one_image.append("model.gradient_normalization")
        if normalizer.mixes_batch and of_one_image:
            raise InputError(
                f"{of_one_image[0]}: needs the gradient of one image, and normalizer.kind "
                f"{normalizer.kind!r} mixes the images of a batch; expected another kind"
            )
        if self.model.gradient_normalization and self.loss.regularizers:
            # |grad D| is at most 1 by itself, and a factor on all weights changes nothing.
            name = self.loss.regularizers[0]
            raise InputError(
                f"model.gradient_normalization: true leaves nothing to loss.{name}; expected "
                f"false, or loss.{name} of 0"
            )

        if self.train.one_pass and normalizer.mixes_batch:
            raise InputError(
                f"train.one_pass: true is not allowed, as normalizer.kind {normalizer.kind!r} "
                "mixes the images of a batch; expected false, or another kind"
            )
        parts.check(self)
        if self.train.capture == "graph":
            _check_capture(self)

    def extends(self, there: dict[str, Any]) -> str | None:
        """Return the key of the length where this run is a longer one of the config `there`.

        None where it is not, or where the first steps would not be those of a longer run.
        """
        steps, optim = there.get("steps"), self.optim
        is_fixed = optim.decay == "none" or optim.decay_steps is not None
        fits = is_fixed and type(steps) is int and steps < self.steps
        return "steps" if fits else None


def _check_capture(config: GanConfig) -> None:
    """Raise InputError where steps are not all alike, or cannot be computed ahead."""
    optim, start = config.optim, config.loss.lecam_start
    for name, each in (("kind", config.normalizer), ("generator", config.normalizer.of_generator)):
        if each.definition.waits:
            raise InputError(
                f"train.capture: 'graph' is not allowed, as normalizer.{name} {each.kind!r} waits "
                "for the device in an update; expected none, or another kind"
            )
    if optim.decay != "none" and optim.final_beta2 not in (None, optim.beta2):
        raise InputError(
            f"train.capture: 'graph' is not allowed, as optim.final_beta2 {optim.final_beta2} "
            "changes what is fixed in it; expected none, or optim.final_beta2 of null"
        )
    if config.loss.lecam > 0 and start > 0:
        raise InputError(
            f"train.capture: 'graph' is not allowed, as steps from loss.lecam_start {start} on are "
            "others than those before; expected none, or loss.lecam_start of 0"
        )
