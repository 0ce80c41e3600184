"""normalizer.generator: which kinds stand in a generator, and what they do and leave there."""

import copy
import re
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
import reference
import torch
from runs import ALONE, Crash, changed, crash_before, differing, run, state_of, tiny
from torch import nn

from convnorm import CATALOGUE, ConvNorm2d, Normalizer
from convnorm.experiment.config import parse, to_yaml
from convnorm.experiment.data import load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.report.names import label_of
from convnorm.experiment.run import checkpoint
from convnorm.experiment.run.averaging import averaged, follow
from convnorm.experiment.run.cost import macs
from convnorm.experiment.run.loop import take_step
from convnorm.kind import Kind
from convnorm.normalizers import normalized_layers
from convnorm.parametrizations import swapped
from convnorm.transposed import ConvNormTranspose2d
from gan.config import GanConfig
from gan.models import build, load_generator
from gan.networks import build_generator
from gan.normalizer import GanNormalizer
from gan.trainer import Trainer

KINDS = [kind for kind, known in CATALOGUE.items() if known.stands_in_generators]
OTHERS = [kind for kind in CATALOGUE if kind not in KINDS]
CONVOLUTIONS = nn.Conv2d | nn.ConvTranspose2d
every_kind = pytest.mark.parametrize("kind", KINDS)
every_arch = pytest.mark.parametrize("arch", ["dcgan", "sngan_cnn", "sngan_resnet"])


def generator(kind, arch="dcgan", **options):
    settings = {f"normalizer.{name}": value for name, value in options.items()}
    config = tiny({"model.arch": arch, "normalizer.generator": kind, **settings})
    return build(config, channels=1)[0]


def transposed(kind, *geometry, **options):
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(*(geometry or (6, 4, 4, 2, 1)))
    return Normalizer(kind, **options)(conv).eval()


def rows(layer):
    """The matrix (O, I / groups * k_h * k_w) of a layer's weight."""
    return swapped(layer.weight.detach(), layer.groups).flatten(1)


# Which kinds.


def test_the_kinds_that_stand_in_a_generator():
    assert KINDS == [
        "none",
        "weight",
        "spectral",
        "bidirectional",
        "convnorm",
        "oni",
        "own",
        "aol",
    ]


@pytest.mark.parametrize("kind", [*OTHERS, "spectrall", ""])
def test_another_kind_is_refused_with_those_that_are_possible(kind):
    message = f"normalizer.generator: {kind!r} is not allowed; expected one of {', '.join(KINDS)}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        tiny({"normalizer.generator": kind})


@pytest.mark.parametrize("kind", [k for k, known in CATALOGUE.items() if known.transposed is None])
def test_a_kind_without_a_form_for_a_transposed_convolution_refuses_one(kind):
    """It took one for a convolution, and its rows for outputs."""
    with pytest.raises(ValueError, match=rf"^normalizer\.kind: '{kind}' has no form for a trans"):
        transposed(kind)


def test_a_kind_that_is_added_stands_in_a_generator_where_it_says_so(monkeypatch):
    monkeypatch.setitem(CATALOGUE, "own kind", Kind(transposed=lambda layer, options: layer))
    monkeypatch.setitem(CATALOGUE, "other", Kind(conv=lambda layer, options: layer))
    assert GanNormalizer("none", generator="own kind").of_generator.kind == "own kind"
    with pytest.raises(InputError, match=r"'other' is not allowed; expected one of .*, own kind$"):
        GanNormalizer("none", generator="other")


# None is what was there before.

BEFORE = {  # sum and sum of squares of two images, before there was a choice
    "dcgan": (-0.0267962446, 0.0000172703),
    "sngan_cnn": (-0.0009491474, 0.0000000084),
    "sngan_resnet": (16.3757845519, 15.0538271473),
}


