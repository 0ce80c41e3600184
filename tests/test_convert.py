"""Conversion of models of the wild: what is replaced, what stays, and what the report says."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from convnorm import CATALOGUE, ConvNorm2d, Normalizer
from convnorm.convert import convert, revert
from convnorm.execution import observe
from convnorm.normalizers import normalized_layers
from convnorm.selection import CONVERTERS

CHANNELS = 6


def conv3(inputs=CHANNELS, outputs=CHANNELS, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **{"bias": False, **options})


class PreActivation(nn.Module):
    """By the order of declaration conv2 of one block would belong to bn1 of the next."""

    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(CHANNELS), conv3()
        self.bn2, self.conv2 = nn.BatchNorm2d(CHANNELS), conv3()

    def forward(self, x):
        y = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(y)))


class OutOfOrder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv3(), conv3()
        self.bn1, self.bn2 = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


class CalledTwice(nn.Module):
    """One convolution and one BatchNorm, under two names each."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv3(), nn.BatchNorm2d(CHANNELS)
        self.again = nn.Sequential(self.conv, self.bn)

    def forward(self, x):
        return self.again(self.bn(self.conv(x)).relu())


class BesideSkip(nn.Module):
    """The output of a convolution goes into a BatchNorm and past it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv3(), nn.BatchNorm2d(CHANNELS)

    def forward(self, x):
        y = self.conv(x)
        y = self.bn(y).relu_() + y
        return y


class ControlFlow(nn.Module):
    """What a tracer cannot follow; its second branch is for maps of negative mean."""

    def __init__(self):
        super().__init__()
        self.positive, self.negative = conv3(), conv3()

    def forward(self, x):
        return self.positive(x) if x.mean() > 0 else self.negative(x)


class Net(nn.Module):
    """A small network of the usual parts."""

    def __init__(self, width=8, inputs=3):
        super().__init__()
        self.stem = conv3(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv = conv3(width, width, stride=2)
        self.bn2 = nn.BatchNorm2d(width)
        self.point = nn.Conv2d(width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = self.bn1(self.stem(x)).relu()
        x = self.bn2(self.conv(x)).relu()
        x = self.bn3(self.point(x)).relu()
        return self.fc(x.mean((2, 3)))


def maps(channels=CHANNELS, size=6, n=2, seed=1):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(make, *args):
    torch.manual_seed(0)
    return make(*args)


def assert_equal_state(one, other):
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


HANDWRITTEN = {
    PreActivation: {"conv1": {"batch_norm"}, "conv2": {"add"}},
    OutOfOrder: {"conv1": {"batch_norm"}, "conv2": {"batch_norm"}},
    CalledTwice: {"conv": {"batch_norm"}},
    BesideSkip: {"conv": {"batch_norm", "add"}},
    ControlFlow: {"positive": {"return"}},
    conv3: {"": {"return"}},
}


@pytest.mark.parametrize("make", HANDWRITTEN, ids=lambda make: make.__name__)
@pytest.mark.parametrize("with_example", [False, True])
def test_models_that_confuse_other_ways(make, with_example):
    """Names, sharing and what takes an output, where order and tracing are wrong."""
    model = seeded(make).train()
    before = copy.deepcopy(model)
    x = maps().abs()
    converted, report = convert(model, skip=("unused",), example=x if with_example else None)
    assert_equal_state(model, before)
    assert {type(m) for m in model.modules()} == {type(m) for m in before.modules()}
    if with_example:
        uses = observe(model, x).uses
        names = {module: name for name, module in model.named_modules()}
        assert {names[conv]: use.users for conv, use in uses.items()} == HANDWRITTEN[make]
        assert report.converted == tuple(HANDWRITTEN[make])
        assert report.output_error > 0
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            new = converted.get_submodule(name)
            first = next(n for n, m in model.named_modules() if m is module)
            assert isinstance(new, ConvNorm2d) == (first in report.converted)
    old, new = model.state_dict(), converted.state_dict()
    assert [name for name in new if name in old] == list(old)
    added = {name.split("affine.")[0] for name in new if name not in old}
    assert added == {
        f"{name}." if name else ""
        for name, m in converted.named_modules(remove_duplicate=False)
        if isinstance(m, ConvNorm2d)
    }
    assert_equal_state(revert(converted), before)
    assert converted(x).shape == model(x).shape


def test_one_convolution_under_many_names_is_one_layer():
    model = CalledTwice()
    converted, report = convert(model)
    assert converted.conv is converted.again[0]
    assert isinstance(converted.conv, ConvNorm2d)
    assert [(row.layer, row.reason) for row in report.rows] == [
        ("conv", "affine 3x3, also again.0")
    ]


def test_one_convolution_at_two_places_of_one_module_is_replaced_at_both():
    conv = conv3(8, 8)
    converted, report = convert(nn.Sequential(conv, nn.ReLU(), conv))
    assert converted[0] is converted[2]
    assert isinstance(converted[0], ConvNorm2d)
    assert report.converted == ("0",)


def test_a_parameter_of_two_convolutions_stays_one():
    model = nn.Sequential(conv3(8, 8), conv3(8, 8))
    model[1].weight = model[0].weight
    converted, _ = convert(model)
    assert converted[0].weight is converted[1].weight
    assert converted[0].weight is not model[0].weight


def test_a_model_is_changed_in_place_only_if_asked():
    model = seeded(Net)
    parameters = dict(model.named_parameters())
    same, _ = convert(model, inplace=True)
    assert same is model
    assert isinstance(model.conv, ConvNorm2d)
    assert all(model.get_parameter(name) is p for name, p in parameters.items())
    assert revert(model, inplace=True) is model
    assert type(model.conv) is nn.Conv2d
    assert all(model.get_parameter(name) is p for name, p in parameters.items())


def test_modes_gradients_dtype_hooks_and_attributes_go_over():
    model = seeded(Net).double()
    model.conv.eval().requires_grad_(False)
    model.conv.note = "mine"
    seen = []
    model.conv.register_forward_hook(lambda module, args, output: seen.append(module))
    converted, _ = convert(model, inplace=True)
    layer = converted.conv
    assert not any(m.training for m in layer.modules())
    assert converted.point.training
    assert not any(p.requires_grad for p in layer.parameters())
    assert layer.affine.weight.dtype == torch.float64
    assert layer.note == "mine"
    converted(maps(3).double())
    assert seen == [layer]
    back = revert(converted).conv
    assert (back.note, back.training, back.weight.requires_grad) == ("mine", False, False)
    assert not hasattr(back, "grid")
    assert len(back._forward_hooks) == 1


@pytest.mark.parametrize("kind", ["convnorm", "spectral", "spectral_convnorm"])
def test_the_handle_of_a_hook_still_removes_it(kind):
    conv, seen = conv3(8, 8), []
    hook = conv.register_forward_hook(lambda module, args, output: seen.append(module))
    layer, _ = convert(conv, kind, example=maps(8), inplace=True)
    seen.clear()
    layer(maps(8))
    hook.remove()
    layer(maps(8))
    assert seen == [layer]


def test_hooks_are_neither_in_the_way_of_images_nor_called_twice():
    """One that shifts the input is a part of the model that the affine is fitted to."""
    model = nn.Sequential(seeded(lambda: conv3(8, 8)))
    model[0].register_forward_pre_hook(lambda module, args: (args[0] - 3,))
    model[0].register_forward_hook(lambda module, args, output: None)
    images = maps(8, n=8)
    expected = model(images)
    converted, report = convert(model, calibrate=images)
    error = (converted(images) - expected).norm() / expected.norm()
    assert report.rows[0].error == pytest.approx(error.item(), rel=0.05)
    assert report.images == 8


def test_one_image_without_a_batch_is_one():
    assert convert(nn.Sequential(conv3(8, 8)), calibrate=[maps(8)[0]])[1].images == 1


# Networks of torchvision and timm, which no weights are made of.


def built(make):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize(
    ("name", "example", "converted", "left"),
    [
        ("resnet18", False, 19, {"sees the image": 1}),
        ("vgg11_bn", True, 7, {"sees the image": 1}),
        ("mobilenet_v3_small", False, 22, {"squeeze": 18, "depthwise": 11, "sees the image": 1}),
        ("mobilenet_v3_small", True, 22, {"map of 1x1": 18, "depthwise": 11, "sees the image": 1}),
        ("convnext_tiny", False, 3, {"depthwise": 18, "sees the image": 1}),
    ],
)
def test_networks_of_torchvision(name, example, converted, left):
    models = pytest.importorskip("torchvision.models")
    check_network(built(lambda: models.get_model(name)), example, converted, left)


@pytest.mark.parametrize(
    ("name", "example", "converted", "left"),
    [
        ("resnet18", True, 19, {"sees the image": 1}),
        ("tf_efficientnet_lite0", False, 32, {"depthwise": 12, "Conv2dSame": 5}),
        ("regnety_002", False, 30, {"squeeze": 26, "groups": 13, "sees the image": 1}),
        ("repvgg_a0", True, 42, {"sees the image": 2}),
        ("nf_resnet26", False, 0, {"ScaledStdConv2d": 29}),
    ],
)
def test_networks_of_timm(name, example, converted, left):
    timm = pytest.importorskip("timm")
    network = built(lambda: timm.create_model(name))
    if converted:
        check_network(network, example, converted, left)
    else:
        with pytest.raises(ValueError, match="29 x ScaledStdConv2d, a subclass with a forward"):
            convert(network)


def check_network(network, example, converted, left):
    x = torch.empty(1, 3, 64, 64, device="meta") if example else None
    twin, report = convert(network, example=x)
    assert len(report.converted) == converted
    reasons = list(report.left.values())
    assert {part: sum(part in reason for reason in reasons) for part in left} == left
    assert len(report.rows) == converted + sum(left.values())
    names = list(network.state_dict())
    assert [name for name in twin.state_dict() if ".affine." not in name] == names
    assert list(revert(twin).state_dict()) == names


# Which layers.


class Excite(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x * self.fc1(x.mean((2, 3), keepdim=True)).sigmoid()


class SqueezeExcitation(Excite):
    pass


class Mixed(nn.Module):
    """One layer of each sort that is left by default, and one that is converted."""

    def __init__(self):
        super().__init__()
        self.stem = conv3(3, 8)
        self.depthwise = conv3(8, 8, groups=8)
        self.grouped = conv3(8, 8, groups=2)
        self.excite, self.named = Excite(), SqueezeExcitation()
        self.dense = conv3(8, 8)
        self.auxiliary = conv3(8, 8)
        self.narrow = conv3(8, 4)
        self.last = conv3(4, 8)

    def forward(self, x):
        x = self.grouped(self.depthwise(self.stem(x)))
        x = self.dense(self.named(self.excite(x)))
        x = self.last(self.narrow(x))
        return self.auxiliary(x) if self.training else x


def test_what_is_left_by_default_and_why():
    model = Mixed()
    _, report = convert(model)
    assert report.left == {
        "stem": "sees the image (3 channels)",
        "depthwise": "depthwise",
        "grouped": "2 groups",
        "named.fc1": "of squeeze and excitation",
        "last": "sees the image (4 channels)",
    }
    _, report = convert(model, example=maps(3))
    assert report.left == {
        "stem": "sees the image (3 channels)",
        "depthwise": "depthwise",
        "grouped": "2 groups",
        "excite.fc1": "map of 1x1",
        "named.fc1": "map of 1x1",
        "auxiliary": "not run by the example",
    }
    for skip, left in (((), set()), (("grouped",), {"depthwise", "grouped"})):
        _, report = convert(model, example=maps(3), skip=skip)
        assert set(report.left) == left
    assert len(report.rows) == 9


def test_the_image_is_of_few_channels_that_nothing_mixed():
    """Behind what does not mix channels, and not the features that a part of a model takes."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(True), conv3(3, 8), conv3(8, 4), conv3(4, 8))
    assert set(convert(model, example=maps(3))[1].left) == {"2"}
    linear = nn.Sequential(nn.Linear(6, 6), conv3(3, 8))
    assert convert(linear, example=maps(3))[1].left == {}
    assert convert(conv3(8, 8), example=maps(8))[1].left == {}


