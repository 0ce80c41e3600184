"""The classifiers against torchvision, published counts and the order that they are built in."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from runs import CLASSIFIER_KINDS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg

from classification.networks import (
    ARCHITECTURES,
    Architecture,
    build_network,
    preact_resnet,
    resnet,
)
from classification.networks.layers import NORM_POSITIONS, SReLU, Standardize
from convnorm import Normalizer
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.averaging import averaged, follow, running_statistics
from convnorm.spectrum import layer_norms

RESNETS = [arch for arch in ARCHITECTURES if arch.startswith("resnet")]
STEMS = [(arch, "cifar") for arch in ARCHITECTURES] + [(arch, "imagenet") for arch in RESNETS]
# ResNets with each kind of block and shortcut, but few of them, for images of 8 pixels.
SHALLOW = {
    residual.__name__: Architecture(
        resnet.Options,
        partial(resnet.features, residual=residual, depths=(1, 2)),
        resnet.total_stride,
    )
    for residual in (resnet.basic, resnet.bottleneck)
} | {
    "preactivation": Architecture(
        preact_resnet.Options,
        partial(preact_resnet.features, depths=(1, 2)),
        lambda options: 2,
        ("before_activation",),
    )
}
FAMILIES = (*SHALLOW, "vgg11", "simple_cnn")
every_stem = pytest.mark.parametrize(("arch", "stem"), STEMS)
every_arch = pytest.mark.parametrize("arch", list(ARCHITECTURES))
every_family = pytest.mark.parametrize("arch", FAMILIES)
every_kind = pytest.mark.parametrize("kind", CLASSIFIER_KINDS)


@pytest.fixture(autouse=True)
def shallow_resnets(monkeypatch):
    for name, architecture in SHALLOW.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture)


def normalizer(kind, batch_norm=True):
    """A kind as classifiers have it by default."""
    return Normalizer(
        kind, multiplier=True, affine=True, affine_init="default", batch_norm=batch_norm
    )


def build(arch, kind="none", width=4, stem="cifar", **changes):
    """A thin network for the smallest images; `kind` may be a normalizer."""
    chosen = options_for(width, stem)
    options = {"num_classes": 10, "channels": 3, "image_size": smallest(arch, stem), **changes}
    moments = {"mean": [0.4] * options["channels"], "std": [0.25] * options["channels"]}
    normalize = normalizer(kind) if isinstance(kind, str) else kind
    return build_network(arch, normalize, options=chosen, **{**moments, **options})


def options_for(width=None, stem="cifar"):
    """A width of None and the stem "cifar" are the defaults."""
    return ({} if width is None else {"width": width}) | ({} if stem == "cifar" else {"stem": stem})


def smallest(arch, stem="cifar"):
    architecture = ARCHITECTURES[arch]
    return architecture.stride(architecture.options(**options_for(stem=stem)))


def images_for(arch, number=4):
    return torch.rand(number, 3, smallest(arch), smallest(arch))


def modules_of(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


class Recorder:
    """A normalizer that notes what it is given and what it makes of it."""

    def __init__(self, inner):
        self.inner = inner
        self.has_shift, self.conv_has_shift = inner.has_shift, inner.conv_has_shift
        self.layers, self.weights, self.results = [], [], []

    def for_relu(self):
        self.inner = self.inner.for_relu()
        return self

    def __call__(self, layer):
        self.layers.append(layer)
        self.weights.append(layer.weight.detach().clone())
        self.results.append(self.inner(layer))
        return self.results[-1]

    def convolution(self, layer):
        self.layers.append(layer)
        self.weights.append(layer.weight.detach().clone())
        self.results.append(self.inner.convolution(layer))
        return self.results[-1]

    def output(self, channels):
        return self.inner.output(channels)


@every_stem
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_of_every_architecture(arch, stem, channels):
    """Channels that do not fit, or a size that is not a multiple of the strides."""
    network = build(arch, width=1, stem=stem, channels=channels, num_classes=7).eval()
    for size in (smallest(arch, stem), 33):
        assert network(torch.rand(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("arch", RESNETS)
def test_resnets_have_the_size_of_torchvisions(arch):
    with torch.device("meta"):
        ours = build(arch, "batch", width=None, stem="imagenet", num_classes=1000)
        theirs = torchvision.models.get_model(arch)
    assert count(ours) == count(theirs)


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("resnet101", 42_512_970),
        ("resnet152", 58_156_618),
        ("preact_resnet18", 11_172_170),
        ("wrn_28_10", 36_479_194),
        ("wrn_34_10", 46_160_474),
        ("vgg11", 9_228_362),
        ("vgg13", 9_413_066),
        ("vgg16", 14_724_042),
        ("vgg19", 20_035_018),
        ("simple_cnn", 131_754),
    ],
)
def test_cifar_networks_have_the_published_size(arch, parameters):
    """The common CIFAR-10 code has these counts (in VGG also biases before BatchNorm)."""
    with torch.device("meta"):
        assert count(build(arch, "batch", width=None)) == parameters


@pytest.mark.parametrize(
    ("arch", "stem", "size", "giga_macs"),
    [
        ("resnet18", "imagenet", 224, 1.814),
        ("resnet50", "imagenet", 224, 4.087),
        ("resnet18", "cifar", 32, 0.555),
        ("resnet50", "cifar", 32, 1.298),
        ("preact_resnet18", "cifar", 32, 0.556),
        ("wrn_28_10", "cifar", 32, 5.243),
        ("vgg16", "cifar", 32, 0.313),
        ("simple_cnn", "cifar", 32, 0.019),
    ],
)
def test_strides_are_where_they_are_published(arch, stem, size, giga_macs):
    """A bottleneck with the stride in its first 1x1 convolution would have 3.8 at 224x224."""
    with torch.device("meta"):
        network = build(arch, "batch", width=None, stem=stem)
        x = torch.zeros(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        network(x.expand(2, -1, -1, -1))
    assert counter.get_total_flops() / 4e9 == pytest.approx(giga_macs, abs=1e-3)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_resnets_compute_what_torchvisions_do(arch):
    """Another block, shortcut, stride, padding, stem or place of an activation."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(arch, num_classes=10).eval()
    ours = build(arch, "batch", width=None, stem="imagenet", mean=[0.0] * 3, std=[1.0] * 3).eval()
    keys = [key for key in ours.state_dict() if not key.startswith("standardize")]
    values = theirs.state_dict().values()  # in the order of the forward pass, in both
    ours.load_state_dict(dict(zip(keys, values, strict=True)), strict=False)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "letter"), [("vgg11", "A"), ("vgg13", "B"), ("vgg16", "D"), ("vgg19", "E")]
)
def test_vggs_compute_the_features_of_torchvisions(arch, letter):
    torch.manual_seed(0)
    layout = [stage if stage == "M" else stage // 16 for stage in vgg.cfgs[letter]]
    theirs = vgg.make_layers(layout).eval()
    ours = build(arch, "none", width=4).features.eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert theirs(x).std() > 0
        torch.testing.assert_close(ours(x), theirs(x))


def preactivation(state, x, depths):
    """Pre-activation blocks as their paper has them, from the values of a state in its order."""
    values = iter(state)

    def conv(x, stride=1):
        weight = next(values)
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def activated(x):
        weight, bias, mean, variance, _ = (next(values) for _ in range(5))
        return F.batch_norm(x, mean, variance, weight, bias).relu()

    x = conv(x)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            a = activated(x)
            y = conv(activated(conv(a, stride)))
            x = y + (conv(a, stride) if y.shape != x.shape else x)
    x = activated(x).mean((2, 3))
    return F.linear(x, next(values), next(values))


@pytest.mark.parametrize(
    ("arch", "depths"), [("preact_resnet18", (2,) * 4), ("wrn_28_10", (4,) * 3)]
)
def test_pre_activation_networks_compute_what_is_published(arch, depths):
    """Another order within a block, or a shortcut of what is not activated."""
    torch.manual_seed(0)
    network = build(arch, "batch", mean=[0.0] * 3, std=[1.0] * 3)
    network(torch.rand(8, 3, 16, 16))  # moves running statistics
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        state = list(network.eval().state_dict().values())[2:]  # without mean and std
        torch.testing.assert_close(network(x), preactivation(state, x, depths))


@every_arch
def test_width_scales_every_layer_in_proportion(arch):
    thin, thick = (
        [m.out_channels for m in modules_of(build(arch, width=w), nn.Conv2d)] for w in (2, 6)
    )
    assert thin[0] == 2
    assert thick == [3 * n for n in thin]


@pytest.mark.parametrize(
    ("arch", "stem", "size", "stem_size", "last_size"),
    [("resnet18", "imagenet", 224, 56, 7), ("resnet18", "cifar", 32, 32, 4)],
)
def test_the_stem_decides_the_resolution(arch, stem, size, stem_size, last_size):
    with torch.device("meta"):
        features = build(arch, stem=stem).features
        x = torch.zeros(1, 3, size, size)
    assert features.stem(x).shape == (1, 4, stem_size, stem_size)
    assert features(x).shape == (1, 32, last_size, last_size)


@every_family
@every_kind
def test_every_parameter_gets_a_finite_gradient(arch, kind):
    """A layer that is built and never used, or a result that is detached on the way."""
    torch.manual_seed(0)
    network = build(arch, kind)
    logits = network(images_for(arch, 8))
    assert logits.shape == (8, 10)
    F.cross_entropy(logits, torch.arange(8)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The gradient of a bias under BatchNorm is zero but for rounding.
        assert name.endswith("bias") or parameter.grad.any(), name


@every_family
@pytest.mark.parametrize("kind", ["none", "batch"])
def test_every_convolution_is_normalized_once_and_runs_once(arch, kind):
    """A shortcut without its normalizer, or a plain layer used past what normalizes it."""
    recorder = Recorder(normalizer(kind))
    network = build(arch, recorder)
    convs = modules_of(network, nn.Conv2d)
    assert sorted(map(id, recorder.layers)) == sorted(map(id, convs))
    # A pre-activation network normalizes what enters its units; shortcuts share that of a branch.
    norms = 2 * 3 + 1 if arch == "preactivation" else len(convs)
    assert len(modules_of(network, nn.BatchNorm2d)) == (norms if kind == "batch" else 0)
    assert all((conv.bias is None) == (kind == "batch") for conv in convs)
    calls = []
    for result in recorder.results:
        result.register_forward_hook(lambda module, *_: calls.append(id(module)))
    network(images_for(arch))
    assert sorted(calls) == sorted(map(id, recorder.results))


@every_arch
def test_the_plain_network_hides_no_normalizer(arch):
    leaves = {type(m).__name__ for m in build(arch, "none").modules() if not list(m.children())}
    plain = {"Conv2d", "Linear", "ReLU", "MaxPool2d", "AdaptiveAvgPool2d", "Flatten", "Identity"}
    assert leaves <= {"Standardize"} | plain


@every_family
def test_kinds_start_from_equal_weights(arch):
    """A bias drawn where a kind has one, or weights drawn after the normalizer saw the layer."""

    def start(kind):
        torch.manual_seed(5)
        recorder = Recorder(normalizer(kind))
        head = build(arch, recorder).head.linear
        return [*recorder.weights, head.weight.detach(), head.bias.detach(), torch.rand(3)]

    expected = start("none")
    for kind in CLASSIFIER_KINDS:
        for weight, value in zip(expected, start(kind), strict=True):
            assert torch.equal(weight, value), kind


@every_family
@pytest.mark.parametrize("init", ["kaiming_fan_out", "default"])
def test_initialization(arch, init):
    """Kaiming's normal with fan_out, or nn.Conv2d's; biases 0; the head as nn.Linear has it."""
    torch.manual_seed(0)
    network = build(arch, "none", width=32, init=init)
    for conv in modules_of(network, nn.Conv2d):
        taps = conv.kernel_size[0] * conv.kernel_size[1]
        variance = {
            "kaiming_fan_out": 2 / (taps * conv.out_channels),
            "default": 1 / (3 * taps * conv.in_channels),
        }[init]
        assert conv.weight.std().item() == pytest.approx(variance**0.5, rel=0.1)
        assert (conv.weight.abs().max() <= (3 * variance) ** 0.5) == (init == "default")
        assert not conv.bias.any()
    head, bound = network.head.linear, network.head.linear.in_features**-0.5
    for parameter in (head.weight, head.bias):
        assert parameter.abs().max() <= bound
    assert head.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


@every_family
def test_standardization_is_the_first_layer(arch):
    """Noise or attacks in units of std, or a network that standardizes what already is."""
    mean, std = [0.1, 0.4, 0.7], [0.1, 0.2, 0.3]
    network = build(arch, "batch", mean=mean, std=std).eval()
    seen = []
    modules_of(network, nn.Conv2d)[0].register_forward_hook(lambda m, x, y: seen.append(x[0]))
    size = smallest(arch)
    for shift in (0.0, 1.0, -2.0):
        pixels = torch.tensor(mean) + shift * torch.tensor(std)
        network(pixels[None, :, None, None].expand(2, 3, size, size))
        torch.testing.assert_close(seen[-1], torch.full((2, 3, size, size), shift))
    assert not seen[0].any()


@pytest.mark.parametrize("std", [[0.2, 0.0, 0.2], [0.2, -1.0, 0.2], [0.2, float("nan"), 0.2]])
def test_standardization_refuses_a_std_that_is_not_positive(std):
    with pytest.raises(InputError, match=r"data: .*standard deviation of \[0.2, .*\], expected"):
        Standardize([0.5, 0.5, 0.5], std)


def test_srelu_is_the_maximum_with_a_learned_number_per_channel():
    activation = SReLU(2)
    assert torch.equal(activation.shift, torch.tensor([-1.0, -1.0]))
    with torch.no_grad():
        activation.shift[1] = 0.5
    x = torch.tensor([[-3.0, -0.5, 2.0], [-3.0, 0.25, 2.0]]).view(1, 2, 1, 3).requires_grad_()
    y = activation(x)
    assert torch.equal(y.flatten(), torch.tensor([-1.0, -0.5, 2.0, 0.5, 0.5, 2.0]))
    y.sum().backward()
    assert torch.equal(x.grad.flatten(), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0]))
    assert torch.equal(activation.shift.grad, torch.tensor([1.0, 2.0]))
    assert activation(x.bfloat16()).dtype == torch.bfloat16


