"""The training of classifiers: fair comparisons, what is selected, and runs that end early."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import (
    ALONE,
    Crash,
    classifier_run,
    crash_before,
    differing,
    log_of,
    state_of,
    tiny_classifier,
)

from classification import trainer as trainer_module
from classification.label_noise import CIFAR10
from classification.models import FORMAT, load_classifier
from classification.trainer import Trainer
from classification.training_data import noise_report, training_data, without_test_images
from convnorm.experiment.data import DataConfig, Images, load_images
from convnorm.experiment.errors import InputError, Stopped
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.loop import take_step
from convnorm.spectrum import matrix_norm, normalized_convolutions, operator_norm


def data_of(changes: dict | None = None):
    config = tiny_classifier(changes)
    return config, training_data(config, load_images(config.data))


def make_trainer(changes: dict | None = None) -> Trainer:
    return Trainer(*data_of(changes), ALONE)


# What is trained on


def test_mean_and_deviation_are_those_of_all_pixels():
    config, data = data_of()
    pixels = load_images(config.data).images.double() / 255
    assert data.mean == pytest.approx((pixels.mean().item(),))
    assert data.std == pytest.approx((pixels.std(correction=0).item(),))


def test_color_channels_have_moments_of_their_own():
    images = torch.zeros(40, 3, 2, 2, dtype=torch.uint8)
    images[::2, 1], images[:, 2] = 255, 51
    images[0, :, 0, 0] = 102
    labels = torch.arange(40) % 2
    data = training_data(tiny_classifier({"split.validation": 0.1}), Images(images, labels, "ab"))
    pixels = images.double() / 255
    assert data.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())


def test_what_lacks_a_test_split_is_said_and_what_lacks_classes_refused(tmp_path):
    """Found out after days of training, it would be too late to hold images out."""
    (tmp_path / "a").mkdir()
    data = DataConfig("folder", str(tmp_path))
    assert "has no test images; evaluate_cls.py will need --split val" in without_test_images(data)
    (tmp_path / "a").rename(tmp_path / "test")
    assert without_test_images(data) is None
    assert without_test_images(DataConfig("digits")) is None
    one = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), ("a",), "2 x")
    with pytest.raises(InputError, match="data: 2 x; expected 2 classes or more"):
        training_data(tiny_classifier(), one)


def test_noise_changes_labels_and_nothing_else():
    _, clean = data_of()
    config, noisy = data_of({"noise.kind": "pair", "noise.rate": 0.5})
    assert torch.equal(clean.train.images, noisy.train.images)
    assert torch.equal(clean.validation.images, noisy.validation.images)
    assert torch.equal(clean.train.labels, noisy.clean[noisy.train_positions])
    changed = clean.train.labels != noisy.train.labels
    assert 0.3 < changed.float().mean() < 0.7
    assert clean.sha256 == noisy.sha256  # the noise follows from the config
    report = noise_report(noisy, config)
    assert report["train"]["actual_rate"] == changed.double().mean().item()
    wrong, right = noisy.mislabelled(10_000)
    assert torch.equal(wrong.images, noisy.train.images[changed])
    assert torch.equal((right + 1) % 10, wrong.labels)
    assert len(noisy.mislabelled(5)[1]) == 5


def test_wrong_labels_are_scored_of_every_class_where_images_are_sorted_by_class():
    """The first of the file would be those of its first classes alone."""
    labels = torch.arange(10).repeat_interleave(100)
    images = Images(torch.zeros(1000, 1, 8, 8, dtype=torch.uint8), labels, tuple("0123456789"))
    config = tiny_classifier({"noise.kind": "symmetric", "noise.rate": 0.5})
    config = replace(config, split=replace(config.split, train_fraction=1.0))
    scored = training_data(config, images).mislabelled(100)[1].bincount(minlength=10)
    assert scored.min() > 5
    assert scored.max() < 15


def test_a_run_keeps_its_noisy_labels_and_reports_both_rates(tmp_path, capsys):
    changes = {"noise.kind": "symmetric", "noise.rate": 0.4}
    summary = classifier_run(tmp_path, changes)
    _, data = data_of(changes)
    with np.load(tmp_path / "noisy_labels.npz") as saved:
        assert (saved["noisy"] == data.noisy.numpy()).all()
        assert (saved["split"] == "train").sum() == len(data.train.labels)
    assert summary["noise"]["train"]["requested_rate"] == 0.4
    assert 0.25 < summary["noise"]["train"]["actual_rate"] < 0.45  # 0.36 expected of 144
    assert "rate 0.4 requested" in capsys.readouterr().err
    assert {"memorized", "recovered"} <= summary["metrics"]["scores"].keys()


def test_labels_of_people_may_move_but_not_change(tmp_path, monkeypatch):
    """Where the file lies is no part of a run. A run that goes on with other labels is none."""
    labels, data = np.arange(200) % 10, tmp_path / "train.npz"
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    np.savez(data, images=images, labels=labels, classes=list(CIFAR10))
    there, moved, other = (tmp_path / f"{name}.pt" for name in ("there", "moved", "other"))
    for file, shift in ((there, 1), (other, 2)):
        torch.save({"clean_label": labels, "worse_label": (labels + shift) % 10}, file)

    def train(file):
        from_people = {"noise.kind": "human_worst", "noise.file": str(file)}
        of_files = {"data.name": "npz", "data.root": str(data)}
        of_files |= {"split.validation": 0.0, "split.train_fraction": 1.0}
        return classifier_run(tmp_path / "run", of_files | from_people, checkpoint_every=2)

    crash_before(3, Trainer, monkeypatch)
    with pytest.raises(Crash):
        train(there)
    monkeypatch.undo()
    there.rename(moved)
    with pytest.raises(InputError, match=r"noisy_labels.npz: not the labels .* in noise\.file$"):
        train(other)
    assert train(moved)["noise"]["train"]["actual_rate"] == 1


# Steps and selection


def test_a_nan_stops_the_run_with_its_step_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    original, calls = trainer_module.F.cross_entropy, []

    def cross_entropy(*args, **options):
        calls.append(None)
        return original(*args, **options) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(trainer_module.F, "cross_entropy", cross_entropy)
    with pytest.raises(Stopped, match=r"step 5: the loss is NaN .* keeps the last good"):
        classifier_run(tmp_path, {"select.every": 2}, checkpoint_every=2)
    assert state_of(tmp_path)["step"] == 4


def test_the_best_epoch_is_kept_by_the_validation_split(tmp_path, monkeypatch):
    """best.pt must hold the weights that got the best score, not the last ones."""
    scores = iter([0.5, 0.75, 0.75, 0.25])
    monkeypatch.setattr("classification.train._fraction", lambda flags: next(scores))
    summary = classifier_run(tmp_path, {"train.epochs": 4})
    assert summary["best"] == {"epoch": 2, "step": 6, "scores": {"accuracy": 0.75}}
    best = state_of(tmp_path, "best.pt")
    assert (best["epoch"], best["step"]) == (2, 6)
    assert differing(best["network"], state_of(tmp_path)["network"]) != []
    monkeypatch.undo()
    classifier_run(tmp_path.parent / "short", {"train.epochs": 4, "select.every": 2})
    classifier = load_classifier(tmp_path / "best.pt")
    assert (classifier.epoch, classifier.config) == (2, tiny_classifier({"train.epochs": 4}))


def test_the_validation_accuracy_is_that_of_the_network_and_pgd_is_below_it(tmp_path):
    changes = {
        "split.validation": 0.2,
        "split.train_fraction": 1.0,
        "normalizer.kind": "batch",
        "select.metric": "pgd10",
        "select.every": 2,
    }
    summary = classifier_run(tmp_path, changes)
    _, data = data_of(changes)
    classifier = load_classifier(tmp_path / "last.pt")
    with torch.no_grad():
        right = classifier.network(data.validation.images / 255).argmax(1) == data.validation.labels
    scores = summary["metrics"]["scores"]
    assert scores["accuracy"] == pytest.approx(right.double().mean().item())
    assert 0.1 < scores["pgd10"] < scores["accuracy"] - 0.05


def test_the_average_is_what_is_selected_saved_and_loaded(tmp_path):
    changes = {"train.ema_decay": 0.9, "split.validation": 0.2, "train.epochs": 3}
    changes |= {"split.train_fraction": 1.0, "normalizer.kind": "batch"}
    summary = classifier_run(tmp_path, changes)
    _, data = data_of(changes)
    classifier, live = load_classifier(tmp_path / "last.pt"), make_trainer(changes).state.network
    live.load_state_dict(state_of(tmp_path)["network"])
    x, y = data.validation.images / 255, data.validation.labels
    with torch.no_grad():
        average, last = (
            (network.eval()(x).argmax(1) == y).double().mean().item()
            for network in (classifier.network, live)
        )
    assert summary["metrics"]["scores"]["accuracy"] == pytest.approx(average)
    assert average != last


@pytest.mark.parametrize("kind", ["spectral", "spectral_convnorm"])
def test_an_averaged_network_is_still_normalized(kind):
    """Averaged like weights, the vectors of power iterations lose their length."""
    changes = {"normalizer.kind": kind, "normalizer.batch_norm": False, "train.ema_decay": 0.9}
    changes |= {"train.epochs": 20, "optim.lr": 0.3}  # so that the weights go far
    trainer = make_trainer(changes)
    for _ in range(50):
        take_step(trainer)
    trainer.state.ema.eval()
    layers = normalized_convolutions(trainer.state.ema)
    assert len(layers) == 4
    for layer in layers.values():
        if kind == "spectral":
            assert matrix_norm(layer.weight) == pytest.approx(1, abs=0.01)
        else:
            assert operator_norm(layer, layer.u.shape) == pytest.approx(1, abs=0.01)


def test_without_validation_images_nothing_is_selected(tmp_path):
    summary = classifier_run(tmp_path, {"split.validation": 0.0})
    assert summary["best"] is None
    assert not (tmp_path / "best.pt").exists()


def test_the_test_images_are_never_read(tmp_path, monkeypatch):
    """Selection on test images is the commonest fault of robustness tables."""
    asked = []

    def load(config: DataConfig, split: str, *device: torch.device) -> Images:
        asked.append(split)
        return load_images(config, split, *device)

    monkeypatch.setattr("classification.train.load_images", load)
    classifier_run(tmp_path, {"select.metric": "pgd10"})
    assert asked == ["train"]


# Runs that end early


@pytest.mark.parametrize(
    ("kind", "adversary"),
    [("convnorm", "free"), ("batch", "standard"), ("spectral", "pgd"), ("ocnn", "trades")],
)
def test_a_resumed_run_is_bit_identical(kind, adversary, tmp_path, monkeypatch):
    """Anything that the next step depends on and that last.pt lacks shows here."""
    changes = {
        "normalizer.kind": kind,
        "adversary.kind": adversary,
        "adversary.steps": 2,
        "adversary.awp": 0.01,
        "train.ema_decay": 0.9,
        "train.epochs": 3,
        "log.every": 4,
    }
    classifier_run(tmp_path / "whole", changes)
    torch.manual_seed(98)  # what was drawn before a run is no part of it
    with monkeypatch.context() as patch:
        crash_before(8, Trainer, patch)
        with pytest.raises(Crash):
            classifier_run(tmp_path / "cut", changes, checkpoint_every=5)
    assert state_of(tmp_path / "cut")["step"] == 5
    torch.manual_seed(99)
    classifier_run(tmp_path / "cut", changes, checkpoint_every=2)
    for name in ("last.pt", "best.pt"):
        states = [state_of(tmp_path / run, name) for run in ("cut", "whole")]
        assert differing(*states) == []
    for name in ("log.jsonl", "metrics.jsonl"):
        assert log_of(tmp_path / "cut", name) == log_of(tmp_path / "whole", name)


def test_a_resumed_run_does_not_replace_a_better_epoch(tmp_path, monkeypatch):
    """A checkpoint that forgets what was selected lets the next epoch be the best, however bad."""
    scores = iter([0.75, 0.5])
    monkeypatch.setattr("classification.train._fraction", lambda flags: next(scores))
    with monkeypatch.context() as patch:
        crash_before(4, Trainer, patch)  # an epoch has 3 steps
        with pytest.raises(Crash):
            classifier_run(tmp_path, checkpoint_every=1)
    summary = classifier_run(tmp_path)
    assert next(scores, None) is None  # both epochs were scored
    assert summary["best"] == {"epoch": 1, "step": 3, "scores": {"accuracy": 0.75}}
    assert state_of(tmp_path, "best.pt")["epoch"] == 1


def test_a_signal_saves_and_says_how_to_resume(tmp_path, monkeypatch):
    classifier_run(tmp_path / "whole")
    original = Trainer.update

    def update(self, draws):
        original(self, draws)
        if self.state.step == 1:  # the loop counts the second step after this
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        with pytest.raises(Stopped, match=r"step 2 of 6 .* the same command"):
            classifier_run(tmp_path / "cut")
    classifier_run(tmp_path / "cut")
    assert differing(state_of(tmp_path / "cut"), state_of(tmp_path / "whole")) == []


def test_other_data_behind_the_same_name_are_noticed_on_resume(tmp_path, monkeypatch):
    """The steps after a resume would silently be of another experiment."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "d.npz", images=pixels, labels=labels)
    changes = {
        "data.name": "npz",
        "data.root": str(tmp_path / "d.npz"),
        "split.train_fraction": 1.0,
        "split.validation": 0.1,
    }
    with monkeypatch.context() as patch:
        crash_before(1, Trainer, patch)
        with pytest.raises(Crash):
            classifier_run(tmp_path / "run", changes, checkpoint_every=1)
    np.savez(tmp_path / "d.npz", images=pixels, labels=labels[::-1])
    with pytest.raises(InputError, match=r"last.pt: the run began with other training data"):
        classifier_run(tmp_path / "run", changes)


