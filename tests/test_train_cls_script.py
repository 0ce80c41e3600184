"""scripts/train_cls.py as a user meets it: what it prints, and one line for whatever is wrong."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import yaml
from runs import (
    ALONE,
    TINY_CLASSIFIER,
    Child,
    arguments,
    changed,
    classifier_run,
    script,
    tiny_classifier,
)

from classification.attacks import logits
from classification.config import ClassifierConfig
from classification.models import load_classifier
from classification.train import train
from convnorm.experiment.config import CONFIGS, RunOptions, parse
from convnorm.experiment.data import load_images

CONFIG_NAMES = sorted(path.stem for path in (CONFIGS / "classification").glob("*.yaml"))


def refused(tmp_path, changes: dict, *argv: str) -> str:
    """The line that a run with these changes ends with."""
    options = arguments(tmp_path / "run", changes, TINY_CLASSIFIER)
    code, output = Child(tmp_path / "output.txt", script, "train_cls.py", *options, *argv).end()
    assert code == 2, output
    assert "Traceback" not in output
    return output.strip().splitlines()[-1]


def test_a_run_ends_with_where_it_is_and_what_was_selected(tmp_path):
    options = arguments(tmp_path / "run", {}, TINY_CLASSIFIER)
    code, output = Child(tmp_path / "output.txt", script, "train_cls.py", *options).end()
    assert code == 0, output
    lines = output.strip().splitlines()
    assert lines[-2] == f"trained 2 epochs; the run is in {tmp_path / 'run'}"
    assert lines[-1].startswith("selected epoch ")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "last.pt", "best.pt", "log.jsonl", "metrics.jsonl"} <= names
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["epochs"], summary["train_images"]) == (2, 140)


def test_the_default_run_learns_the_digits(tmp_path):
    """The main job: 98 % and more of the 360 test images, which nothing was selected on.

    Half of its epochs are enough for it.
    """
    config, _ = parse(ClassifierConfig, "classification", "digits_convnorm", [])
    config = changed(config, {"train.epochs": config.train.epochs // 2})
    train(config, RunOptions(run_dir=str(tmp_path), device="cpu"), ALONE)
    network = load_classifier(tmp_path / "last.pt").network
    test = load_images(config.data, "test")
    right = logits(network, test.images / 255, 360).argmax(1) == test.labels
    assert right.double().mean() > 0.98


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_every_shipped_config_loads_and_says_what_it_shows(name):
    config, options = parse(ClassifierConfig, "classification", "digits_convnorm", ["--cfg", name])
    assert isinstance(config, ClassifierConfig)
    assert options.run_dir == f"runs/classification/{name}/seed0"
    first = (CONFIGS / "classification" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_configs_hold_differences_from_the_defaults_only(name):
    """A default written out stays behind when the default moves."""
    content = yaml.safe_load((CONFIGS / "classification" / f"{name}.yaml").read_text())
    defaults = asdict(ClassifierConfig())
    for group, values in content.items():
        for key, value in values.items():
            if (group, key) != ("normalizer", "kind"):  # says what the file is about
                default = defaults[group][key]
                assert value != (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"adversary.kind": "evil"}, "adversary.kind: evil is not allowed; expected one of"),
        ({"adversary.eps": 0}, "adversary.eps: 0.0 is not allowed; expected grey levels"),
        ({"adversary.step_size": -1}, "adversary.step_size: -1.0 is not allowed"),
        ({"adversary.step_size": float("inf")}, "adversary.step_size: inf is not allowed"),
        ({"train.crop": 8}, "train.crop: 8 is not allowed; expected less than data.image_size"),
        (
            {"select.metric": "pgd10", "split.validation": 0},
            "select.metric: 'pgd10' is not allowed; expected images to attack",
        ),
        ({"adversary.steps": 0}, "adversary.steps: 0 is not allowed; expected 1 to 1000"),
        ({"model.arch": "resnet19"}, "model.arch: resnet19 is not allowed; expected one of"),
        (
            {"model.options.stem": "imagenet"},
            "model.options.stem: no such key; expected model.options.width",
        ),
        ({"model.options.width": 0}, "model.options.width: 0 is not allowed; expected 1 to 8192"),
        ({"noise.rate": 0.4}, "noise.rate: 0.4 is not allowed; expected 0 where noise.kind is"),
        ({"noise.kind": "pair", "noise.rate": 1.5}, "noise.rate: 1.5 is not allowed"),
        (
            {"noise.kind": "asymmetric", "noise.rate": 0.2},
            "noise.kind: 'asymmetric' is defined for cifar10 and cifar100",
        ),
        ({"split.validation": 1.0}, "split.validation: 1.0 is not allowed"),
        ({"split.train_fraction": 0.001}, "split.train_fraction: 0.001 of the"),
        ({"optim.milestones": [80, 40]}, "optim.milestones: (80, 40) is not allowed"),
        (
            {"optim.schedule": "multistep", "optim.milestones": [1, 2]},
            "optim.milestones: [1, 2] is not allowed; expected epochs before the last of 2",
        ),
        ({"optim.momentum": 0, "optim.nesterov": True}, "optim.nesterov: True is not allowed"),
        ({"optim.betas": [0.9, 1.0]}, "optim.betas: [0.9, 1.0] is not allowed"),
        ({"train.batch_size": 500}, "train.batch_size: got 500, expected 1 to 140"),
        ({"train.epochs": 0}, "train.epochs: 0 is not allowed; expected 1 to 1000000"),
        ({"select.metric": "test"}, "select.metric: test is not allowed; expected one of"),
        ({"data.image_size": 2}, "data.image_size: 2, simple_cnn with width 4 expects 4"),
        ({"normalizer.kind": "magic"}, "normalizer.kind: 'magic' is not allowed; expected one of"),
        ({"learning_rate": 1}, "learning_rate: no such key"),
    ],
)
def test_bad_values_are_named_in_one_line(changes, line, tmp_path):
    assert refused(tmp_path, changes).startswith(f"error: {line}")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_images_without_classes_are_refused(tmp_path):
    changes = {"data.name": "npz", "data.root": tmp_path / "d.npz", "split.train_fraction": 1.0}
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", images=images)
    line = refused(tmp_path, changes)
    assert line.startswith(f"error: data: 80 images in 1 class from {tmp_path / 'd.npz'}, 8x8")
    assert line.endswith("; expected 2 classes or more")


def test_another_config_in_the_folder_is_refused(tmp_path):
    classifier_run(tmp_path / "run")
    line = refused(tmp_path, {"adversary.kind": "free"})
    assert "adversary.kind: 'standard' there, 'free' here" in line


def test_a_gan_in_the_folder_is_no_classifier(tmp_path):
    classifier_run(tmp_path / "run")
    code, output = Child(
        tmp_path / "output.txt", script, "fid.py", str(tmp_path / "run"), "digits"
    ).end()
    assert code == 2
    assert "holds 'convnorm-suite/classifier/4'; expected a checkpoint of format" in output


def test_the_tiny_config_is_what_the_command_line_gives():
    argv = arguments("x", {}, TINY_CLASSIFIER)
    config, _ = parse(ClassifierConfig, "classification", "digits_convnorm", argv)
    assert config == tiny_classifier()