@every_family
def test_srelu_takes_every_place_of_relu(arch):
    relus = modules_of(build(arch), nn.ReLU)
    torch.manual_seed(0)
    network = build(arch, "none", activation="srelu")
    srelus = modules_of(network, SReLU)
    assert len(srelus) == len(relus) > 0
    assert not modules_of(network, nn.ReLU)
    network(images_for(arch)).sum().backward()
    assert all(srelu.shift.grad.isfinite().all() for srelu in srelus)


@pytest.mark.parametrize(("arch", "channels"), [("resnet18", 1984), ("resnet50", 18_944)])
def test_the_activations_of_a_block_share_their_numbers(arch, channels):
    """ConvNorm's ResNet-18 has 1,984 shifts; in a bottleneck the last sees more channels."""
    with torch.device("meta"):
        network = build(arch, "batch", width=None, activation="srelu")
        plain = build(arch, "batch", width=None)
    assert count(network) - count(plain) == channels
    block = build(arch, "batch", activation="srelu").features.stage1[0]
    inner = modules_of(block.residual, SReLU)
    assert len(inner) == 1
    assert (block.activation is inner[0]) == (arch == "resnet18")


@every_kind
def test_in_evaluation_images_do_not_see_each_other(kind):
    # In float64, as logits may be small differences of large numbers.
    network = build("bottleneck", kind).double().eval()
    x = images_for("bottleneck").double()
    with torch.no_grad():
        torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)


