"""Checkpoints of ConvNorm's published code against networks in its layout, written here anew."""

import json
import re

import pytest
import reference
import torch
import torch.nn.functional as F
from runs import script
from torch import nn

from classification.evaluated_images import subject_of
from classification.evaluation_options import Options
from classification.label_noise import CIFAR10
from classification.reference import load_reference
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError
from convnorm.parametrizations import ONI


class PrecConv(nn.Module):
    """ConvNorm with its depthwise affine and BatchNorm."""

    def __init__(self, inputs, outputs, size, stride, padding):
        super().__init__()
        self.weight = nn.Conv2d(inputs, outputs, size).weight
        self.register_buffer("running_V", torch.ones(outputs, 4, 3))
        self.bpconv = nn.Conv2d(outputs, outputs, size, padding=size // 2, groups=outputs)
        self.batch_norm = nn.BatchNorm2d(outputs)
        self.geometry = stride, padding

    def forward(self, x):
        return self.batch_norm(self.bpconv(reference.published(x, self.weight, *self.geometry)))


class OldSpectralConv(nn.Module):
    """A weight over its norm, by vectors that evaluation does not move."""

    def __init__(self, inputs, outputs, size, stride, padding):
        super().__init__()
        self.weight_orig = nn.Conv2d(inputs, outputs, size).weight
        self.register_buffer("weight_u", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(inputs * size**2), dim=0))
        self.geometry = stride, padding

    def forward(self, x):
        norm = self.weight_u @ self.weight_orig.flatten(1) @ self.weight_v
        return F.conv2d(x, self.weight_orig / norm, None, *self.geometry)


class SpectralConv(nn.Module):
    def __init__(self, *geometry):
        super().__init__()
        self.conv = OldSpectralConv(*geometry)

    def forward(self, x):
        return self.conv(x)


class ONIConv(nn.Module):
    def __init__(self, inputs, outputs, size, stride, padding):
        super().__init__()
        self.weight = nn.Conv2d(inputs, outputs, size).weight
        self.WNScale = nn.Parameter(torch.full((outputs, 1, 1, 1), 1.414))
        self.geometry = stride, padding

    def forward(self, x):
        weight = self.WNScale * ONI(3, as_published=True)(self.weight)
        return F.conv2d(x, weight, None, *self.geometry)


def plain_conv(inputs, outputs, size, stride, padding):
    return nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)


class PublishedSReLU(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.srelu_bias = nn.Parameter(-torch.rand(1, channels, 1, 1))

    def forward(self, x):
        return F.relu(x - self.srelu_bias) + self.srelu_bias


def published_relu(channels):
    return nn.ReLU()


def no_norm(channels):
    return nn.Identity()


class PublishedBlock(nn.Module):
    """conv, norm, relu, conv, norm, plus shortcut, and the same relu again."""

    def __init__(self, conv, norm, relu, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs, 3, stride, 1), norm(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs, 3, 1, 1), norm(outputs)
        self.relu = relu(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride, 0), norm(outputs))

    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class PublishedBottleneck(nn.Module):
    def __init__(self, conv, norm, relu, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.norm1 = conv(inputs, width, 1, 1, 0), norm(width)
        self.conv2, self.norm2 = conv(width, width, 3, stride, 1), norm(width)
        self.conv3, self.norm3 = conv(width, outputs, 1, 1, 0), norm(outputs)
        self.relu = relu(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride, 0), norm(outputs))

    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm3(self.conv3(self.relu(self.norm2(self.conv2(y)))))
        return self.relu(y + self.shortcut(x))


class PublishedResNet(nn.Module):
    """x: (N, 3, 32, 32), standardized as the code does -> logits."""

    def __init__(self, conv, norm, relu, depths, block=PublishedBlock, expansion=1, classes=10):
        super().__init__()
        self.conv1, self.norm1, self.relu = conv(3, 64, 3, 1, 1), norm(64), relu(64)
        inputs = 64
        for stage, depth in enumerate(depths):
            width, blocks = 64 * 2**stage, []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(conv, norm, relu, inputs, width, stride))
                inputs = width * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            y = stage(y)
        return self.linear(F.avg_pool2d(y, 4).flatten(1))


RESNET18 = {"arch": "resnet18", "depths": (2, 2, 2, 2)}
RESNET50 = {
    "arch": "resnet50",
    "depths": (3, 4, 6, 3),
    "block": PublishedBottleneck,
    "expansion": 4,
}
LAYERS = {
    "batch": (plain_conv, nn.BatchNorm2d),
    "convnorm": (PrecConv, no_norm),
    "spectral": (SpectralConv, nn.BatchNorm2d),
    "spectral alone": (SpectralConv, no_norm),
    "oni": (ONIConv, nn.BatchNorm2d),
    "none": (plain_conv, no_norm),
}
MOMENTS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def published(layers="batch", relu=published_relu, arch="resnet18", **shape):
    """A network in the published layout, with statistics as after training."""
    torch.manual_seed(0)
    network = PublishedResNet(*LAYERS[layers], relu, **shape).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                value.uniform_(low, low + 1)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


def saved(network, file, **changes):
    """As that code saves: under the wrapper of several GPUs or not, with what else it keeps."""
    state = {"arch": "ResNet", "epoch": 30, "state_dict": network.state_dict(), "monitor_best": 0.9}
    torch.save(state | changes, file)
    return file