@pytest.mark.parametrize("damage", [lambda s: s.pop("optimizer"), lambda s: s["network"].popitem()])
def test_an_incomplete_checkpoint_is_refused_and_kept(damage, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        crash_before(3, Trainer, patch)
        with pytest.raises(Crash):
            classifier_run(tmp_path, checkpoint_every=2)
    state = checkpoint.load(tmp_path / "last.pt", FORMAT)
    damage(state)
    checkpoint.save(tmp_path / "last.pt", state)
    content = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError, match=r"last.pt: not a complete checkpoint"):
        classifier_run(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == content


def test_a_checkpoint_of_another_format_is_refused_in_one_line(tmp_path):
    classifier_run(tmp_path)
    state = state_of(tmp_path)
    checkpoint.save(tmp_path / "last.pt", {**state, "format": "convnorm-suite/classifier/1"})
    with pytest.raises(InputError, match=r"classifier/1'; expected .*classifier/4") as refused:
        classifier_run(tmp_path)
    assert "\n" not in str(refused.value)


def test_overwrite_deletes_what_belonged_to_the_old_weights(tmp_path):
    """A best.pt or an evaluation of deleted weights would be taken for the new ones'."""
    classifier_run(tmp_path, {"noise.kind": "pair", "noise.rate": 0.2})
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "best.json").write_text("{}")
    classifier_run(tmp_path, {"split.validation": 0.0}, overwrite=True)
    assert not any((tmp_path / n).exists() for n in ("best.pt", "evaluation", "noisy_labels.npz"))