@every_kind
def test_in_training_images_see_each_other_only_through_batch_norm(kind):
    """Statistics of a batch where nobody asked for them."""
    network = build("basic", normalizer(kind, batch_norm=False), image_size=16).double()
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():  # copies, as spectral norm moves on in every pass
        together, alone = deepcopy(network)(x)[:1], deepcopy(network)(x[:1])
    through_batch_norm = bool(modules_of(network, nn.BatchNorm2d))
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-4) != through_batch_norm


@pytest.mark.parametrize(
    ("arch", "kind"),
    [(arch, "batch") for arch in FAMILIES] + [("bottleneck", kind) for kind in CLASSIFIER_KINDS],
)
def test_state_goes_into_a_fresh_network_for_another_size(arch, kind):
    """State whose shape depends on the images, or that is not kept at all."""
    size = smallest(arch)
    used = build(arch, kind, mean=[0.1, 0.2, 0.3])
    for _ in range(2):
        used(images_for(arch))  # moves running statistics and power iterations
    fresh = build(arch, kind, image_size=2 * size)
    fresh.load_state_dict(used.state_dict())
    x = torch.rand(2, 3, 2 * size, 2 * size)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(x), used.eval()(x), rtol=0, atol=0)


@every_kind
def test_memory_formats_agree_and_bf16_is_finite(kind):
    torch.manual_seed(0)
    network = build("simple_cnn", kind, image_size=16)
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        other = deepcopy(network)(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(other, deepcopy(network)(x), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(network(x), torch.arange(4))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet19"}, r"model\.arch: 'resnet19', expected one of resnet18, .*simple_cnn"),
        (
            {"options": {"stem": "tiny"}},
            r"model\.options\.stem: tiny is not allowed; expected one of cifar, imagenet",
        ),
        (
            {"arch": "vgg11", "options": {"stem": "imagenet"}},
            r"model\.options\.stem: no such key; expected model\.options\.width",
        ),
        ({"norm_position": "last"}, r"model\.norm_position: 'last', expected before_activation or"),
        ({"activation": "gelu"}, r"model\.activation: 'gelu', expected relu or srelu"),
        ({"init": "zeros"}, r"model\.init: 'zeros', expected kaiming_fan_out or default"),
        (
            {"arch": "wrn_28_10", "norm_position": "after_activation"},
            r"model\.norm_position: 'after_activation', expected before_activation",
        ),
        (
            {"options": {"width": 0}},
            r"model\.options\.width: 0 is not allowed; expected 1 to 8192",
        ),
        (
            {"options": {"widht": 8}},
            r"model\.options\.widht: no such key; expected model\.options\.width",
        ),
        ({"image_size": 7}, r"data\.image_size: 7, resnet18 .* stem cifar expects 8 to 512"),
        (
            {"image_size": 31, "options": {"stem": "imagenet"}},
            r"data\.image_size: 31, .* expects 32 to 512",
        ),
        ({"channels": 2}, r"data: images with 2 channels, expected 1 \(grey\) or 3 \(RGB\)"),
        ({"mean": [0.5]}, r"data: 1 means and 3 standard deviations, expected 3"),
        ({"num_classes": 1}, r"data: images of 1 classes, expected 2 or more"),
    ],
)
def test_what_cannot_be_built_is_named(changes, message):
    arch = changes.pop("arch", "resnet18")
    options = {"num_classes": 10, "channels": 3, "image_size": 32, **changes}
    options = {"mean": [0.5] * options["channels"], "std": [0.2] * options["channels"], **options}
    with pytest.raises(InputError, match=f"^{message}[^\n]*$"):
        build_network(arch, normalizer("none"), **options)


