"""Images become features part by part, on the device that they are on, each process its share.

A generator's images go on to the extractor where they are made. What a record says of their bytes
needs them on the CPU, which gets each once; no more than a part is on the device at a time.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from convnorm.experiment.run.distributed import Process
from gan.extractor import Extractor, Features
from gan.models import PART

# (num, seed, share): `num` images as parts (PART, C, H, W) uint8 on the generator's device, the
# last one smaller; of all parts, those of the share.
Sample = Callable[[int, int, slice], Iterable[Tensor]]
# (num, seed): the classes (num,) that all those images were asked for as, in their order.
Labels = Callable[[int, int], Tensor]


class Extracted(NamedTuple):
    """Images (N, C, H, W) uint8, on the CPU, and their features, on the extractor's device."""

    images: Tensor
    features: Features


def extract(
    parts: Iterable[Tensor], num: int, extractor: Extractor, process: Process
) -> Extracted | None:
    """Extract the features of `num` images; None in all processes but the main one.

    Several processes take parts in turn, as `process.turns` deals them out, and each part goes to
    the main one as soon as it is done. The numbers do not depend on how many processes there are.

    parts: this process's, (PART, C, H, W) uint8 on any device, the last of all smaller.
    """
    own, found, on_cpu = iter(parts), [], process.world_size > 1
    with tqdm(
        total=num,
        desc=f"{extractor.spec.name} features",
        unit="image",
        leave=False,
        disable=None if process.is_main else True,
    ) as bar:
        for _ in range(math.ceil(num / PART / process.world_size)):
            part = next(own, None)
            extracted = None if part is None else _extracted(part, extractor, on_cpu)
            for each in process.gather_objects(extracted):
                if each is not None:
                    found.append(each)
                    bar.update(len(each.images))
    if not process.is_main:
        return None
    images, features = zip(*found, strict=True)
    joined = Features.joined(features).map(lambda part: part.to(extractor.device))
    return Extracted(torch.cat(images), joined)


def _extracted(part: Tensor, extractor: Extractor, on_cpu: bool) -> Extracted:
    """on_cpu: also leave the features there, as what is sent to another process has to be."""
    features = extractor(part)
    return Extracted(part.cpu(), features.map(Tensor.cpu) if on_cpu else features)