@pytest.fixture(scope="module")
def resnet18():
    return published(**RESNET18)


@pytest.mark.parametrize(
    ("layers", "relu", "classes", "shape"),
    [(layers, published_relu, 10, RESNET18) for layers in LAYERS]
    + [("convnorm", PublishedSReLU, 10, RESNET18), ("batch", published_relu, 100, RESNET50)],
)
def test_its_logits_are_those_of_the_published_network(tmp_path, layers, relu, classes, shape):
    """A value in another place, other moments of the images, another kind or activation."""
    network = published(layers, relu, classes=classes, **shape)
    loaded = load_reference(saved(network, tmp_path / "model_best.pth"), shape["arch"])
    assert loaded.config.normalizer.kind == layers.split()[0]
    assert (loaded.config.data.name, loaded.epoch) == (f"cifar{classes}", 30)
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(moment)[:, None, None] for moment in MOMENTS[classes])
    with torch.no_grad():
        expected = network((x - mean) / std)
        torch.testing.assert_close(loaded.network(x), expected, rtol=1e-3, atol=1e-4)


def test_a_network_of_several_gpus_is_read_too(tmp_path, resnet18):
    state = {f"module.{name}": value for name, value in resnet18.state_dict().items()}
    file = saved(resnet18, tmp_path / "model.pth", state_dict=state)
    assert load_reference(file, "resnet18").config.normalizer.kind == "batch"


def test_the_script_evaluates_it_beside_its_file(tmp_path, resnet18, monkeypatch):
    file = saved(resnet18, tmp_path / "model_best.pth")
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(6)

    def load_images(data, split):
        assert (data.name, data.root, split) == ("cifar10", "elsewhere", "test")
        return Images(images, labels, CIFAR10, "6 images")

    monkeypatch.setattr("classification.evaluated_images.load_images", load_images)
    monkeypatch.setattr("sys.argv", [])
    options = ("--arch=resnet18", "--data_root=elsewhere", "--attacks", "fgsm", "--device=cpu")
    with pytest.raises(SystemExit) as end:
        script("evaluate_cls.py", "--reference", str(file), *options)
    assert end.value.code == 0
    record = json.loads((tmp_path / "evaluation" / "model_best.json").read_text())
    mean, std = (torch.tensor(moment)[:, None, None] for moment in MOMENTS[10])
    with torch.no_grad():
        right = (resnet18((images / 255 - mean) / std).argmax(1) == labels).sum().item()
    assert record["clean"]["top1"]["correct"] == right
    assert record["checkpoint"]["normalizer"] == "batch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "RUN: missing; expected it, or --reference FILE --arch NAME"),
        (("run", "--reference", "model.pth"), "RUN: run is not allowed; expected none beside"),
        (("--reference", "model.pth"), "--arch: None is not allowed; expected it with --reference"),
        (("run", "--arch", "resnet18"), "--arch: resnet18 is not allowed; expected it with"),
        (
            ("--reference", "model.pth", "--arch", "resnet18", "--split", "validation"),
            "model.pth: No such file or directory; expected a checkpoint of ConvNorm's",
        ),
    ],
)
def test_the_script_takes_a_run_or_a_reference(options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [])
    with pytest.raises(SystemExit) as end:
        script("evaluate_cls.py", *options)
    assert end.value.code != 0
    assert message in capsys.readouterr().err


def test_what_it_was_trained_on_is_not_known(tmp_path, resnet18):
    loaded = load_reference(saved(resnet18, tmp_path / "model.pth"), "resnet18")
    with pytest.raises(InputError, match=r"split: validation is not allowed, as .*model\.pth does"):
        subject_of(loaded, Options(split="validation"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "arch", "message"),
    [
        ({}, "vgg16", r"arch: 'vgg16' is not allowed; expected resnet18 or"),
        ({}, "resnet34", r"model\.pth: is no resnet34 of that code \(.*Missing key"),
        ({"state_dict": None}, "resnet18", r"model\.pth: has no state_dict with linear\.weight"),
        (
            {"drop": "layer4.1.norm2.bias"},
            "resnet18",
            r"is no resnet18 of that code \(.*norm2|Miss",
        ),
        ({"drop": "conv1.weight"}, "resnet18", r"is no resnet18 of that code"),
        ({"add": "layer1.0.gate"}, "resnet18", r"is no resnet18 of that code"),
        ({"add": "conv1.running_V"}, "resnet18", r"model\.pth: has a BatchNorm behind that of"),
        ({"linear": 7}, "resnet18", r"model\.pth: a network of 7 classes; expected CIFAR's 10 or"),
    ],
)
def test_another_file_is_refused(tmp_path, resnet18, changes, arch, message):
    state = resnet18.state_dict()
    state.pop(changes.get("drop"), None)
    if "add" in changes:
        state[changes["add"]] = torch.ones(1)
    if "linear" in changes:
        state["linear.weight"] = torch.ones(changes["linear"], 512)
    content = {"state_dict": state, "epoch": 1}
    if "state_dict" in changes:
        content = {"network": state}
    torch.save(content, file := tmp_path / "model.pth")
    with pytest.raises(InputError, match=message) as refusal:
        load_reference(file, arch)
    assert not re.search("\n", str(refusal.value))