# Where the normalizer stands

every_position = pytest.mark.parametrize("position", NORM_POSITIONS)


def order_of(network, size):
    """The names of convolutions, norms and activations, in the order in which they run."""
    names, ran = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", SReLU: "activation"}, []
    for module in modules_of(network, tuple(names)):
        module.register_forward_hook(lambda m, *_: ran.append(names[type(m)]))
    network.eval()(torch.rand(1, 3, size, size))
    return ran


@pytest.mark.parametrize(
    ("position", "chain", "branch"),
    [
        ("before_activation", "conv norm activation", "conv norm activation conv norm"),
        ("after_activation", "conv activation norm", "conv activation norm conv norm"),
        ("before_convolution", "norm conv activation", "norm conv activation norm conv"),
    ],
)
def test_the_normalizer_stands_where_it_is_asked_to(position, chain, branch):
    """In a chain; in the branch of a block, whose last convolution has no activation; beside it."""
    options = {"activation": "srelu", "norm_position": position}
    for arch, convolutions in (("simple_cnn", 4), ("vgg11", 8)):
        order = order_of(build(arch, "batch", **options), smallest(arch))
        assert " ".join(order) == " ".join([chain] * convolutions)
    shortcut = "norm conv" if position == "before_convolution" else "conv norm"
    blocks = [[branch], [branch, shortcut], [branch]]
    expected = " ".join([chain, *(f"{' '.join(b)} activation" for b in blocks)])
    assert " ".join(order_of(build("basic", "batch", **options), 8)) == expected


