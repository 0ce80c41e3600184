"""Every kind of the catalogue in small discriminators of every family."""

import copy
import dataclasses
import math
import re
from itertools import product

import pytest
import reference
import torch
from torch import nn

from convnorm import CATALOGUE, ConvNorm2d, Normalizer, chain
from convnorm.experiment.run.averaging import STATISTICS
from convnorm.fixed import fixed_weights
from convnorm.normalizers import Normalized, normalized_layers
from convnorm.operator_norm import UnitOperatorNorm
from convnorm.penalties import orthogonality
from gan.networks import ARCHITECTURES, build_discriminator

every_kind = pytest.mark.parametrize("kind", CATALOGUE)
CONVNORM = ("convnorm", "spectral_convnorm")
# In the weight, so on linear layers too.
ON_WEIGHTS = ("weight", "spectral", "bidirectional", "operator", "oni", "own", "aol")


def discriminator(kind, arch="dcgan", seed=0, **options):
    torch.manual_seed(seed)
    normalize = Normalizer(kind, **options)
    return build_discriminator(
        arch, normalize, image_size=16, channels=1, options={"discriminator_width": 4}
    )


def images(batch_size=4):
    return torch.rand(batch_size, 1, 16, 16, generator=torch.manual_seed(1)) * 2 - 1


def train_step(network, optimizer):
    optimizer.zero_grad()
    real = images().requires_grad_()
    logits = network(real)
    (penalty,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    loss = torch.relu(1 - logits).mean() + torch.relu(1 + network(-images())).mean()
    (loss + penalty.square().mean()).backward()
    optimizer.step()


def test_none_adds_nothing():
    network = discriminator("none")
    assert {type(m) for m in network.modules() if not list(m.children())} <= {
        nn.Conv2d,
        nn.Linear,
        nn.LeakyReLU,
        nn.Flatten,
    }
    conv = nn.Conv2d(2, 3, 3)
    assert Normalizer("none")(conv) is conv


@every_kind
@pytest.mark.parametrize("options", [{}, {"multiplier": True, "affine": True, "batch_norm": True}])
def test_trains_copies_and_reloads(kind, options):
    """A gradient that is missing or NaN, also under a gradient penalty; state outside the dict."""
    network = discriminator(kind, **options)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    shapes = {name: buffer.shape for name, buffer in network.named_buffers()}
    for _ in range(3):
        train_step(network, optimizer)
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    # Buffers that change shape or are replaced are lost to DDP's broadcast.
    assert shapes == {name: buffer.shape for name, buffer in network.named_buffers()}
    twin, fresh = copy.deepcopy(network), discriminator(kind, seed=5, **options)
    fresh.load_state_dict(network.state_dict(), strict=True)
    for training in (False, True):
        outputs = [n.train(training)(images()) for n in (network, twin, fresh)]
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_kinds_start_from_the_same_weights_and_leave_the_random_state(arch):
    """A kind that draws from the global generator changes every layer built after it."""

    def drawn(kind):
        network = discriminator(kind, arch)
        after = torch.rand(4)
        layers = []
        for module in network.modules():
            depthwise = getattr(module, "groups", 1) > 1  # an affine
            if isinstance(module, nn.Linear | nn.Conv2d) and not depthwise:
                parameters = dict(module.named_parameters())
                names = ("weight", "parametrizations.weight.original")
                layers += [parameters[name] for name in names if name in parameters]
        return layers, after

    expected, state = drawn("none")
    for kind in CATALOGUE:
        layers, after = drawn(kind)
        assert torch.equal(after, state), kind
        assert len(layers) == len(expected), kind
        assert all(map(torch.equal, layers, expected)), kind


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "instance", "weight", "oni", "own"])
def test_no_learned_multiplier_unless_asked(kind):
    """Miyato's comparison: normalizers of a discriminator without their own scale and shift."""
    plain = sum(p.numel() for p in discriminator("none").parameters())
    channels = 4 + 8 + (1 if kind in ON_WEIGHTS else 0)
    with_shift = dict.fromkeys(("layer", "group", "instance"), 2 * channels)
    extra = {"batch": 2 * 8, **with_shift}.get(kind, channels)
    for multiplier, expected in ((False, 0), (True, extra)):
        network = discriminator(kind, multiplier=multiplier)
        assert sum(p.numel() for p in network.parameters()) == plain + expected


