"""What holds for the training of both pipelines: fair comparisons, and updates that are pure."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    ALONE,
    CLASSIFIER_KINDS,
    Crash,
    classifier_run,
    crash_before,
    differing,
    run,
    state_of,
    tiny,
    tiny_classifier,
    values_read,
)
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.utils import parametrize

from classification.trainer import Trainer as ClassifierTrainer
from classification.training_data import training_data
from convnorm.experiment.data import load_images
from convnorm.experiment.run.loop import take_step
from convnorm.normalizers import CATALOGUE, Kind
from gan.trainer import Trainer as GanTrainer


def gan_trainer(changes: dict[str, Any]) -> GanTrainer:
    config = tiny(changes)
    return GanTrainer(config, load_images(config.data), ALONE)


def classifier_trainer(changes: dict[str, Any]) -> ClassifierTrainer:
    config = tiny_classifier({"adversary.steps": 2, "adversary.repeats": 2, **changes})
    return ClassifierTrainer(config, training_data(config, load_images(config.data)), ALONE)


@dataclass(frozen=True)
class Pipeline:
    """trainer: the class. make: a trainer of the tiny config with changes. run: train in a folder.

    losses: the methods of the trainer whose gradients are followed. networks: in a checkpoint.
    kinds: of normalizers that it takes.
    variants: changes under which an update does different things.
    drawn: changes that make a step draw all that it can.
    longer, fading: changes that give a run more steps than the tiny one's, where its schedule does
        not depend on their number, and changes by which it does.
    rarely, often: changes by which a run is measured in between as seldom, and as often, as it can.
    """

    trainer: type
    make: Callable[[dict[str, Any]], Any]
    run: Callable[..., dict[str, Any]]
    losses: tuple[str, ...]
    networks: tuple[str, ...]
    kinds: Iterable[str]
    variants: tuple[dict[str, Any], ...]
    drawn: dict[str, Any]
    longer: dict[str, Any]
    fading: dict[str, Any]
    rarely: dict[str, Any]
    often: dict[str, Any]


POLICY = "color,translation,cutout"
GAN = Pipeline(
    GanTrainer,
    gan_trainer,
    run,
    losses=("discriminator_loss", "generator_loss"),
    networks=("generator", "discriminator"),
    kinds=CATALOGUE,
    variants=(
        {"normalizer.kind": "none", "loss.name": "wasserstein", "loss.weight_clip": 0.1},
        {"normalizer.kind": "batch", "train.precision": "bfloat16"},
        {"normalizer.kind": "spectral", "loss.r1": 1.0, "train.flip": True},
        {"normalizer.kind": "convnorm", "loss.gradient_penalty": 10.0},
        {
            "normalizer.kind": "none",
            "loss.name": "relativistic",
            "loss.r1": 1.0,
            "loss.r2": 1.0,
            "loss.final_penalty_factor": 0.1,
            "optim.lr_d": 1e-3,
        },
        {"normalizer.kind": "none", "model.gradient_normalization": True},
        {"normalizer.kind": "ocnn", "loss.lecam": 1.0, "loss.lecam_start": 0},
        {"train.diffaugment": POLICY, "loss.r1": 1.0, "train.precision": "bfloat16"},
        {"normalizer.kind": "chain", "train.precision": "bfloat16"},
    ),
    drawn={"train.flip": True, "train.diffaugment": POLICY},
    longer={"optim.decay": "none", "steps": 7},
    fading={"optim.decay": "linear"},
    rarely={},
    often={"log.every": 1, "log.samples_every": 1, "log.norms_every": 1, "log.gain_every": 1},
)
CLASSIFICATION = Pipeline(
    ClassifierTrainer,
    classifier_trainer,
    classifier_run,
    losses=("loss",),
    networks=("network",),
    kinds=CLASSIFIER_KINDS,
    variants=(
        {"normalizer.kind": "batch", "adversary.kind": "standard"},
        {"normalizer.kind": "convnorm", "adversary.kind": "free", "train.precision": "bfloat16"},
        {"normalizer.kind": "spectral", "adversary.kind": "fast"},
        {
            "normalizer.kind": "ocnn",
            "adversary.kind": "pgd",
            "adversary.awp": 0.01,
            "train.precision": "bfloat16",
        },
        {"normalizer.kind": "convnorm", "adversary.kind": "trades"},
    ),
    drawn={"adversary.kind": "fast"},
    longer={"optim.schedule": "multistep", "optim.milestones": [1], "train.epochs": 4},
    fading={"optim.schedule": "cosine"},
    rarely={"select.every": 2},
    often={"select.every": 1, "select.metric": "pgd10", "log.norms_every": 1, "log.every": 1},
)
PIPELINES = {"gan": GAN, "classification": CLASSIFICATION}
each_pipeline = pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
each_variant = pytest.mark.parametrize(
    ("pipeline", "changes"),
    [(pipeline, changes) for pipeline in PIPELINES.values() for changes in pipeline.variants],
    ids=[
        "-".join([name, *map(str, changes.values())])
        for name, pipeline in PIPELINES.items()
        for changes in pipeline.variants
    ],
)


def networks_of(pipeline: Pipeline, trainer: Any) -> list[nn.Module]:
    return [getattr(trainer.state, name) for name in pipeline.networks]


def trained(pipeline: Pipeline, state: dict[str, Any]) -> dict[str, Any]:
    """What training has made: all of a checkpoint but what a log line takes out."""
    rest = {name for name in state if name.startswith(("optim", "rng", "perturbation"))}
    return {name: state[name] for name in (*pipeline.networks, "ema", *sorted(rest))}


# Fair comparisons


def raw_kernels(network: nn.Module) -> list[torch.Tensor]:
    """What the optimizer sees of the convolutions and linear layers, depthwise ones left out."""
    kernels = []
    for layer in network.modules():
        if (
            not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            or getattr(layer, "groups", 1) > 1
        ):
            continue
        if parametrize.is_parametrized(layer, "weight"):
            stored = layer.parametrizations.weight
            kernels.append(stored.original if hasattr(stored, "original") else stored.original1)
        else:
            kernels.append(layer.weight)
    return kernels


@cache
def plain_kernels(name: str, arch: str) -> list[list[torch.Tensor]]:
    """Those of the networks of a pipeline without a normalizer."""
    pipeline = PIPELINES[name]
    trainer = pipeline.make({"model.arch": arch, "normalizer.kind": "none"})
    return [raw_kernels(network) for network in networks_of(pipeline, trainer)]


@pytest.mark.parametrize(
    ("name", "arch", "kind"),
    [
        *(("gan", arch, kind) for arch in ("dcgan", "sngan_resnet") for kind in CATALOGUE),
        *(("classification", "simple_cnn", kind) for kind in CLASSIFIER_KINDS),
    ],
)
def test_kinds_start_from_the_same_weights(name, arch, kind):
    """A kind that draws from the stream of the layers after it would start them elsewhere."""
    pipeline, changes = PIPELINES[name], {"model.arch": arch, "normalizer.kind": kind}
    found = networks_of(pipeline, pipeline.make(changes))
    for network, expected in zip(found, plain_kernels(name, arch), strict=True):
        assert len(expected) >= 2
        assert differing(raw_kernels(network), expected) == []


@each_pipeline
def test_kinds_get_the_same_draws(pipeline):
    """Draws from a global stream would depend on what a normalizer drew before."""
    drawn = []
    for kind in pipeline.kinds:
        torch.manual_seed(len(drawn))  # the surroundings must not matter
        trainer = pipeline.make({**pipeline.drawn, "normalizer.kind": kind})
        take_step(trainer)
        drawn.append(trainer.draw(1))
    assert all(differing(draws, drawn[0]) == [] for draws in drawn)
    assert differing(trainer.draw(2), drawn[0]) != []


@pytest.mark.parametrize("kind", ["spectral", "spectral_convnorm", "batch"])
@each_pipeline
def test_measuring_in_between_does_not_change_the_training(pipeline, kind, tmp_path: Path):
    """A forward pass in train mode for a log or score would move u or running statistics."""
    changes = {"normalizer.kind": kind, "train.ema_decay": 0.5}
    pipeline.run(tmp_path / "rarely", {**changes, **pipeline.rarely})
    pipeline.run(tmp_path / "often", {**changes, **pipeline.often}, checkpoint_every=1)
    states = [trained(pipeline, state_of(tmp_path / name)) for name in ("rarely", "often")]
    assert differing(*states) == []
    files = [list((tmp_path / name / "samples").iterdir()) for name in ("rarely", "often")]
    assert len(files[0]) < len(files[1])


@each_pipeline
def test_a_resumed_run_goes_on_with_the_random_numbers_of_its_layers(
    pipeline, tmp_path, monkeypatch
):
    """A layer that draws for itself, as dropout does, draws from the global state."""
    dropout = Kind(output=lambda channels, options: nn.Dropout2d(0.5))
    monkeypatch.setitem(CATALOGUE, "dropout", dropout)
    changes = {"normalizer.kind": "dropout"}
    pipeline.run(tmp_path / "whole", changes)
    with monkeypatch.context() as patch:
        crash_before(3, pipeline.trainer, patch)
        with pytest.raises(Crash):
            pipeline.run(tmp_path / "cut", changes, checkpoint_every=2)
    pipeline.run(tmp_path / "cut", changes)
    states = [trained(pipeline, state_of(tmp_path / name)) for name in ("cut", "whole")]
    assert differing(*states) == []


# Updates are functions of their draws


@each_variant
def test_equal_draws_give_equal_updates(pipeline, changes):
    """A number that an update draws by itself, or a count of steps, would differ."""
    trainers = [pipeline.make({**changes, "train.ema_decay": 0.9}) for _ in range(2)]
    drawn = [trainers[0].draw(step) for step in (3, 4)]
    for seed, trainer in enumerate(trainers):
        torch.manual_seed(seed)
        trainer.draw(7 + seed)
        trainer.state.step = 100 * seed
        for draws in drawn:
            trainer.update(draws)
        assert trainer.state.step == 100 * seed  # to count is the loop's
    states = [trained(pipeline, trainer.state.state_dict()) for trainer in trainers]
    assert differing(*({k: v for k, v in state.items() if k != "rng"} for state in states)) == []


def update_without_values(trainer: Any) -> Any:
    """Update twice on tensors that have no values: whoever asks for one raises."""
    mode, drawn = FakeTensorMode(), [trainer.draw(step) for step in range(2)]
    with FakeCopyMode(mode):
        trainer, drawn = copy.deepcopy((trainer, drawn))
    with mode:
        for draws in drawn:
            trainer.update(draws)
    return trainer


@each_variant
def test_an_update_needs_no_value_of_a_tensor(pipeline, changes):
    """What asks for one waits for the device, and cannot be captured as a graph."""
    few = {"train.n_dis": 1} if pipeline is GAN else {}  # all updates of a step are alike
    made = pipeline.make({**changes, **few, "train.ema_decay": 0.9})
    trainer = update_without_values(made)
    weights = [w for network in networks_of(pipeline, trainer) for w in network.parameters()]
    assert all(isinstance(weight, FakeTensor) for weight in weights)
    with pytest.raises(DataDependentOutputException):  # the watch works
        trainer.state.means()


@each_pipeline
def test_the_loop_does_not_wait_for_the_device(pipeline, tmp_path, monkeypatch):
    """Reading a tensor's value on every step would stall a GPU; at log and save steps it is due."""
    reading = values_read(monkeypatch)
    for changes in pipeline.variants:
        trainer = pipeline.make({**changes, "train.ema_decay": 0.9})
        reading.clear()
        for _ in range(2):  # within an epoch, whose order is made once
            take_step(trainer)
        assert reading == [], changes
    trainer.state.means()
    trainer.state.check_finite(tmp_path)
    assert reading  # the watch works


# Dynamo's own way to trace an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("pipeline", "kind"),
    [(GAN, "spectral"), (GAN, "convnorm"), (CLASSIFICATION, "batch")],
    ids=["gan-spectral", "gan-convnorm", "classification-batch"],
)
def test_each_loss_compiles_as_one_graph_for_the_whole_run(pipeline, kind):
    """Forward and backward; a graph break raises, and so does a step that compiles again."""
    longer = {"train.n_dis": 1, "steps": 30} if pipeline is GAN else {"train.epochs": 7}
    changes = {"normalizer.kind": kind, **longer}
    eager, compiled = pipeline.make(changes), pipeline.make(changes)
    torch.compiler.reset()
    for name in pipeline.losses:
        loss = torch.compile(getattr(compiled, name), backend="aot_eager", fullgraph=True)
        setattr(compiled, name, loss)
    take_step(compiled)
    take_step(eager)
    states = [trained(pipeline, trainer.state.state_dict()) for trainer in (eager, compiled)]
    for name in pipeline.networks:
        torch.testing.assert_close(states[1][name], states[0][name])
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(20):
            take_step(compiled)
    torch.compiler.reset()