@every_arch
def test_none_leaves_the_generator_as_it_was(arch):
    G = generator("none", arch).eval()
    y = G(torch.randn(2, 8, generator=torch.Generator().manual_seed(0))).double()
    total, squares = BEFORE[arch]
    assert y.sum().item() == pytest.approx(total, rel=1e-3)
    assert y.square().sum().item() == pytest.approx(squares, rel=1e-2)
    options = {"generator_width": 4, "discriminator_width": 4}
    plain = build_generator(arch, image_size=16, channels=1, z_dim=8, options=options)
    assert str(G) == str(plain)
    assert G.state_dict().keys() == plain.state_dict().keys()


def test_a_run_of_before_the_choice_goes_on_and_is_read(tmp_path):
    """Its config.yaml and its checkpoint lack the key."""
    run(tmp_path / "run", {"steps": 2, "optim.decay": "none"})
    last = tmp_path / "run" / "last.pt"
    state = torch.load(last, weights_only=True)
    del state["config"]["normalizer"]["generator"]
    checkpoint.save(last, state)
    config = tiny({"steps": 2, "optim.decay": "none"})
    text = to_yaml(config).replace("  generator: none\n", "")
    assert text != to_yaml(config)
    (tmp_path / "run" / "config.yaml").write_text(text)
    assert load_generator(tmp_path / "run").config == config
    run(tmp_path / "run", {"steps": 3, "optim.decay": "none"})
    assert state_of(tmp_path / "run")["step"] == 3
    assert state_of(tmp_path / "run")["config"]["normalizer"]["generator"] == "none"


# What a kind does there.


@every_kind
@every_arch
def test_every_convolution_is_normalized_and_nothing_else(kind, arch):
    G, plain = generator(kind, arch), generator("none", arch)
    for name, module in plain.named_modules():
        there = G.get_submodule(name)
        if isinstance(module, CONVOLUTIONS):
            assert there.normalized_by.kind == kind
            assert isinstance(there, type(module))
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            assert str(there) == str(module)
            assert torch.equal(there.weight, module.weight)
    assert len(list(normalized_layers(G))) == sum(
        isinstance(module, CONVOLUTIONS) for module in plain.modules()
    )
    if kind == "convnorm":
        kinds = {type(layer) for _, layer, _ in normalized_layers(G)}
        assert kinds <= {ConvNorm2d, ConvNormTranspose2d}
    z = torch.randn(3, 8)
    assert torch.equal(G(z), plain(z)) == (kind == "none")


@every_kind
def test_the_discriminator_is_the_same_whatever_the_generator_is(kind):
    one, other = (build(tiny({"normalizer.generator": k}), 1)[1] for k in ("none", kind))
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_options_are_those_of_the_normalizer_but_for_the_discriminators_own():
    options = {"affine": True, "affine_init": "default", "eps": 0.5, "grid": "native"}
    options |= {"scale": 3.0, "batch_norm": True, "gradient_through_gain": True}
    for _, layer, normalizer in normalized_layers(generator("convnorm", "sngan_cnn", **options)):
        assert (layer.eps, layer.scale, layer.batch_norm) == (0.5, 1.0, None)
        assert layer.gradient_through_gain
        assert layer.affine.weight.abs().min() > 0  # not dirac
        assert normalizer.grid == "native"
    assert {option.name for option in fields(GanNormalizer)} - {"generator"} == {
        option.name for option in fields(Normalizer)
    }


def test_spectral_norm_of_a_transposed_convolution_is_that_of_its_outputs():
    """dim=0 would take the matrix of its inputs, of another norm."""
    layer = transposed("spectral").train()
    for _ in range(50):
        layer(torch.zeros(1, 6, 2, 2))
    assert layer.eval().parametrizations.weight[0].parametrization.dim == 1
    assert torch.linalg.matrix_norm(rows(layer), ord=2).item() == pytest.approx(1, rel=1e-4)
    assert abs(torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() - 1) > 0.05


