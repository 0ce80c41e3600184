"""Draw an image of the test split under every corruption, in its five severities.

python docs/examples/draw_corruptions.py corruptions.png cifar10 data 7    # image 7
"""

import sys

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from classification.corruptions import CORRUPTIONS, SEVERITIES, applicable, corrupt
from convnorm.experiment.data import DataConfig, load_images


def main(file: str, name: str = "cifar10", root: str = "data", index: str = "0") -> None:
    data = load_images(DataConfig(name=name, root=root, image_size=32), "test")
    position = torch.tensor([int(index)])
    image = data.images[position]
    shown = [each for each in CORRUPTIONS if applicable(each, image.shape[1])]
    figure, axes = plt.subplots(-(-len(shown) // 2), 2, figsize=(9, 7), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, each in zip(axes.flat, shown, strict=False):
        pixels = strip(image, each, position).permute(1, 2, 0)
        axis.imshow(pixels, cmap="gray", interpolation="nearest")
        axis.text(-4, 16, each.replace("_", " "), ha="right", va="center", fontsize=9)
    figure.savefig(file, dpi=80)
    print(f"{file}: image {index} of {name}, and {len(shown)} corruptions of it")


def strip(image: Tensor, name: str, position: Tensor) -> Tensor:
    """The image, (1, C, 32, 32), and beside it what five severities make of it."""
    made = [corrupt(image, name, level, seed=0, indices=position)[0] for level in SEVERITIES]
    return torch.cat([image[0], *made], dim=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