@pytest.mark.parametrize(
    ("select", "converted"),
    [
        ("conv*", {"conv"}),
        (["conv", "point"], {"conv", "point"}),
        (lambda name, conv: conv.stride == (2, 2), {"conv"}),
        ("*", {"conv", "point"}),
    ],
    ids=["a pattern", "patterns", "a predicate", "all"],
)
def test_select_by_names_or_by_a_predicate(select, converted):
    _, report = convert(Net(), select=select)
    assert set(report.converted) == converted
    assert report.left["stem"].startswith("sees the image" if select == "*" else "not selected")


class OwnForward(nn.Conv2d):
    """Pads by itself, as Conv2dSame of timm."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


def replaced_forward():
    conv = nn.Conv2d(8, 8, 3)
    conv.forward = lambda x: x
    return conv


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: parametrizations.weight_norm(conv3(8, 8)), "normalize first, then parametrize"),
        (lambda: prune.l1_unstructured(conv3(8, 8), "weight", 3), "weight_mask, weight_orig"),
        (lambda: nn.LazyConv2d(8, 3), "lazy: run the model once"),
        (lambda: nn.ConvTranspose2d(8, 8, 3), "ConvTranspose2d, not a 2-D convolution"),
        (lambda: nn.Conv1d(8, 8, 3), "Conv1d, not a 2-D convolution"),
        (lambda: OwnForward(8, 8, 3), "OwnForward, a subclass with a forward of its own"),
        (lambda: type("Mine", (nn.Conv2d,), {})(8, 8, 3), r"Mine, a subclass \(see CONVERTERS\)"),
        (replaced_forward, "its forward was replaced"),
        (lambda: ConvNorm2d(8, 8, 3), "normalized before, by convnorm"),
        (lambda: Normalizer("own")(conv3(8, 8)), "normalized before, by own"),
    ],
)
def test_what_cannot_be_converted_is_left_with_its_reason(make, reason):
    """Also where it is asked for; alone, it is an error."""
    model = nn.Sequential(conv3(8, 8), make())
    left = model[1]
    converted, report = convert(model, select="*", skip=(), inplace=True)
    assert report.converted == ("0",)
    assert converted[1] is left
    with pytest.raises(ValueError, match=f"no convolution was converted: 1 x .*{reason}"):
        convert(nn.Sequential(make()), inplace=True)


def test_a_model_that_cannot_be_copied_can_be_changed_itself():
    model = nn.Sequential(conv3(8, 8), prune.l1_unstructured(conv3(8, 8), "weight", 3))
    for function in (convert, revert):
        with pytest.raises(RuntimeError, match=r"cannot be copied, but .*\(inplace=True\)"):
            function(model)


def test_a_layer_that_convert_made_is_left_by_a_second_conversion():
    once, _ = convert(Net(), select="conv")
    twice, report = convert(once)
    assert report.converted == ("point",)
    assert report.left["conv"] == "normalized before, by convnorm"
    assert [name for name, _, _ in normalized_layers(twice)] == ["conv", "point"]


def test_a_converter_makes_a_layer_of_a_subclass(monkeypatch):
    class Padded(ConvNorm2d):
        def forward(self, x):
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    def padded(conv, normalizer):
        plain = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False)
        plain.weight = conv.weight
        options = {"affine": normalizer.affine, "affine_init": normalizer.affine_init}
        return Padded.from_conv(plain, grid="native", batch_norm=False, **options)

    monkeypatch.setitem(CONVERTERS, OwnForward, padded)
    model = nn.Sequential(conv3(8, 8), OwnForward(8, 8, 3, bias=False))
    converted, report = convert(model, calibrate=[maps(8)])
    assert report.converted == ("0", "1")
    assert converted(maps(8)).shape == (2, 8, 6, 6)
    assert report.rows[1].error < 0.3
    with pytest.raises(ValueError, match="1: a Padded that convert did not make"):
        revert(converted)


# Kinds.

TAKEN = [k for k, v in CATALOGUE.items() if v.normalizes_convolution and not v.normalizes_map]


def test_kinds_of_a_convolution_are_taken_and_others_refused():
    assert [
        *("weight", "spectral", "bidirectional", "weight_standardization", "convnorm"),
        *("operator", "spectral_convnorm", "oni", "own", "aol"),
    ] == TAKEN
    for kind in set(CATALOGUE) - set(TAKEN):
        with pytest.raises(ValueError, match=f"kind '{kind}' is no normalizer of a convolution"):
            convert(Net(), kind)


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("options", [{}, {"multiplier": True, "scale": 2.0}])
def test_every_kind_goes_on_and_off(kind, options):
    """The report says what becomes of the names; the way back restores every bit."""
    model = seeded(Net)
    model.conv.eval().requires_grad_(False)
    state, expected = torch.get_rng_state(), copy.deepcopy(model)
    converted, report = convert(model, kind, example=maps(3), **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert report.converted == ("conv", "point")
    assert not any(p.requires_grad for p in converted.conv.parameters())
    assert not any(m.training for m in converted.conv.modules())
    names = {name: set(model.get_submodule(name).state_dict()) for name in report.converted}
    for row in report.rows:
        if row.converted:
            new = set(converted.get_submodule(row.layer).state_dict())
            assert new == names[row.layer] - set(row.lost_names) | set(row.new_names)
    for result in (revert(converted), model):
        assert_equal_state(result, expected)
        assert type(result.conv) is nn.Conv2d
    assert torch.equal(revert(converted).eval()(maps(3)), expected.eval()(maps(3)))
    assert converted(maps(3)).isfinite().all()


def test_kinds_that_are_fitted_get_the_size_of_the_maps():
    converted, _ = convert(Net(), "operator", example=maps(3, size=10))
    (norm,) = (m for m in converted.conv.modules() if hasattr(m, "u"))
    assert norm.u.shape[2:] == (10, 10)
    with pytest.raises(ValueError, match="'operator' is fitted to the maps: give an example"):
        convert(Net(), "operator")
    twice = nn.Sequential(*[conv3(8, 8, stride=2)] * 2, conv3(8, 8))
    _, report = convert(twice, "operator", example=maps(8, size=8))
    assert report.left == {
        "0": "runs on maps of several sizes (4x4, 8x8); operator is fitted to one, also 1"
    }


@pytest.mark.parametrize(
    ("behind", "bias", "example", "calibrate", "affine"),
    [
        (nn.BatchNorm2d(8), False, None, None, False),
        (nn.BatchNorm2d(8), False, maps(8), None, False),
        (nn.BatchNorm2d(8), False, None, "weights", True),
        (nn.ReLU(), False, maps(8), None, True),
        (nn.BatchNorm2d(8), True, None, None, True),
        (nn.BatchNorm2d(8), True, maps(8), None, False),
    ],
)
def test_a_1x1_kernel_has_an_affine_where_its_scale_counts(
    behind, bias, example, calibrate, affine
):
    model = nn.Sequential(nn.Conv2d(8, 8, 1, bias=bias), behind)
    converted, report = convert(model, skip=(), example=example, calibrate=calibrate)
    assert (converted[0].affine is not None) == affine
    assert report.rows[0].reason == ("affine 1x1" if affine else "weight normalization")
    if calibrate:
        torch.testing.assert_close(converted.eval()(maps(8)), model.eval()(maps(8)))


# The example.


class Restless(nn.Module):
    """Counts its calls, replaces a buffer, draws numbers, and takes two inputs by name."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv3(8, 8), nn.BatchNorm2d(8)
        self.drop = nn.Dropout()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x, weight):
        self.calls += 1
        self.last = x.mean()[None]
        return {"y": [self.drop(self.bn(self.conv(x))) * weight + torch.rand(())], "n": 3}


