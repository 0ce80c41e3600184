"""Every option of a run has an effect."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import (
    SCORED,
    SELECTED,
    classifier_run,
    differing,
    log_of,
    run,
    state_of,
    tiny,
    tiny_classifier,
)

import classification.networks
import gan.networks
from convnorm.experiment.errors import InputError


def dotted(config: object, prefix: str = "") -> list[str]:
    names = []
    for name, value in vars(config).items():
        names += dotted(value, f"{prefix}{name}.") if is_dataclass(value) else [prefix + name]
    return names


def expanded(names: list[str], architectures: dict[str, Any]) -> list[str]:
    """The same with the options of every architecture in the place of `model.options`."""
    options = {field.name for arch in architectures.values() for field in fields(arch.options)}
    assert "model.options" in names
    others = [name for name in names if name != "model.options"]
    return sorted([*others, *(f"model.options.{name}" for name in options)])


# key -> (what makes it count, its other value); LEFT and RIGHT are folders of images.
GAN = {
    "data.name": ({"data.root": "LEFT"}, "folder"),
    "data.root": ({"data.name": "folder", "data.root": "LEFT"}, "RIGHT"),
    "data.image_size": ({}, 32),
    "data.stream": ({"data.name": "folder", "data.root": "LEFT"}, "disk"),
    "model.arch": ({}, "sngan_cnn"),
    "model.z_dim": ({}, 9),
    "model.gradient_normalization": ({}, True),
    "model.conditional": ({"model.arch": "sngan_cnn"}, "projection"),
    "model.options.generator_width": ({}, 5),
    "model.options.discriminator_width": ({}, 5),
    "model.options.attention": ({"model.arch": "sngan_resnet"}, 8),
    "normalizer.kind": ({}, "none"),
    "normalizer.multiplier": ({"normalizer.kind": "layer"}, True),
    "normalizer.grid": ({}, "native"),
    "normalizer.affine": ({}, True),
    "normalizer.affine_init": ({"normalizer.affine": True}, "default"),
    "normalizer.affine_mode": (
        {"normalizer.affine": True, "normalizer.affine_init": "default"},
        "circular",
    ),
    "normalizer.batch_norm": ({}, True),
    "normalizer.generator": ({}, "spectral"),
    "normalizer.gradient_through_gain": ({}, True),
    "normalizer.fused_filter": ({}, True),
    "normalizer.eps": ({}, 0.1),
    "normalizer.iterations": ({"normalizer.kind": "oni"}, 2),
    "normalizer.groups": ({"normalizer.kind": "oni"}, 2),
    "normalizer.scale": ({"normalizer.kind": "spectral"}, 2.0),
    "normalizer.penalty_weight": ({"normalizer.kind": "ocnn"}, 0.1),
    "normalizer.as_published": (
        {"normalizer.kind": "ocnn", "normalizer.penalty_weight": 1.0},
        True,
    ),
    "loss.name": ({}, "wasserstein"),
    "loss.gradient_penalty": ({}, 1.0),
    "loss.r1": ({}, 1.0),
    "loss.r2": ({}, 1.0),
    "loss.weight_clip": ({"normalizer.kind": "none"}, 0.01),
    "loss.final_penalty_factor": ({"loss.r1": 100.0}, 0.1),
    "loss.lecam": ({"loss.lecam_start": 0}, 10.0),
    "loss.lecam_start": ({"loss.lecam": 10.0, "loss.lecam_start": 0}, 1),
    "optim.lr": ({}, 1e-3),
    "optim.lr_d": ({}, 1e-3),
    "optim.beta1": ({}, 0.5),
    "optim.beta2": ({}, 0.99),
    "optim.decay": ({}, "none"),
    "optim.decay_steps": ({}, 5),
    "optim.final_lr_factor": ({}, 0.5),
    "optim.final_beta2": ({}, 0.5),
    "optim.fused": ({}, True),
    "train.batch_size": ({}, 9),
    "train.generator_batch_size": ({}, 9),
    "train.n_dis": ({}, 1),
    "train.dequantize": ({}, False),
    "train.flip": ({}, True),
    "train.fraction": ({}, 0.5),
    "train.diffaugment": ({}, "color"),
    "train.ema_decay": ({}, 0.9),
    "train.precision": ({}, "bfloat16"),
    "train.channels_last": ({}, True),
    "train.one_pass": ({"normalizer.kind": "spectral"}, True),
    "train.accumulate": ({}, 2),
    "train.sync_batch_norm": ({}, True),
    "train.capture": ({}, "graph"),
    "log.every": ({}, 1),
    "log.samples_every": ({}, 1),
    "log.norms_every": ({}, 1),
    "log.gain_every": ({}, 1),
    "score.protocol": ({}, "digits"),
    "score.every": (SCORED, 1),
    "score.select": (SCORED, "digits_test"),
    "score.num_real": (SCORED, 100),
    "score.num_fake": (SCORED, 100),
    "score.select_num_real": (SELECTED, 100),
    "score.select_num_fake": (SELECTED, 100),
    "score.weights": (SCORED, "weights.pt"),
    "score.allow_unverified_weights": (SCORED, True),
    "checkpoints.every": ({}, 1),
    "seed": ({}, 1),
    "steps": ({}, 3),
}
CLASSIFIER = {
    "data.name": ({"data.root": "LEFT", "split.train_fraction": 1.0}, "folder"),
    "data.root": (
        {"data.name": "folder", "data.root": "LEFT", "split.train_fraction": 1.0},
        "RIGHT",
    ),
    "data.image_size": ({}, 16),
    "data.stream": (
        {"data.name": "folder", "data.root": "LEFT", "split.train_fraction": 1.0},
        "disk",
    ),
    "split.validation": ({}, 0.1),
    "split.train_fraction": ({}, 0.2),
    "split.seed": ({}, 1),
    "noise.kind": ({}, "symmetric"),
    "noise.rate": ({"noise.kind": "pair"}, 0.5),
    "noise.seed": ({"noise.kind": "pair", "noise.rate": 0.5}, 1),
    "noise.file": ({}, "CIFAR-10_human.pt"),
    "model.arch": ({}, "resnet18"),
    "model.options.width": ({}, 5),
    "model.options.stem": ({"model.arch": "resnet18", "data.image_size": 32}, "imagenet"),
    "model.options.factor": ({"model.arch": "wrn_28_10", "model.options.factor": 1}, 2),
    "model.activation": ({}, "srelu"),
    "model.norm_position": ({}, "after_activation"),
    "model.init": ({}, "default"),
    "normalizer.kind": ({}, "none"),
    "normalizer.multiplier": ({"normalizer.kind": "layer"}, False),
    "normalizer.grid": ({}, "native"),
    "normalizer.affine": ({}, False),
    "normalizer.affine_init": ({}, "dirac"),
    "normalizer.affine_mode": ({}, "circular"),
    "normalizer.batch_norm": ({}, False),
    "normalizer.gradient_through_gain": ({}, True),
    "normalizer.fused_filter": ({}, True),
    "normalizer.eps": ({}, 0.1),
    "normalizer.iterations": ({"normalizer.kind": "oni"}, 2),
    "normalizer.groups": ({"normalizer.kind": "own"}, 2),
    "normalizer.scale": ({"normalizer.batch_norm": False}, 2.0),
    "normalizer.penalty_weight": ({"normalizer.kind": "ocnn"}, 0.1),
    "normalizer.as_published": (
        {"normalizer.kind": "ocnn", "normalizer.penalty_weight": 1.0},
        True,
    ),
    "adversary.kind": ({}, "pgd"),
    "adversary.as_published": ({"adversary.kind": "fast"}, False),
    "adversary.eps": ({"adversary.kind": "pgd"}, 64.0),
    "adversary.step_size": ({"adversary.kind": "pgd"}, 3.0),
    "adversary.steps": ({"adversary.kind": "pgd"}, 2),
    "adversary.repeats": ({"adversary.kind": "free"}, 2),
    "adversary.reset_perturbation": ({"adversary.kind": "free"}, True),
    "adversary.beta": ({"adversary.kind": "trades", "adversary.steps": 2}, 1.0),
    "adversary.awp": ({"adversary.kind": "pgd", "adversary.steps": 1}, 0.1),
    "adversary.awp_warmup": (
        {
            "adversary.kind": "pgd",
            "adversary.steps": 1,
            "adversary.awp": 0.1,
            "train.epochs": 2,
        },
        1,
    ),
    "optim.name": ({}, "adamw"),
    "optim.lr": ({}, 0.01),
    "optim.momentum": ({}, 0.5),
    "optim.nesterov": ({}, True),
    "optim.betas": ({"optim.name": "adamw"}, (0.5, 0.9)),
    "optim.weight_decay": ({}, 1e-2),
    "optim.schedule": ({}, "onecycle"),
    "optim.milestones": (
        {"optim.schedule": "multistep", "optim.milestones": (), "train.epochs": 2},
        (1,),
    ),
    "optim.gamma": (
        {"optim.schedule": "multistep", "optim.milestones": (1,), "train.epochs": 2},
        0.5,
    ),
    "optim.warmup": ({"optim.schedule": "onecycle"}, 0.7),
    "train.epochs": ({}, 2),
    "train.batch_size": ({}, 39),
    "train.flip": ({}, False),
    "train.crop": ({}, 0),
    "train.label_smoothing": ({}, 0.1),
    "train.ema_decay": ({}, 0.9),
    "train.ema_statistics": ({"train.ema_decay": 0.9}, "own"),
    "train.precision": ({}, "bfloat16"),
    "select.metric": ({}, "pgd10"),
    "select.every": ({"train.epochs": 2}, 2),
    "log.every": ({}, 1),
    "log.norms_every": ({}, 1),
    "seed": ({}, 1),
}
ARCHITECTURES = {
    "gan": gan.networks.ARCHITECTURES,
    "classifier": classification.networks.ARCHITECTURES,
}
PIPELINES = {
    "gan": (run, tiny, GAN, {"steps": 2}),
    "classifier": (classifier_run, tiny_classifier, CLASSIFIER, {"train.epochs": 1}),
}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """What a run leaves, its config left out; equal runs are done once."""
    known = {}
    folder = tmp_path_factory.mktemp("options")
    random = np.random.default_rng(0)
    for name in ("LEFT", "RIGHT"):
        for index in range(120):
            path = folder / name / f"class{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16), np.uint8)).save(path)

    def trace(pipeline, changes):
        key = (pipeline, tuple(sorted(changes.items())))
        if key not in known:
            places = {name: str(folder / name) for name in ("LEFT", "RIGHT")}
            run_dir = folder / str(len(known))
            PIPELINES[pipeline][0](run_dir, {k: places.get(v, v) for k, v in changes.items()})
            known[key] = left_in(run_dir)
        return known[key]

    return trace


def left_in(run_dir):
    state = state_of(run_dir)
    del state["config"]
    metrics = run_dir / "metrics.jsonl"
    return {
        "state": state,
        "log": log_of(run_dir),
        "scores": log_of(run_dir, metrics.name) if metrics.exists() else [],
        "samples": {p.name: p.read_bytes() for p in (run_dir / "samples").glob("step*.png")},
        "kept": sorted(p.name for p in run_dir.glob("checkpoints/*")),
    }


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_no_option_is_forgotten(pipeline):
    _, config, effects, _ = PIPELINES[pipeline]
    assert sorted(effects) == expanded(dotted(config()), ARCHITECTURES[pipeline])


@pytest.mark.parametrize(
    ("pipeline", "key"), [(name, key) for name, p in PIPELINES.items() for key in p[2]]
)
def test_every_option_has_an_effect(pipeline, key, traces):
    """An option that is parsed, stored and never read would pass everything else."""
    _, _, effects, short = PIPELINES[pipeline]
    base, value = effects[key]
    base = {**short, **base}
    before = traces(pipeline, base)
    # The extractor of the digits has its own weights, and says so; a CPU has no graphs.
    if key in ("score.weights", "score.allow_unverified_weights", "train.capture"):
        with pytest.raises(InputError, match=str(value)):
            traces(pipeline, {**base, key: value})
        return
    changed = {**base, key: value}
    if key == "noise.kind":  # without a rate, no kind does anything
        changed["noise.rate"] = 0.5
    if key == "noise.file":  # people labelled CIFAR, and no digits
        with pytest.raises(InputError, match="not CIFAR-10"):
            traces(pipeline, {**changed, "noise.kind": "human_worst"})
        return
    if key == "score.protocol":  # without one, no number of images is allowed
        changed |= SCORED
    difference = differing(before, traces(pipeline, changed))
    # The one acts in several processes, see test_distributed; the other on where images are.
    if key in ("train.sync_batch_norm", "data.stream"):
        assert difference == []
        return
    assert difference != []


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_equal_options_have_equal_effects(pipeline, traces, tmp_path):
    """Without this, a run that is never the same twice would pass the test above."""
    run_it, _, _, short = PIPELINES[pipeline]
    run_it(tmp_path, short)
    assert differing(left_in(tmp_path), traces(pipeline, short)) == []
