"""Gradient accumulation: a batch goes through the networks in parts whose gradients are added."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convnorm.experiment.config import require
from convnorm.experiment.errors import InputError
from convnorm.experiment.run.averaging import iterated

if TYPE_CHECKING:
    from gan.config import GanConfig


def check(config: "GanConfig") -> None:
    """Raise InputError where the parts of a batch would not add up to the batch.

    A generator's BatchNorm sees the part, as in several processes, and is not refused.
    """
    num, normalizer = config.train.accumulate, config.normalizer
    if num == 1:
        return
    check_sizes(config)
    alone = "1, or normalizer.kind other than {!r}, which mixes the images of a batch"
    require(not normalizer.mixes_batch, "train.accumulate", num, alone.format(normalizer.kind))
    whole = "1, or loss.lecam of 0, as its anchors move by a whole batch before its gradients"
    require(config.loss.lecam == 0, "train.accumulate", num, whole)


def check_sizes(config: "GanConfig", world_size: int = 1) -> None:
    """Raise InputError where the batch of one of `world_size` processes has no equal parts."""
    num = config.train.accumulate
    several = f", in each of {world_size} processes" if world_size > 1 else ""
    for name in ("batch_size", "generator_batch_size"):
        size = getattr(config.train, name)
        if size % (num * world_size):
            raise InputError(
                f"train.{name}: {size} does not divide by the {num} parts of train.accumulate"
                f"{several}"
            )


def parts(draws: Any, num: int, *networks: nn.Module) -> Iterator[Any]:
    """Yield the draws of an update in `num` equal parts, as `split` does.

    All meet the networks as the first one does: power iterations go on from the same vectors and
    end where those of a whole batch do. A caller is done with a part, its backward pass included,
    when it asks for the next.
    """
    if num == 1:
        yield draws
        return
    vectors = [buffer for network in networks for buffer in iterated(network)]
    before = [buffer.clone() for buffer in vectors]
    for index, part in enumerate(split(draws, num)):
        if index > 0:
            with torch.no_grad():
                for buffer, value in zip(vectors, before, strict=True):
                    buffer.copy_(value)
        yield part


def split(draws: Any, num: int) -> tuple[Any, ...]:
    """Cut draws into `num` equal parts.

    draws: tensors of N images in dataclasses and mappings, N a multiple of `num`. What has no
        dimension, and what is no tensor, is the same in every part.
    """
    match draws:
        case Tensor() if draws.dim() > 0:
            return draws.chunk(num)
        case Mapping():
            cut = {name: split(value, num) for name, value in draws.items()}
            return tuple({name: each[i] for name, each in cut.items()} for i in range(num))
        case _ if is_dataclass(draws):
            cut = {part.name: split(getattr(draws, part.name), num) for part in fields(draws)}
            return tuple(
                replace(draws, **{name: each[i] for name, each in cut.items()}) for i in range(num)
            )
    return (draws,) * num
