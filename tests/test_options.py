"""Every option of a GAN run has an effect."""

from dataclasses import is_dataclass

import pytest
from PIL import Image
from runs import differing, log_of, run, state_of, tiny

from convnorm.experiment.errors import InputError


def dotted(config: object, prefix: str = "") -> list[str]:
    names = []
    for name, value in vars(config).items():
        names += dotted(value, f"{prefix}{name}.") if is_dataclass(value) else [prefix + name]
    return names


# key -> (what makes it count, its other value); LEFT and RIGHT are folders of images.
EFFECTS = {
    "data.name": ({"data.root": "LEFT"}, "folder"),
    "data.root": ({"data.name": "folder", "data.root": "LEFT"}, "RIGHT"),
    "data.image_size": ({}, 32),
    "model.arch": ({}, "sngan_cnn"),
    "model.z_dim": ({}, 9),
    "model.generator_width": ({}, 5),
    "model.discriminator_width": ({}, 5),
    "normalizer.kind": ({}, "none"),
    "normalizer.multiplier": ({"normalizer.kind": "layer"}, True),
    "normalizer.grid": ({}, "native"),
    "normalizer.affine": ({}, True),
    "normalizer.affine_init": ({"normalizer.affine": True}, "default"),
    "normalizer.batch_norm": ({}, True),
    "normalizer.gradient_through_gain": ({}, True),
    "normalizer.eps": ({}, 0.1),
    "loss.name": ({}, "wasserstein"),
    "loss.gradient_penalty": ({}, 1.0),
    "loss.r1": ({}, 1.0),
    "loss.weight_clip": ({"normalizer.kind": "none"}, 0.01),
    "optim.lr": ({}, 1e-3),
    "optim.beta1": ({}, 0.5),
    "optim.beta2": ({}, 0.99),
    "optim.decay": ({}, "none"),
    "train.batch_size": ({}, 9),
    "train.generator_batch_size": ({}, 9),
    "train.n_dis": ({}, 1),
    "train.dequantize": ({}, False),
    "train.flip": ({}, True),
    "train.ema_decay": ({}, 0.9),
    "train.precision": ({}, "bfloat16"),
    "log.every": ({}, 1),
    "log.samples_every": ({}, 1),
    "log.norms_every": ({}, 1),
    "score.protocol": ({}, "digits"),
    "score.every": ({"score.protocol": "digits"}, 1),
    "score.weights": ({"score.protocol": "digits"}, "weights.pt"),
    "seed": ({}, 1),
    "steps": ({}, 3),
}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """What a run leaves, its config left out; equal runs are done once."""
    known = {}
    folder = tmp_path_factory.mktemp("options")
    for name, level in (("LEFT", 50), ("RIGHT", 200)):
        (folder / name).mkdir()
        for index in range(9):
            Image.new("L", (16, 16), level + index).save(folder / name / f"{index}.png")

    def trace(changes):
        key = tuple(sorted(changes.items()))
        if key not in known:
            places = {name: str(folder / name) for name in ("LEFT", "RIGHT")}
            run_dir = folder / str(len(known))
            run(run_dir, {k: places.get(v, v) for k, v in changes.items()})
            state = state_of(run_dir)
            del state["config"]
            metrics = run_dir / "metrics.jsonl"
            known[key] = {
                "state": state,
                "log": log_of(run_dir),
                "scores": log_of(run_dir, metrics.name) if metrics.exists() else [],
                "samples": {p.name: p.read_bytes() for p in (run_dir / "samples").iterdir()},
            }
        return known[key]

    return trace


def test_no_option_is_forgotten():
    assert sorted(EFFECTS) == sorted(dotted(tiny()))


@pytest.mark.parametrize("key", EFFECTS)
def test_every_option_has_an_effect(key, traces):
    """An option that is parsed, stored and never read would pass everything else."""
    base, value = EFFECTS[key]
    base = {"steps": 2, **base}
    before = traces(base)
    if key == "score.weights":  # the extractor of the digits has its own, and says so
        with pytest.raises(InputError, match=value):
            traces({**base, key: value})
    else:
        assert differing(before, traces({**base, key: value})) != []


def test_equal_options_have_equal_effects(traces, tmp_path):
    """Without this, a run that is never the same twice would pass the test above."""
    run(tmp_path, {"steps": 2})
    state = state_of(tmp_path)
    del state["config"]
    assert differing(state, traces({"steps": 2})["state"]) == []
