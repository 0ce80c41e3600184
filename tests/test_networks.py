"""The networks against published counts, explicit formulas and the order they are built in."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from runs import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convnorm.experiment.data.pixels import height_and_width
from convnorm.experiment.errors import InputError
from convnorm.normalizers import CATALOGUE, Normalizer, fit_to_maps
from gan.networks import ARCHITECTURES, build_discriminator, build_generator
from gan.networks.attention import SelfAttention
from gan.networks.conditional import UNCONDITIONAL
from gan.networks.sngan_resnet import LAYOUTS, DiscriminatorBlock, GeneratorBlock, InputBlock

SIZES = {
    "dcgan": (16, 32, 64),
    "sngan_cnn": (8, 16, 32, 48, (16, 24)),
    "sngan_cnn_wide": (16, 32, 48),
    "sngan_resnet": (16, 32, 48, 64, 96, 128),
}
CONV = nn.Conv2d | nn.ConvTranspose2d
every_network = pytest.mark.parametrize(
    ("arch", "image_size"), [(arch, size) for arch, sizes in SIZES.items() for size in sizes]
)


def plain(layer, *, at_input=False):
    return layer


class Recorder:
    """A normalizer that notes what it is given and puts an elementwise function behind it."""

    def __init__(self, after=nn.Identity):
        self.after = after
        self.layers, self.weights, self.at_input, self.results = [], [], [], []

    def __call__(self, layer, *, at_input=False):
        self.layers.append(layer)
        self.weights.append(layer.weight.detach().clone())
        self.at_input.append(at_input)
        self.results.append(nn.Sequential(layer, self.after()))
        return self.results[-1]


def pair(arch, image_size, channels=3, z_dim=8, width=4, normalize=plain):
    names = ("generator_width", "discriminator_width")
    options = {} if width is None else dict.fromkeys(names, width)
    same = {"image_size": image_size, "channels": channels, "options": options}
    G = build_generator(arch, z_dim=z_dim, **same)
    return G, build_discriminator(arch, normalize, **same)


def modules_of(network, kind):
    return [m for m in network.modules() if isinstance(m, kind)]


# The SNGAN counts are those of the public code bases (the generator of sngan_cnn at 48x48 follows
# from the one at 32x32; those of sngan_resnet from 64x64 on are Mimicry's layers counted by hand,
# less the bias of its last layer; the discriminator's layers of 48x48, 64x64 and 96x96 are the
# same). Those of DCGAN are the PyTorch example's at 64x64 (3,576,704 and
# 2,765,568), plus 3 output biases in G, and in D 961 biases for 1,792 numbers of BatchNorm.
# MACs are in millions per image.
@pytest.mark.parametrize(
    ("arch", "image_size", "z_dim", "parameters", "macs"),
    [
        ("dcgan", 64, 100, (3_576_707, 2_764_737), (104.6, 103.8)),
        ("sngan_cnn", 32, 128, (3_813_379, 2_935_873), (103.5, 108.7)),
        ("sngan_cnn", 48, 128, (5_134_339, 2_946_113), (232.8, 244.6)),
        ("sngan_cnn_wide", 32, 128, (3_813_379, 5_860_865), (103.5, 215.7)),
        ("sngan_resnet", 32, 128, (4_276_739, 1_053_824), (1681.1, 272.1)),
        ("sngan_resnet", 48, 128, (4_878_083, 10_141_440), (827.4, 362.7)),
        ("sngan_resnet", 64, 128, (12_220_675, 10_141_440), (1955.3, 644.8)),
        ("sngan_resnet", 96, 128, (14_862_595, 10_141_440), (4399.5, 1450.8)),
        ("sngan_resnet", 128, 128, (32_150_787, 29_017_856), (9090.1, 2881.2)),
    ],
)
def test_published_networks_have_the_published_size(arch, image_size, z_dim, parameters, macs):
    """A wrong width, bias or kernel changes the parameters, a wrong stride or order the MACs."""
    with torch.device("meta"):
        networks = pair(arch, image_size, z_dim=z_dim, width=None)
        inputs = torch.zeros(1, z_dim), torch.zeros(1, 3, *height_and_width(image_size))
    for network, x, count, mega_macs in zip(networks, inputs, parameters, macs, strict=True):
        assert sum(p.numel() for p in network.parameters()) == count
        with FlopCounterMode(display=False) as counter:
            network(x)
        assert counter.get_total_flops() / 2e6 == pytest.approx(mega_macs, abs=0.05)


@every_network
def test_width_scales_every_layer_in_proportion(arch, image_size):
    for thin, thick in zip(pair(arch, image_size), pair(arch, image_size, width=12), strict=True):
        thin, thick = ([m.in_channels for m in modules_of(n, CONV)] for n in (thin, thick))
        assert 4 in thin
        assert thick == [n if n == 3 else 3 * n for n in thin]


@every_network
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_shapes(arch, image_size, channels, batch_size):
    """A bottom map for another size, or logits that lose the batch when it is 1."""
    G, D = pair(arch, image_size, channels)
    images = G.eval()(torch.randn(batch_size, 8))
    assert images.shape == (batch_size, channels, *height_and_width(image_size))
    assert D(images).shape == (batch_size,)


@pytest.mark.parametrize("arch", SIZES)
def test_images_end_in_tanh(arch):
    G, _ = pair(arch, 32)
    *_, last_bias = G.parameters()
    for sign in (-1, 1):
        nn.init.constant_(last_bias, 100.0 * sign)
        torch.testing.assert_close(G(torch.randn(2, 8)), sign * torch.ones(2, 3, 32, 32))


@every_network
def test_every_parameter_gets_a_finite_gradient(arch, image_size):
    """A layer that is built and never used, or a result that is detached on the way."""
    torch.manual_seed(0)
    G, D = pair(arch, image_size)
    fake = G(torch.randn(4, 8))
    real = torch.rand_like(fake) * 2 - 1
    (F.relu(1 - D(real)).mean() + F.relu(1 + D(fake)).mean()).backward()
    (-D(G(torch.randn(4, 8))).mean()).backward()
    for network in (G, D):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # The gradient of a bias under BatchNorm is zero but for rounding.
            assert name.endswith("bias") or parameter.grad.any(), name


@every_network
def test_normalize_gets_every_layer_once_knows_the_image_and_its_result_runs(arch, image_size):
    recorder = Recorder()
    D = pair(arch, image_size, normalize=recorder)[1]
    layers = modules_of(D, nn.Conv2d | nn.Linear)
    assert sorted(map(id, recorder.layers)) == sorted(map(id, layers))
    on_image = [isinstance(m, nn.Conv2d) and m.in_channels == 3 for m in recorder.layers]
    assert recorder.at_input == on_image
    assert sum(on_image) == (2 if arch == "sngan_resnet" else 1)
    calls = []
    for result in recorder.results:
        result.register_forward_hook(lambda module, *_: calls.append(id(module)))
    D(torch.randn(2, 3, *height_and_width(image_size)))
    assert sorted(calls) == sorted(map(id, recorder.results))


@every_network
def test_plain_discriminator_hides_no_normalizer(arch, image_size):
    """BatchNorm where nobody asked for it: the plain network would not be plain."""
    D = pair(arch, image_size)[1]
    leaves = {type(m).__name__ for m in D.modules() if not list(m.children())}
    pointwise_or_pool = {"LeakyReLU", "ReLU", "AvgPool2d", "SumPool", "Flatten", "Identity"}
    assert leaves <= {"Conv2d", "Linear"} | pointwise_or_pool
    assert not list(D.buffers())
    images = torch.randn(3, 3, *height_and_width(image_size))
    torch.testing.assert_close(D(images)[:1], D(images[:1]))


@every_network
def test_a_normalizer_that_draws_in_a_fork_leaves_the_initial_weights(arch, image_size):
    """Weights drawn after the normalizer has seen the layer, or by a second pass over the net."""

    def drawing(layer, *, at_input=False):
        with torch.random.fork_rng():
            torch.rand(7)
        return nn.utils.parametrizations.weight_norm(layer)

    def weights(normalize):
        torch.manual_seed(5)
        D = pair(arch, image_size, normalize=normalize)[1]
        return [m.weight.detach() for m in modules_of(D, nn.Conv2d | nn.Linear)] + [torch.rand(3)]

    for expected, weight in zip(weights(plain), weights(drawing), strict=True):
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("arch", SIZES)
def test_layers_are_initialized_before_normalize_sees_them_and_not_after(arch):
    recorder = Recorder()
    torch.manual_seed(0)
    build_discriminator(arch, recorder, image_size=32, channels=3)
    for layer, weight in zip(recorder.layers, recorder.weights, strict=True):
        assert torch.equal(layer.weight, weight)
        check_initialization(arch, layer, math.sqrt(2) if weight.shape[2:] == (3, 3) else 1.0)


@pytest.mark.parametrize("arch", SIZES)
def test_generators_are_initialized_by_the_recipe(arch):
    torch.manual_seed(0)
    G = build_generator(arch, image_size=32, channels=3, z_dim=128)
    layers = modules_of(G, CONV | nn.Linear)
    for layer in layers:
        inside_block = layer.weight.shape[2:] == (3, 3) and layer is not layers[-1]
        check_initialization(arch, layer, math.sqrt(2) if inside_block else 1.0)
    for norm in modules_of(G, nn.BatchNorm2d):
        spread, eps = (0.02, 1e-5) if arch == "dcgan" else (0.0, 2e-5)
        assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
        assert norm.weight.std().item() == pytest.approx(spread, rel=0.4)
        assert (norm.eps, norm.momentum) == (eps, 0.1)


def check_initialization(arch, layer, gain):
    """N(0, 0.02), or Glorot uniform of that gain; biases zero."""
    weight = layer.weight.detach()
    std = 0.02
    if arch == "sngan_resnet":
        fans = (weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()
        std = gain * math.sqrt(2 / fans)
        assert weight.abs().max() <= math.sqrt(3) * std
    assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
    assert layer.bias is None or not layer.bias.any()


def test_slopes_are_those_of_the_papers():
    for arch, slope in (("dcgan", 0.2), ("sngan_cnn", 0.1), ("sngan_cnn_wide", 0.1)):
        assert {m.negative_slope for m in modules_of(pair(arch, 32)[1], nn.LeakyReLU)} == {slope}


def test_generator_block_upsamples_by_nearest_neighbour_in_both_branches():
    torch.manual_seed(0)
    block = GeneratorBlock(plain, 3, 5, UNCONDITIONAL)
    norm1, norm2 = modules_of(block, nn.BatchNorm2d)
    conv1, conv2, shortcut = modules_of(block, nn.Conv2d)

    def up(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    x = torch.randn(2, 3, 4, 4)
    residual = conv2(F.relu(norm2(conv1(up(F.relu(norm1(x)))))))
    torch.testing.assert_close(block(x), residual + shortcut(up(x)))


# A 1x1 convolution commutes with pooling. Only with something nonlinear behind each layer can the
# next two tests tell the two orders apart.


def test_input_block_leaves_the_image_alone_and_its_shortcut_pools_first():
    recorder = Recorder(after=nn.Softplus)
    block = InputBlock(recorder, 3, 5)
    conv1, conv2, shortcut = recorder.results
    x = torch.randn(2, 3, 8, 8)
    expected = F.avg_pool2d(conv2(F.relu(conv1(x))), 2) + shortcut(F.avg_pool2d(x, 2))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("out_channels", [3, 5])
@pytest.mark.parametrize("downsample", [True, False])
def test_discriminator_block_shortcut_pools_last(out_channels, downsample):
    recorder = Recorder(after=nn.Softplus)
    block = DiscriminatorBlock(recorder, 3, out_channels, downsample=downsample)
    conv1, conv2, *shortcut = recorder.results
    assert len(shortcut) == (downsample or out_channels != 3)
    assert conv1[0].out_channels == 3
    x = torch.randn(2, 3, 8, 8)
    residual, skip = conv2(F.relu(conv1(F.relu(x)))), shortcut[0](x) if shortcut else x
    if downsample:
        residual, skip = F.avg_pool2d(residual, 2), F.avg_pool2d(skip, 2)
    torch.testing.assert_close(block(x), residual + skip)


@pytest.mark.parametrize(
    ("image_size", "last_map"), [(16, 4), (32, 8), (48, 3), (64, 2), (96, 3), (128, 4)]
)
def test_resnet_discriminator_sums_over_the_map(image_size, last_map):
    """A mean would divide the logit by the pixels of the last map; a missing ReLU would keep -1."""
    recorder = Recorder()
    D = pair("sngan_resnet", image_size, normalize=recorder)[1].requires_grad_(False)
    for parameter in D.parameters():
        parameter.zero_()
    *_, last_block_conv, head = (m for m in recorder.layers if m.weight.shape[2:] != (1, 1))
    head.weight.fill_(1.0)
    last_block_conv.bias.fill_(1.0)
    last_block_conv.bias[0] = -1.0
    logit = D(torch.randn(1, 3, *height_and_width(image_size))).item()
    assert logit == (head.in_features - 1) * last_map**2


# Self-attention


def attended(image_size, side, normalize=plain, width=16):
    names = ("generator_width", "discriminator_width")
    same = {"image_size": image_size, "channels": 3}
    same["options"] = {**dict.fromkeys(names, width), "attention": side}
    torch.manual_seed(0)
    G = build_generator("sngan_resnet", z_dim=8, **same)
    torch.manual_seed(1)
    return G, build_discriminator("sngan_resnet", normalize, **same)


@pytest.mark.parametrize(
    ("image_size", "sides"),
    [
        (16, (4, 8)),
        (32, (8, 16)),
        (48, (12, 24)),
        (64, (8, 16, 32)),
        (96, (12, 24, 48)),
        (128, (8, 16, 32, 64)),
    ],
)
def test_self_attention_sees_maps_of_the_side_asked_for_in_both_networks(image_size, sides):
    """And no other side is taken: the first block with that map is followed by one attention."""
    for side in range(1, image_size + 1):
        if side not in sides:
            with pytest.raises(InputError, match=r"model\.options\.attention"):
                attended(image_size, side, width=1)
            continue
        inputs = torch.randn(1, 8), torch.randn(1, 3, image_size, image_size)
        for network, x in zip(attended(image_size, side, width=1), inputs, strict=True):
            (attention,) = modules_of(network, SelfAttention)
            seen = []
            attention.register_forward_hook(lambda _, x, y, seen=seen: seen.append((x[0], y)))
            network(x)
            ((x, y),) = seen
            assert x.shape == y.shape
            assert x.shape[2:] == (side, side)
    assert LAYOUTS.keys() == {16, 32, 48, 64, 96, 128}


def test_sagan_has_its_published_parameters():
    """At 32x32 of 128 pixels: 256 channels in G, 128 in D, and 5 / 4 C^2 + 1 weights for C."""
    with torch.device("meta"):
        pairs = [attended(128, side, width=64) for side in (None, 32)]
    for before, after, channels in zip(*pairs, (256, 128), strict=True):
        added = sum(p.numel() for p in after.parameters()) - sum(
            p.numel() for p in before.parameters()
        )
        assert added == 5 * channels**2 // 4 + 1


@pytest.mark.parametrize("kind", CATALOGUE)
def test_with_self_attention_networks_start_as_those_without_it(kind):
    """gamma starts at 0, and its weights are drawn behind all others, whatever the normalizer."""
    inputs = torch.randn(2, 8), torch.randn(2, 3, 16, 16)
    pairs = [attended(16, side, Normalizer(kind), width=4) for side in (None, 8)]
    for before, after, x in zip(*pairs, inputs, strict=True):
        for network in (before, after):
            fit_to_maps(network, x[:1], torch.zeros(1, dtype=torch.long))
        # What is fitted to maps starts from random vectors, drawn as the layers come.
        close = 0.0 if CATALOGUE[kind].fit is None else 0.01
        torch.testing.assert_close(after(x), before(x), rtol=close, atol=0)
        (attention,) = modules_of(after, SelfAttention)
        attention.gamma.data.fill_(0.5)
        assert not torch.allclose(after(x), before(x))


def test_self_attention_is_its_formula():
    """In loops over places; the sums of a softmax over queries, or no pooling, differ."""
    torch.manual_seed(0)
    attention = SelfAttention(plain, 16).double()
    attention.gamma.data.fill_(0.7)
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    f, g, h = (conv(x) for conv in (attention.query, attention.key, attention.value))
    assert (f.shape[1], g.shape[1], h.shape[1]) == (2, 2, 8)
    blocks = [(slice(i, i + 2), slice(j, j + 2)) for i in (0, 2) for j in (0, 2, 4)]
    keys, values = ([each[:, :, *b].amax((2, 3)) for b in blocks] for each in (g, h))
    seen = torch.zeros(2, 8, 4, 6, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            scores = [(f[:, :, i, j] * key).sum(1).exp() for key in keys]
            for score, value in zip(scores, values, strict=True):
                seen[:, :, i, j] += (score / sum(scores))[:, None] * value
    torch.testing.assert_close(attention(x), x + 0.7 * attention.out(seen))


def test_self_attention_trains_and_takes_second_derivatives():
    """Its convolutions get gradients once gamma is not 0, and penalties second derivatives."""
    _, D = attended(16, 8, width=16)
    (attention,) = modules_of(D, SelfAttention)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    D(images).sum().backward()
    assert attention.gamma.grad != 0
    assert not any(p.grad.any() for n, p in attention.named_parameters() if n != "gamma")
    attention.gamma.data.fill_(0.5)
    (gradient,) = torch.autograd.grad(D(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in attention.parameters())


def test_the_convolutions_of_self_attention_are_normalized_as_all_others():
    recorder = Recorder()
    _, D = attended(32, 16, recorder)
    (attention,) = modules_of(D, SelfAttention)
    layers = modules_of(D, nn.Conv2d | nn.Linear)
    assert sorted(map(id, recorder.layers)) == sorted(map(id, layers))
    assert not any(recorder.at_input[-4:])
    assert recorder.layers[-4:] == modules_of(attention, nn.Conv2d)
    for layer, weight in zip(recorder.layers[-4:], recorder.weights[-4:], strict=True):
        assert layer.bias is None
        check_initialization("sngan_resnet", layer, 1.0)
        assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arch": "vgg"}, "model.arch: 'vgg', expected one of dcgan, sngan_cnn, "),
        ({"arch": "dcgan", "image_size": 48}, "data.image_size: 48, dcgan expects 16, 32 or 64"),
        ({"image_size": 30}, "data.image_size: 30, sngan_cnn expects multiples of 8"),
        ({"image_size": (32, 30)}, r"data.image_size: \[32, 30\], sngan_cnn expects multiples"),
        ({"arch": "dcgan", "image_size": (32, 64)}, r"\[32, 64\], dcgan expects 16, 32 or 64"),
        (
            {"arch": "sngan_resnet", "image_size": 256},
            "data.image_size: 256, sngan_resnet expects 16, 32, 48, 64, 96 or 128",
        ),
        (
            {"arch": "sngan_resnet", "image_size": (64, 128)},
            r"data.image_size: \[64, 128\], sngan_resnet expects 16, 32, 48, 64, 96 or 128",
        ),
        (
            {"arch": "sngan_resnet", "image_size": 32, "options": {"attention": 32}},
            r"model\.options\.attention: 32 is not allowed; expected the side of a map in both "
            r"networks of 32 pixels \(8, 16\), or null",
        ),
        ({"channels": 4}, "data: images with 4 channels, expected 1"),
        (
            {"options": {"generator_width": 0}},
            r"model\.options\.generator_width: 0 is not allowed; expected 1 to 8192",
        ),
        (
            {"options": {"discriminator_width": "wide"}},
            r"model\.options\.discriminator_width: wide is not allowed; expected int",
        ),
        (
            {"options": {"generator_widht": 4}},
            r"model\.options\.generator_widht: no such key; .* model\.options\.generator_width",
        ),
    ],
)
def test_wrong_input_is_one_line_that_names_the_key(changed, message):
    wrong = {"arch": "sngan_cnn", "image_size": 32, "channels": 3} | changed
    arch = wrong.pop("arch")
    with pytest.raises(InputError, match=message):
        build_generator(arch, z_dim=8, **wrong)
    with pytest.raises(InputError, match=message):
        build_discriminator(arch, plain, **wrong)


@every_network
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_each_width_is_that_of_its_network_alone(arch, image_size, network):
    """And null, where it is allowed, is the published one."""

    def sizes(options):
        with torch.device("meta"):
            same = {"image_size": image_size, "channels": 3, "options": options}
            pair = build_generator(arch, z_dim=8, **same), build_discriminator(arch, plain, **same)
        return [sum(p.numel() for p in net.parameters()) for net in pair]

    published, changed = sizes({}), sizes({f"{network}_width": 3})
    assert [a != b for a, b in zip(published, changed, strict=True)] == [
        network == "generator",
        network == "discriminator",
    ]
    if arch == "sngan_resnet":
        assert sizes({f"{network}_width": None}) == published


def test_wrong_z_dim_is_named():
    with pytest.raises(InputError, match=r"model\.z_dim: 0, expected 1 or more"):
        build_generator("dcgan", image_size=32, channels=3, z_dim=0)


def test_every_architecture_is_tested():
    assert SIZES.keys() == ARCHITECTURES.keys()


def test_the_documentation_has_the_counts_of_the_networks():
    page = (ROOT / "docs" / "gan.md").read_text()
    row = re.compile(r"^\| (?:`(\w+)`)? ?\| (\d+) \| ([\d,]+) \| ([\d,]+) \|", re.MULTILINE)
    arch, found = None, 0
    for name, size, *counts in row.findall(page):
        arch = name or arch
        z_dim = 100 if arch == "dcgan" else 128
        with torch.device("meta"):
            networks = pair(arch, int(size), z_dim=z_dim, width=None)
        for network, count in zip(networks, counts, strict=True):
            assert sum(p.numel() for p in network.parameters()) == int(count.replace(",", ""))
        found += 1
    assert found == 10