@pytest.mark.parametrize("arch", [*list(SHALLOW)[:2], "vgg11", "simple_cnn"])
@every_position
@pytest.mark.parametrize("kind", ["batch", "convnorm", "layer", "oni"])
def test_positions_start_from_equal_weights(arch, position, kind):
    def start(position):
        torch.manual_seed(5)
        recorded, drawn = [], nn.init.kaiming_normal_
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                nn.init, "kaiming_normal_", lambda w, **k: recorded.append(drawn(w, **k).clone())
            )
            head = build(arch, kind, norm_position=position).head.linear
        return [*recorded, head.weight, head.bias, torch.rand(3)]

    for weight, value in zip(start("before_activation"), start(position), strict=True):
        assert torch.equal(weight, value)


@every_kind
@every_position
@pytest.mark.parametrize("bare", [False, True])
def test_a_convolution_has_a_bias_where_no_offset_follows_it_directly(kind, position, bare):
    """One that BatchNorm takes away again, or none where an activation comes first."""
    normalize = Normalizer(kind) if bare else normalizer(kind)
    network = build("basic", normalize, norm_position=position)
    convs = [m for m in modules_of(network, nn.Conv2d) if m.groups == 1]
    alone = {id(block.residual[-1]) for block in modules_of(network, resnet.Block)}
    alone |= {id(block.shortcut) for block in modules_of(network, resnet.Block)}
    last = {id(c) for m in network.modules() if id(m) in alone for c in modules_of(m, nn.Conv2d)}
    for conv in convs:
        follows = position == "before_activation" or (
            position == "after_activation" and id(conv) in last
        )
        has_shift = normalize.has_shift if follows else normalize.conv_has_shift
        assert (conv.bias is None) == has_shift


@every_kind
@every_position
def test_every_position_trains_and_is_averaged(kind, position):
    """Statistics that stand apart from their convolution."""
    torch.manual_seed(0)
    network = build("basic", kind, norm_position=position)
    average = averaged(network, 0.9)
    F.cross_entropy(network(images_for("basic", 8)), torch.arange(8)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    norms = modules_of(network, nn.BatchNorm2d)
    assert len(running_statistics(network)) == 2 * len(norms)
    follow(average, network, 0.0)
    for one, other in zip(running_statistics(average), running_statistics(network), strict=True):
        assert torch.equal(one, other)


# An affine map behind the convolution, a filter, no map at all, a parametrized weight.
@pytest.mark.parametrize("kind", ["batch", "convnorm", "layer", "oni"])
@every_position
def test_every_position_has_spectra(kind, position):
    """Norms taken where there is no map."""
    torch.manual_seed(0)
    network = build("basic", kind, norm_position=position)
    network(images_for("basic", 8))  # moves running statistics
    measured = layer_norms(network, torch.Size((3, 8, 8)))
    assert len(measured) == len([m for m in modules_of(network, nn.Conv2d) if m.groups == 1])
    assert all(0 < value < 1e3 for layer in measured.values() for value in layer)
