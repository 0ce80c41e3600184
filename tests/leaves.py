"""Images for the tests of corruptions, and how these change them."""

import torch
from torch import Generator, Tensor

from classification.corruptions import corrupt
from convnorm.experiment.streams import generator


def leaves(number: int, channels: int = 3, size: int = 32) -> Tensor:
    """Random rectangles laid over each other: like photographs, edges and flat parts of any size.

    Made of integers only, so that every machine has the same.
    """
    draws = generator("cpu", "leaves")
    images = torch.zeros(number, channels, size, size, dtype=torch.uint8)
    positions = torch.arange(size)
    for _ in range(50):
        colours = torch.randint(20, 236, (number, channels, 1, 1), generator=draws)
        starts = torch.randint(-size // 2, size, (2, number, 1), generator=draws)
        ends = starts + torch.randint(2, size, (2, number, 1), generator=draws)
        rows, columns = (starts <= positions) & (positions < ends)
        leaf = (rows[:, :, None] & columns[:, None])[:, None]
        images = torch.where(leaf, colours.to(torch.uint8), images)
    return images


def flat(level: int, number: int = 16, channels: int = 3, size: int = 32) -> Tensor:
    return torch.full((number, channels, size, size), level, dtype=torch.uint8)


def values(number: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """What `corrupt` hands to a corruption: float64 in [0, 1]; the images need not be square."""
    images = leaves(number, channels, max(height, width))
    return images[..., :height, :width].contiguous().double() / 255


def streams(number: int) -> list[Generator]:
    """A generator for each image, in the same state at every call."""
    return [generator("cpu", "image", index) for index in range(number)]


def corrupted(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    return corrupt(images, name, severity, seed=seed, indices=torch.arange(len(images)))


def distance(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().mean().item()