@pytest.mark.parametrize(
    "form", [tuple, lambda values: dict(zip(["x", "weight"], values, strict=True))]
)
def test_the_example_leaves_no_trace(form):
    model = seeded(Restless)
    model.bn.eval()
    before = copy.deepcopy(model.state_dict())
    last, state = model.last, torch.get_rng_state()
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    _, report = convert(model, example=form((x, torch.tensor(2.0))), inplace=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.last is last
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (model.training, model.bn.training) == (True, False)
    assert report.output_error > 0


class HeldElsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv3(8, 8)
        self.layers = [self.conv]

    def forward(self, x):
        return self.layers[0](x)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (HeldElsewhere, {"example": maps(8)}, RuntimeError, "it holds it elsewhere"),
        (Net, {"grid": "half"}, ValueError, "conv: grid must be one of"),
        (Net, {"eps": -1.0}, ValueError, "normalizer.eps: -1.0 is not allowed"),
        (Net, {"gird": "full"}, TypeError, "gird"),
        (Net, {"batch_norm": True}, ValueError, "convert leaves BatchNorms to the model"),
        (Net, {"kind": "convnorn"}, ValueError, "normalizer.kind: 'convnorn'"),
        (Net, {"kind": Normalizer("convnorm"), "eps": 0.0}, ValueError, "eps: set the options"),
        (Net, {"select": ["conv", "layer?"]}, ValueError, "'layer.' matches the name of no conv"),
        (Net, {"select": [3]}, TypeError, "3 is no pattern"),
        (Net, {"select": "stem"}, ValueError, r"1 x sees the image \(3 channels\)"),
        (Net, {"skip": ("images",)}, ValueError, "skip: 'images' is none of unused, grouped"),
        (Net, {"calibrate": "images"}, ValueError, "'images' is not 'weights'"),
        (Net, {"calibrate": 3}, TypeError, "int is no iterable of inputs"),
        (Net, {"calibrate": []}, ValueError, "no inputs"),
        (Net, {"calibrate": "weights", "affine": False}, ValueError, "ConvNorm2d with an affine"),
        (Net, {"calibrate": "weights", "kind": "spectral"}, ValueError, "with an affine"),
        (
            Net,
            {"calibrate": maps(3), "affine_mode": "circular", "grid": "full"},
            ValueError,
            "cannot be fitted to images",
        ),
        (Net, {"calibrate": [maps(3), maps(3) * torch.nan]}, ValueError, "conv: its maps are not"),
        (lambda: nn.Linear(2, 2), {}, ValueError, "the model has no convolution"),
        (
            lambda: nn.Sequential(conv3(8, 8), nn.LazyLinear(2)),
            {"example": maps(8)},
            ValueError,
            "1.weight is lazy: run the model once",
        ),
    ],
)
def test_an_error_is_one_line_and_leaves_the_model_as_it_was(make, options, error, message):
    model = make()
    expected, modules = copy.deepcopy(model), list(model.modules())
    with pytest.raises(error, match=message) as raised:
        convert(model, inplace=True, **options)
    assert "\n" not in str(raised.value)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    if not isinstance(model, nn.Sequential):  # whose lazy parameters have no values
        assert_equal_state(model, expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(ConvNorm2d(8, 8, 3)), "0: a ConvNorm2d with a BatchNorm of its own"),
        (parametrizations.weight_norm(convert(conv3(8, 8))[0]), "the model: a ParametrizedConv"),
        (Normalizer("spectral", batch_norm=True)(conv3(8, 8)), "the model: a Normalized that"),
    ],
)
def test_revert_refuses_what_no_plain_convolution_is(model, message):
    with pytest.raises(ValueError, match=message):
        revert(model)


def test_revert_leaves_what_nobody_converted():
    model = nn.Sequential(parametrizations.weight_norm(conv3(8, 8)), conv3(8, 8))
    assert_equal_state(revert(model), model)


def test_the_report_is_a_table():
    model = seeded(Net, 8)
    _, report = convert(model, calibrate=[maps(3, n=4)], select=["conv", "stem"])
    lines = str(report).splitlines()
    error, output = f"{report.rows[1].error:.1%}", f"{report.output_error:.1%}"
    assert lines == [
        "layer  action     error  reason",
        "stem   left              sees the image (3 channels)",
        f"conv   converted  {error:<5}  affine 3x3",
        "point  left              not selected",
        "",
        "1 of 3 converted to convnorm.",
        "State dict of a converted layer: + affine.weight, affine.bias",
        "The affines start by least squares on 4 images, near the convolutions: now fine-tune.",
        f"Error of the model's output on the example: {output}.",
    ]
    _, report = convert(conv3(8, 8), "weight")
    assert "(the model)  converted" in str(report)
    assert "State dict of a converted layer: weight -> parametrizations.weight.original" in str(
        report
    )