@pytest.mark.parametrize("multiplier", [False, True])
def test_weight_norm_of_a_transposed_convolution_is_that_of_its_outputs(multiplier):
    layer = transposed("weight", multiplier=multiplier)
    norms = rows(layer).norm(dim=1)
    expected = torch.ones(4)
    if multiplier:
        expected = layer.parametrizations.weight.original0.flatten()
        assert len(expected) == 4
    torch.testing.assert_close(norms, expected)


@pytest.mark.parametrize("kind", ["oni", "own"])
@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_orthogonal_rows_of_a_transposed_convolution_are_its_outputs(kind, multiplier, groups):
    options = {"multiplier": multiplier, "iterations": 15, "scale": 3.0}
    layer = transposed(kind, 6, 4, 4, 2, 1, 0, groups, **options)
    for block in rows(layer).unflatten(0, (groups, -1)):
        torch.testing.assert_close(block @ block.T, 9 * torch.eye(4 // groups), rtol=0, atol=1e-3)
    learned = [p for p in layer.parameters() if p.shape == (4,) and p is not layer.bias]
    assert len(learned) == multiplier
    assert not learned or learned[0].tolist() == [3.0] * 4


def test_both_norms_of_a_transposed_convolution_are_those_of_a_convolution():
    layer = transposed("bidirectional").train()
    conv = nn.Conv2d(6, 4, 4)
    with torch.no_grad():
        conv.weight.copy_(swapped(layer.parametrizations.weight.original, 1))
    twin = Normalizer("bidirectional")(conv).train()
    for _ in range(50):
        layer.weight, twin.weight  # noqa: B018  each moves the power iterations on
    torch.testing.assert_close(rows(layer), twin.weight.detach().flatten(1), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "geometry", [(6, 4, 4, 2, 1), (4, 6, 3, 1, 0, 0, 2), (3, 4, 3, 3, 1, 1, 1, True, 2)]
)
def test_aol_bounds_a_transposed_convolution(geometry):
    layer = transposed("aol", *geometry)
    sigma = reference.sigma_max(layer, (geometry[0], 5, 5))
    assert 0.1 < sigma <= 1
    isometry = nn.ConvTranspose2d(4, 1, 2, 2, bias=False)  # a bound is met where it is reached
    nn.init.zeros_(isometry.weight)
    for place in range(4):
        isometry.weight.data[place, 0, place // 2, place % 2] = 7.0
    assert reference.sigma_max(Normalizer("aol")(isometry), (4, 3, 3)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("kind", "options"), [("spectral", {}), ("weight", {"multiplier": True})])
def test_groups_of_a_transposed_convolution_are_not_mixed(kind, options):
    with pytest.raises(ValueError, match="transposed convolution of 2 groups"):
        transposed(kind, 6, 4, 4, 2, 1, 0, 2, **options)


# In a training.


@pytest.mark.parametrize("kind", ["convnorm", "spectral"])
def test_a_resumed_run_is_bit_identical(kind, tmp_path, monkeypatch):
    changes = {
        "normalizer.generator": kind,
        "normalizer.affine": True,
        "train.ema_decay": 0.9,
        "steps": 5,
    }
    run(tmp_path / "whole", changes)
    with monkeypatch.context() as patch:
        crash_before(4, Trainer, patch)
        with pytest.raises(Crash):
            run(tmp_path / "cut", changes, checkpoint_every=2)
    torch.manual_seed(99)
    run(tmp_path / "cut", changes)
    whole = state_of(tmp_path / "whole")
    assert differing(state_of(tmp_path / "cut"), whole) == []
    loaded = load_generator(tmp_path / "whole")
    assert loaded.ema
    assert loaded.config.normalizer.generator == kind
    for name, value in loaded.generator.state_dict().items():
        assert torch.equal(value, whole["ema"][name])


@every_kind
@pytest.mark.parametrize(
    "changes",
    [
        {"train.ema_decay": 0.5},
        {"train.precision": "bfloat16", "train.channels_last": True, "normalizer.affine": True},
    ],
    ids=["float32", "bfloat16"],
)
def test_every_kind_trains_a_generator(kind, changes):
    config = tiny({"normalizer.generator": kind, **changes})
    trainer = Trainer(config, load_images(config.data), ALONE)
    before = copy.deepcopy(trainer.generator.state_dict())
    for _ in range(2):
        take_step(trainer)
    parameters = dict(trainer.generator.named_parameters())
    assert all(value.isfinite().all() for value in parameters.values())
    assert all(not torch.equal(value, before[name]) for name, value in parameters.items())


def test_an_update_of_both_networks_shares_no_gain_between_weights(monkeypatch):
    """Inside shared_weights a gain is kept for a weight; the generator's changes in every step."""
    config = tiny({"normalizer.generator": "convnorm", "optim.lr": 0.05})
    trainer, alone = (Trainer(config, load_images(config.data), ALONE) for _ in range(2))
    for _ in range(3):
        take_step(trainer)
    with monkeypatch.context() as patch:
        patch.setattr("gan.trainer.shared_weights", nullcontext)
        for _ in range(3):
            take_step(alone)
    for a, b in zip(
        trainer.generator.state_dict().values(), alone.generator.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_average_of_a_generator_keeps_its_power_iterations_of_norm_one():
    G = generator("spectral")
    average = averaged(G, 0.9)
    for _ in range(3):
        with torch.no_grad():
            for parameter in G.parameters():
                parameter += torch.rand_like(parameter)
        G(torch.randn(4, 8))
        follow(average, G, 0.5)
    vectors = [b for name, b in average.named_buffers() if name.endswith("._u")]
    assert vectors
    assert all(abs(vector.norm().item() - 1) < 1e-5 for vector in vectors)


def test_the_cost_has_the_normalizer_in_it():
    z = torch.zeros(4, 8)
    plain, normalized = (macs(generator(kind), z) for kind in ("none", "convnorm"))
    assert plain < normalized


def test_a_captured_step_refuses_a_kind_that_waits():
    with pytest.raises(InputError, match=r"normalizer\.generator 'own' waits for the device"):
        tiny({"normalizer.generator": "own", "train.capture": "graph"})
    tiny({"normalizer.generator": "convnorm", "train.capture": "graph"})


@pytest.mark.parametrize(
    ("argv", "warned"),
    [
        (["--normalizer.generator=convnorm", "--normalizer.eps=0.1"], []),
        (["--normalizer.generator=oni", "--normalizer.iterations=3"], []),
        (["--normalizer.eps=0.1"], ["normalizer.eps: without effect, as normalizer.kind none"]),
        (
            ["--normalizer.generator=convnorm", "--normalizer.batch_norm=true"],
            ["normalizer.batch_norm: without effect, as normalizer.kind none"],
        ),
    ],
)
def test_what_neither_network_reads_is_said_once(argv, warned, capsys):
    parse(GanConfig, "gan", "sngan_none", argv)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(warned)
    for line, expected in zip(lines, warned, strict=True):
        assert line.startswith(f"warning: {expected}")


def test_a_report_tells_the_generators_kind_from_the_discriminators():
    axes = {"normalizer.generator": ["none", "spectral"], "normalizer.kind": ["convnorm"]}
    report = SimpleNamespace(axes=axes, grid={"axes": axes})
    assert label_of(report, "normalizer.generator", "spectral") == "generator: spectral"
    assert label_of(report, "normalizer.kind", "convnorm") == "convnorm"


def test_a_config_survives_its_dictionary_and_its_replacement():
    config = tiny({"normalizer.generator": "spectral"})
    assert changed(GanConfig(), asdict_flat(config)).normalizer == config.normalizer
    other = replace(config.normalizer, kind="batch")
    assert (other.kind, other.generator) == ("batch", "spectral")


def asdict_flat(config):
    return {f"normalizer.{name}": value for name, value in asdict(config.normalizer).items()}
