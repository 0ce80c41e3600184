"""The network behind the digits scores: a small CNN for handwritten digits, with its weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

from convnorm.experiment.data.pixels import resize

DIGITS_WEIGHTS = Path(__file__).parent / "weights" / "digits_extractor.pt"
# Other weights give other scores: retraining them changes this line and every number.
DIGITS_SHA256 = "24361c3e553f67d5f12e4397c09700ffd427c65c21a60d3e6390933ba6dd357b"
DIGITS_SIZE = 16  # height and width of the images that the digits network sees


class DigitsNet(nn.Module):
    """Classify digits: (N, 1, 16, 16) in [-1, 1] -> features (N, 64) >= 0, logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_stage(1, 32, stride=1), *_stage(32, 64, stride=2), *_stage(64, 64, stride=2)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images).mean(dim=(2, 3))
        return features, self.head(features)


def _stage(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU()


def digits_input(images: Tensor) -> Tensor:
    """Turn (N, C, H, W) uint8 into what `DigitsNet` sees: gray, 16x16, in [-1, 1]."""
    gray = images.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
    return resize(gray, DIGITS_SIZE).float() / 127.5 - 1
