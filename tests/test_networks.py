"""The networks against published counts, explicit formulas and the order they are built in."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convnorm.experiment.errors import InputError
from gan.networks import ARCHITECTURES, build_discriminator, build_generator
from gan.networks.sngan_resnet import DiscriminatorBlock, GeneratorBlock, InputBlock

SIZES = {
    "dcgan": (16, 32, 64),
    "sngan_cnn": (8, 16, 32, 48),
    "sngan_cnn_wide": (16, 32, 48),
    "sngan_resnet": (16, 32, 48),
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
# from the one at 32x32). Those of DCGAN are the PyTorch example's at 64x64 (3,576,704 and
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
    ],
)
def test_published_networks_have_the_published_size(arch, image_size, z_dim, parameters, macs):
    """A wrong width, bias or kernel changes the parameters, a wrong stride or order the MACs."""
    with torch.device("meta"):
        networks = pair(arch, image_size, z_dim=z_dim, width=None)
        inputs = torch.zeros(1, z_dim), torch.zeros(1, 3, image_size, image_size)
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
    assert images.shape == (batch_size, channels, image_size, image_size)
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
    D(torch.randn(2, 3, image_size, image_size))
    assert sorted(calls) == sorted(map(id, recorder.results))


@every_network
def test_plain_discriminator_hides_no_normalizer(arch, image_size):
    """BatchNorm where nobody asked for it: the plain network would not be plain."""
    D = pair(arch, image_size)[1]
    leaves = {type(m).__name__ for m in D.modules() if not list(m.children())}
    pointwise_or_pool = {"LeakyReLU", "ReLU", "AvgPool2d", "SumPool", "Flatten", "Identity"}
    assert leaves <= {"Conv2d", "Linear"} | pointwise_or_pool
    assert not list(D.buffers())
    images = torch.randn(3, 3, image_size, image_size)
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
    block = GeneratorBlock(plain, 3, 5)
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


@pytest.mark.parametrize(("image_size", "last_map"), [(16, 4), (32, 8), (48, 3)])
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
    logit = D(torch.randn(1, 3, image_size, image_size)).item()
    assert logit == (head.in_features - 1) * last_map**2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arch": "vgg"}, "model.arch: 'vgg', expected one of dcgan, sngan_cnn, "),
        ({"arch": "dcgan", "image_size": 48}, "data.image_size: 48, dcgan expects 16, 32 or 64"),
        ({"image_size": 30}, "data.image_size: 30, sngan_cnn expects a multiple of 8"),
        ({"arch": "sngan_resnet", "image_size": 64}, "data.image_size: 64, .* 16, 32 or 48"),
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