def test_weight_rows_have_norm_one():
    for layer in (nn.Conv2d(3, 5, 3), nn.Linear(6, 2)):
        weight = Normalizer("weight")(layer).weight
        torch.testing.assert_close(weight.flatten(1).norm(dim=1), torch.ones(len(weight)))


def test_layer_normalizes_each_sample_over_its_whole_map():
    """Per channel, as instance normalization, or over the batch."""
    torch.manual_seed(0)
    layer = Normalizer("layer")(nn.Conv2d(2, 6, 3))
    x = torch.randn(3, 2, 9, 9) * torch.tensor([0.1, 1, 10]).view(3, 1, 1, 1)
    c = layer[0](x)
    variance, mean = torch.var_mean(c, (1, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(layer(x), (c - mean) / (variance + 1e-5).sqrt())


@pytest.mark.parametrize(("arch", "count"), [("dcgan", 1), ("sngan_cnn", 6), ("sngan_resnet", 8)])
def test_batch_norm_is_not_where_the_image_enters(arch, count):
    network = discriminator("batch", arch)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(norms) == len([c for c in convs if c.in_channels != 1]) == count


def test_convnorm_brings_nothing_else_unless_asked():
    """In a discriminator: no BatchNorm, no affine, or one that starts as the identity."""
    bare = discriminator("convnorm")
    assert [m for m in bare.modules() if isinstance(m, ConvNorm2d)]
    assert not [m for m in bare.modules() if isinstance(m, nn.BatchNorm2d)]
    affine = discriminator("convnorm", affine=True)
    assert len(list(affine.parameters())) > len(list(bare.parameters()))
    torch.testing.assert_close(affine(images()), bare(images()))


@pytest.mark.parametrize(
    "options",
    [
        {"grid": "native"},
        {"affine": True, "affine_init": "default"},
        {"batch_norm": True},
        {"eps": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", CONVNORM)
def test_convnorm_options_have_an_effect(kind, options):
    default = discriminator(kind)(images())
    assert not torch.allclose(discriminator(kind, **options)(images()), default, rtol=1e-3)


@pytest.mark.parametrize("kind", CONVNORM)
def test_gradient_through_gain_changes_the_gradient_and_not_the_output(kind):
    first, second = (discriminator(kind, gradient_through_gain=t) for t in (False, True))
    outputs = [network(images()) for network in (first, second)]
    torch.testing.assert_close(*outputs)
    for y in outputs:
        y.sum().backward()
    gradients = [next(network.parameters()).grad for network in (first, second)]
    assert not torch.allclose(*gradients, rtol=1e-2)


def test_affine_control_has_the_parameters_of_convnorm_with_affine_and_batch_norm():
    options = {"affine": True, "batch_norm": True, "affine_init": "default"}
    convnorm, control = discriminator("convnorm", **options), discriminator("affine", **options)
    shapes = [sorted(tuple(p.shape) for p in n.parameters()) for n in (convnorm, control)]
    assert shapes[0] == shapes[1]
    assert not [m for m in control.modules() if isinstance(m, ConvNorm2d)]


def test_spectral_divides_by_the_largest_singular_value_and_eval_is_frozen():
    torch.manual_seed(0)
    for plain in (nn.Conv2d(6, 8, 3), nn.Linear(10, 7)):
        layer = Normalizer("spectral")(plain)
        for _ in range(50):
            layer.weight  # noqa: B018
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, 1e-3)
        before = {name: b.clone() for name, b in layer.eval().named_buffers()}
        with torch.no_grad():
            layer.parametrizations.weight.original[0].mul_(5.0)
        layer.weight  # noqa: B018
        assert before
        assert all(torch.equal(b, before[name]) for name, b in layer.named_buffers())


@pytest.mark.parametrize("kind", ["spectral", "spectral_convnorm", "bidirectional", "operator"])
def test_power_iterations_stay_in_float32_under_autocast(monkeypatch, kind):
    """Half precision would leave sigma wrong by a percent, and differently on every device."""
    one, other = discriminator(kind), discriminator(kind)
    one(images())
    product, under_autocast = torch.mv, []

    def recording(*args):
        under_autocast.append(torch.is_autocast_enabled("cpu"))
        return product(*args)

    monkeypatch.setattr(torch, "mv", recording)
    with torch.autocast("cpu", torch.bfloat16):
        assert other(images()).isfinite().all()
    assert under_autocast
    assert not any(under_autocast)
    for expected, buffer in zip(one.buffers(), other.buffers(), strict=True):
        assert buffer.dtype == torch.float32
        torch.testing.assert_close(buffer, expected)


@pytest.mark.parametrize("grid", ["full", "native"])
@pytest.mark.parametrize("affine", [False, True])
def test_spectral_convnorm_has_operator_norm_one(grid, affine):
    """Against the dense matrix; convnorm alone is well above."""
    torch.manual_seed(0)
    options = {"grid": grid, "affine": affine, "affine_init": "default"}
    conv = nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular")
    layer = UnitOperatorNorm(Normalizer("convnorm", **options)(conv), size=8)
    x = torch.zeros(1, 3, 8, 8)
    for _ in range(100):
        layer(x)
    layer.eval()
    assert reference.sigma_max(layer, (3, 8, 8)) == pytest.approx(1.0, abs=5e-3)
    if not affine:
        assert reference.sigma_max(layer.layer, (3, 8, 8)) > 1.4
    u = layer.u.clone()
    layer(x)
    assert torch.equal(layer.u, u)


def test_spectral_convnorm_lets_the_gradient_through_its_norm():
    """Without, the radial part of the gradient stays and the weights drift."""
    torch.manual_seed(0)
    conv = ConvNorm2d(3, 4, 3, padding=1, affine=False, batch_norm=False)
    layer = UnitOperatorNorm(conv, size=8).eval()
    layer(torch.randn(2, 3, 8, 8)).square().sum().backward()
    radial = (conv.weight.grad * conv.weight).sum() / conv.weight.grad.norm() / conv.weight.norm()
    assert abs(radial) < 1e-5


def test_linear_layers_pass_where_a_kind_is_about_maps():
    for kind in CATALOGUE:
        layer = nn.Linear(4, 1)
        normalized = Normalizer(kind, batch_norm=True)(layer)
        assert normalized is layer
        parametrized = kind in (*ON_WEIGHTS, "spectral_convnorm", "chain")
        assert hasattr(layer, "parametrizations") == parametrized


@pytest.mark.parametrize("kind", [*ON_WEIGHTS, "ocnn", *CONVNORM])
@pytest.mark.parametrize("at_input", [False, True])
def test_batch_norm_is_last_where_it_is_asked_for(kind, at_input):
    """Published comparisons keep BatchNorm beside what they compare."""
    layer = Normalizer(kind, batch_norm=True)(nn.Conv2d(3, 4, 3), at_input=at_input).train()
    y = layer(torch.randn(8, 3, 9, 9) * 3 + 1)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)
    bare = Normalizer(kind)(nn.Conv2d(3, 4, 3), at_input=at_input)
    assert not [m for m in bare.modules() if isinstance(m, nn.BatchNorm2d)]


# What a kind says of itself, measured


def in_all_variants(kind, *others):
    """The kind with every combination of the options that decide what it is."""
    names = ("multiplier", "affine", "batch_norm", *others)
    for values in product([False, True], repeat=len(names)):
        yield Normalizer(kind, affine_init="default", **dict(zip(names, values, strict=True)))


@pytest.fixture(autouse=True)
def adapting_at_once(monkeypatch):
    """In one step, where training takes a thousand."""
    monkeypatch.setattr(chain, "STEP", 1.0)


def normalized(normalize, conv=None, **options):
    """A normalized convolution; more rows than columns, which is where ONI has its defect.

    Adapted to a discriminator that takes all real images for real.
    """
    torch.manual_seed(0)
    layer = normalize(conv or nn.Conv2d(1, 16, 3, padding=1, bias=False), **options)
    normalizer = getattr(normalize, "__self__", normalize)  # of normalize.convolution
    for _ in range(10):
        normalizer.observe(layer, torch.ones(4))
    return layer


def maps(batch_size=4, channels=1):
    x = torch.randn(batch_size, channels, 8, 8, generator=torch.manual_seed(1))
    return x * torch.arange(1.0, batch_size + 1)[:, None, None, None]


def adds_an_offset(module, x):
    """Whether some parameter moves each output channel by a constant, in evaluation mode."""
    module = nn.Sequential(module).eval().requires_grad_(False)
    before, found = module(x), []
    for parameter in module.parameters():
        parameter += 1
        moved = (module(x) - before).transpose(0, 1).flatten(1)
        parameter -= 1
        found.append(moved.std(1).max() < 1e-4 and (moved.mean(1).abs() > 1e-3).all())
    return any(found)


@every_kind
def test_has_shift_says_whether_there_is_a_learned_offset(kind):
    """A bias that a BatchNorm takes away again, or no offset at all."""
    for normalize in in_all_variants(kind):
        assert adds_an_offset(normalized(normalize), maps()) == normalize.has_shift, normalize
        conv = normalized(normalize.convolution)
        assert adds_an_offset(conv, maps()) == normalize.conv_has_shift, normalize
        output = nn.Sequential(*normalize.output(16))
        own = normalize.definition.output_has_shift(normalize)
        expected = own or normalize.adds_batch_norm
        assert adds_an_offset(output, maps(channels=16)) == expected, normalize


@every_kind
def test_mixes_batch_says_whether_images_see_each_other_in_training(kind):
    for normalize in in_all_variants(kind):
        layer, x = normalized(normalize), maps()
        together, alone = copy.deepcopy(layer)(x)[:1], copy.deepcopy(layer)(x[:1])
        assert torch.allclose(together, alone, atol=1e-4) != normalize.mixes_batch, normalize


@every_kind
def test_ignores_scale_says_whether_a_factor_on_all_weights_changes_nothing(kind):
    """A bound on weights that bounds nothing; an affine or a multiplier that it would bound."""
    for normalize in in_all_variants(kind, "as_published"):
        layer = normalized(normalize)
        outputs = []
        for factor in (1, 3):
            scaled = copy.deepcopy(layer)
            for name, parameter in scaled.named_parameters():
                parameter.data *= 0 if name.endswith("bias") else factor
            outputs.append(scaled(maps()))
        same = torch.allclose(*outputs, rtol=1e-2, atol=1e-3)
        assert same == normalize.ignores_scale, normalize


@every_kind
def test_is_affine_says_whether_the_layer_is_an_affine_map_in_evaluation(kind):
    for normalize in in_all_variants(kind):
        layer = normalized(normalize)
        layer(maps())
        one, other = layer.eval()(maps()), layer(-maps().flip(0))
        middle = layer((maps() - maps().flip(0)) / 2)
        same = torch.allclose(middle, (one + other) / 2, atol=1e-4)
        assert same == normalize.definition.is_affine, normalize


@every_kind
def test_at_input_says_whether_the_image_meets_a_normalizer(kind):
    for normalize in in_all_variants(kind):
        first, other = normalized(normalize, at_input=True), normalized(normalize)
        at_input = normalize.definition.at_input
        assert (str(first) == str(other)) == at_input, normalize
        assert at_input or not isinstance(first, Normalized)


OTHER_VALUES = {
    "multiplier": True,
    "batch_norm": True,
    "grid": "native",
    "affine": True,
    "affine_init": "default",
    "affine_mode": "circular",
    "gradient_through_gain": True,
    "fused_filter": True,
    "eps": 0.1,
    "iterations": 2,
    "groups": 5,
    "scale": 2.0,
    "penalty_weight": 0.5,
    "as_published": True,
}


def trace_of(normalize):
    """All that can depend on an option: parameters, output, penalty, and their gradients."""
    layer = normalized(normalize)
    y = layer(maps())
    loss = y.sin().sum()
    penalty = normalize.penalty(layer)
    if penalty is not None:
        loss = loss + penalty
    gradients = torch.autograd.grad(loss, list(layer.parameters()))
    return [*layer.parameters(), y, loss, *gradients]


@every_kind
def test_reads_names_the_options_that_have_an_effect_and_no_other(kind):
    """An option that is refused though nobody reads it, or that passes unchecked."""
    assert OTHER_VALUES.keys() == {field.name for field in dataclasses.fields(Normalizer)} - {
        "kind"
    }
    bases = [(base, trace_of(Normalizer(kind, **base))) for base in ({}, {"affine": True})]
    for option, value in OTHER_VALUES.items():
        effects = []
        for base, one in bases:
            other = trace_of(Normalizer(kind, **{**base, option: value}))
            equal = len(one) == len(other) and all(map(torch.equal, one, other))
            effects.append(not equal)
        assert any(effects) == (option in Normalizer(kind).definition.reads), option


@every_kind
def test_every_buffer_is_a_statistic_or_advances_with_the_weights(kind):
    """One that is neither would stand still in an average over steps."""
    for normalize in in_all_variants(kind):
        for layer in (normalized(normalize), normalized(normalize, nn.Linear(5, 4))):
            before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter += torch.rand_like(parameter)
                if normalize.definition.advance is not None:
                    normalize.definition.advance(layer.train())
            known = STATISTICS + normalize.definition.statistics
            for name, buffer in layer.named_buffers():
                if buffer.numel() == 1 and buffer.abs() == 1:
                    continue  # the vector of a matrix with one row has nowhere to go
                advanced = not torch.equal(buffer, before[name])
                assert advanced != (name.rpartition(".")[2] in known), (normalize, name)


@every_kind
@pytest.mark.parametrize(
    ("option", "values", "expected"),
    [
        ("eps", [-1.0, math.nan, math.inf, 1e30, True], "0 to 1000"),
        ("iterations", [-3, 0, 10**24, 1.5, True], "1 to 100"),
        ("groups", [0, 10**24, 2.0], "1 to 65536"),
        ("scale", [0.0, -1.0, math.inf, 1e30], "1e-06 to 1000"),
        ("penalty_weight", [-1.0, math.nan, 1e30], "0 to 1000000"),
    ],
)
def test_options_out_of_range_are_refused_whether_the_kind_reads_them_or_not(
    kind, option, values, expected
):
    for value in values:
        message = f"normalizer.{option}: {value!r} is not allowed; expected {expected}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Normalizer(kind, **{option: value})


def test_a_kind_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"^normalizer\.kind: 'bath' is .* one of none, batch, .*"):
        Normalizer("bath")


@every_kind
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_normalized_layers_finds_each_layer_once_also_in_a_copy(kind, arch):
    network = discriminator(kind, arch, batch_norm=True)
    found = [(name, normalizer) for name, _, normalizer in normalized_layers(network)]
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    plain = [m for m in layers if getattr(m, "groups", 1) == 1]
    assert len(found) == len(plain)
    assert {normalizer for _, normalizer in found} == {Normalizer(kind, batch_norm=True)}
    twin = copy.deepcopy(network)
    assert [(name, normalizer) for name, _, normalizer in normalized_layers(twin)] == found
    for name, layer, _ in normalized_layers(twin):
        assert layer is twin.get_submodule(name)
    assert not [key for key in network.state_dict() if "normalized_by" in key]


def rows_of(layer):
    return layer.weight.detach().flatten(1)


@pytest.mark.parametrize("kind", ["oni", "own"])
@pytest.mark.parametrize("multiplier", [False, True])
def test_orthogonal_kinds_scale_orthonormal_rows(kind, multiplier):
    """Of convolutions and of linear layers."""
    torch.manual_seed(0)
    for scale in (2**0.5, 1.0):
        normalize = Normalizer(kind, iterations=12, multiplier=multiplier, scale=scale)
        for plain in (nn.Conv2d(4, 8, 3), nn.Linear(20, 6), nn.Conv2d(12, 24, 3, groups=12)):
            rows = rows_of(normalize(plain)) / scale
            blocks = rows.chunk(getattr(plain, "groups", 1))
            for block in blocks:
                s = torch.linalg.svdvals(block)
                torch.testing.assert_close(s, torch.ones_like(s), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["oni", "own"])
def test_orthogonal_kinds_take_each_group_of_a_convolution_by_itself(kind):
    torch.manual_seed(0)
    grouped, alone = nn.Conv2d(12, 24, 3, groups=12), nn.Conv2d(1, 2, 3)
    alone.weight.data.copy_(grouped.weight[4:6])
    normalize = Normalizer(kind)
    torch.testing.assert_close(rows_of(normalize(grouped))[4:6], rows_of(normalize(alone)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("oni", {"iterations": 2}),
        ("oni", {"groups": 2}),
        ("oni", {"scale": 2.0}),
        ("oni", {"as_published": True}),
        ("own", {"groups": 3}),
        ("own", {"scale": 2.0}),
    ],
    ids=str,
)
def test_options_of_orthogonal_kinds_have_an_effect(kind, options):
    weights = []
    for changes in ({}, options):
        torch.manual_seed(0)
        weights.append(rows_of(Normalizer(kind, **changes)(nn.Conv2d(2, 32, 3))))
    assert not torch.allclose(*weights, rtol=1e-2)


@every_kind
def test_penalty_on_weights_is_that_of_ocnn_and_of_no_other(kind):
    network = discriminator(kind)
    normalize = Normalizer(kind, penalty_weight=0.5)
    if kind != "ocnn":
        assert normalize.penalty(network) is None or kind == "chain"  # of maps, in test_chain
        return
    for as_published in (False, True):
        normalize = Normalizer(kind, penalty_weight=0.5, as_published=as_published)
        expected = 0.5 * orthogonality(network, as_published)
        torch.testing.assert_close(normalize.penalty(network), expected)
    assert normalize.penalty(network).requires_grad


@pytest.mark.parametrize("kind", [*ON_WEIGHTS, *CONVNORM])
@pytest.mark.parametrize("multiplier", [False, True])
def test_equal_outputs_where_weights_are_fixed(kind, multiplier):
    network = discriminator(kind, multiplier=multiplier, batch_norm=True).eval()
    expected = network(images())
    with fixed_weights(), torch.no_grad():
        for _ in range(2):
            assert torch.equal(network(images()), expected)


# Dynamo's own way to trace an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["oni", "own"])
def test_compiles_as_one_graph(kind):
    """Values and gradients; a graph break raises."""
    torch.manual_seed(0)
    layer = Normalizer(kind, batch_norm=True)(nn.Conv2d(3, 16, 3)).eval()
    assert isinstance(layer, Normalized)
    x, results = torch.randn(2, 3, 8, 8), []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append((y.detach(), [p.grad for p in layer.parameters()]))
    torch.testing.assert_close(results[1], results[0])


@every_kind
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"grid": "native", "affine": True, "multiplier": True}])
@pytest.mark.parametrize("size", [3, 20])
def test_an_empty_batch_passes_as_through_a_plain_convolution(kind, training, options, size):
    """The last images of a selection, of which none is left: an FFT refuses them."""
    plain = nn.Conv2d(3, 8, 3, 2, padding=1)
    x = torch.rand(0, 3, size, size, requires_grad=True)
    expected = plain(x).shape
    layer = Normalizer(kind, gradient_through_gain=True, **options)(plain).train(training)
    y = layer(x)
    assert y.shape == expected
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in layer.parameters())


def test_catalogue_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Normalizer("none").kind = "batch"


def test_the_affine_kind_takes_what_only_a_filter_would_refuse():
    """Two turns of the ring are nothing to a depthwise convolution."""
    conv = nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular")
    layer = Normalizer("affine")(conv)
    assert layer(torch.randn(1, 2, 6, 6)).shape == conv(torch.randn(1, 2, 6, 6)).shape


@pytest.mark.parametrize("kind", ["oni", "own", "weight"])
def test_a_multiplier_is_where_its_layer_is(kind):
    conv = nn.Conv2d(4, 8, 3, device="meta", dtype=torch.float64)
    layer = Normalizer(kind, multiplier=True)(conv)
    found = {(parameter.device.type, parameter.dtype) for parameter in layer.parameters()}
    assert found == {("meta", torch.float64)}
