"""What the parts train: random images, configs of both pipelines, and their trainers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from classification.adversary_config import AdversaryConfig
from classification.config import ClassifierConfig, SelectConfig
from classification.config import ModelConfig as ClassifierModelConfig
from classification.config import OptimConfig as ClassifierOptimConfig
from classification.config import TrainConfig as ClassifierTrainConfig
from classification.train import train as train_classifier
from classification.trainer import Trainer as ClassifierTrainer
from classification.training_data import training_data
from convnorm.experiment.config import RunOptions
from convnorm.experiment.data import DataConfig, load_images
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.loop import Trainer
from device_checks.part import Setup
from gan.config import GanConfig, LossConfig, ModelConfig, TrainConfig
from gan.normalizer import GanNormalizer
from gan.train import train as train_gan
from gan.trainer import Trainer as GanTrainer

Config = GanConfig | ClassifierConfig
NUM_CLASSES = 10
FOREVER = 10**6  # steps of a run that is timed and not ended


def data(setup: Setup) -> DataConfig:
    """Random images with a smooth part, written on the first call: CIFAR's need a network."""
    size, num = (16, 64) if setup.tiny else (32, 4500)
    file = setup.folder / "train.npz"
    if not file.exists():
        random = np.random.default_rng(0)
        coarse = random.integers(0, 256, (num, size // 4, size // 4, 3)).repeat(4, 1).repeat(4, 2)
        images = (coarse + random.integers(-20, 21, coarse.shape)).clip(0, 255).astype(np.uint8)
        np.savez(file, images=images, labels=np.arange(num) % NUM_CLASSES)
    return DataConfig("npz", str(file), size)


def gan_config(
    setup: Setup,
    kind: str,
    *,
    steps: int = FOREVER,
    arch: str = "sngan_cnn",
    grid: str = "full",
    precision: str = "float32",
    gradient_penalty: float = 0.0,
    ema_decay: float = 0.0,
) -> GanConfig:
    """The published recipe on random images; tiny, a narrow DCGAN in place of every network."""
    train = TrainConfig(ema_decay=ema_decay, precision=precision)
    model = ModelConfig(arch)
    if setup.tiny:
        train = replace(train, batch_size=4, generator_batch_size=4, n_dis=2)
        narrow = {"generator_width": 4, "discriminator_width": 4}
        model = ModelConfig("dcgan", z_dim=8, options=narrow)
    return GanConfig(
        data=data(setup),
        model=model,
        normalizer=GanNormalizer(kind, grid=grid),
        loss=LossConfig(gradient_penalty=gradient_penalty),
        train=train,
        steps=steps,
    )


def classifier_config(
    setup: Setup,
    kind: str,
    *,
    epochs: int = FOREVER,
    arch: str = "resnet18",
    grid: str = "full",
    adversary: str = "standard",
    precision: str = "float32",
    select: str = "accuracy",
    ema_decay: float = 0.0,
) -> ClassifierConfig:
    """The published recipe on random images; tiny, a narrow small CNN in place of every network."""
    train = ClassifierTrainConfig(epochs=epochs, ema_decay=ema_decay, precision=precision)
    model = ClassifierModelConfig(arch)
    if setup.tiny:
        train = replace(train, batch_size=13)
        model = ClassifierModelConfig("simple_cnn", options={"width": 4})
    return ClassifierConfig(
        data=data(setup),
        model=model,
        normalizer=replace(ClassifierConfig().normalizer, kind=kind, grid=grid),
        adversary=AdversaryConfig(adversary, steps=2),
        optim=ClassifierOptimConfig(schedule="constant"),
        train=train,
        select=SelectConfig(select),
    )


def comparisons(setup: Setup) -> dict[str, dict[str, Config]]:
    """Name -> normalizers to be timed in turn, the first of which is the reference."""
    if setup.tiny:
        return {
            "GAN": {kind: gan_config(setup, kind) for kind in ("none", "convnorm")},
            "classifier": {kind: classifier_config(setup, kind) for kind in ("batch", "convnorm")},
        }
    found: dict[str, dict[str, Config]] = {}
    for precision in ("float32", "bfloat16"):
        found[f"sngan_cnn, {precision}"] = {
            "none": gan_config(setup, "none", precision=precision),
            "spectral": gan_config(setup, "spectral", precision=precision),
            "convnorm": gan_config(setup, "convnorm", precision=precision),
            "convnorm native": gan_config(setup, "convnorm", grid="native", precision=precision),
        }
        found[f"resnet18, {precision}"] = {
            "batch": classifier_config(setup, "batch", precision=precision),
            "spectral": classifier_config(setup, "spectral", precision=precision),
            "convnorm": classifier_config(setup, "convnorm", precision=precision),
            "convnorm native": classifier_config(
                setup, "convnorm", grid="native", precision=precision
            ),
        }
    found["sngan_resnet"] = {
        kind: gan_config(setup, kind, arch="sngan_resnet")
        for kind in ("none", "spectral", "convnorm")
    }
    found["resnet18, free"] = {
        kind: classifier_config(setup, kind, adversary="free") for kind in ("batch", "convnorm")
    }
    rest = ("none", "batch", "layer", "weight", "ocnn", "own", "oni", "spectral_convnorm")
    found["sngan_cnn, other kinds"] = {kind: gan_config(setup, kind) for kind in rest}
    return found


def make_trainer(config: Config, setup: Setup) -> Trainer:
    """The trainer of a config, on the device."""
    images, process = load_images(config.data, "train"), Process(setup.device)
    if isinstance(config, GanConfig):
        return GanTrainer(config, images, process)
    return ClassifierTrainer(config, training_data(config, images), process)


def trainer_of(config: Config) -> type[Trainer]:
    """The class that trains such a config."""
    return GanTrainer if isinstance(config, GanConfig) else ClassifierTrainer


def train(config: Config, run_dir: Path, setup: Setup, checkpoint_every: int) -> dict[str, Any]:
    """Train, or resume, a run and return its summary."""
    function = train_gan if isinstance(config, GanConfig) else train_classifier
    options = RunOptions(str(run_dir), setup.device.type, checkpoint_every)
    return function(config, options, Process(setup.device))
