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

from convnorm.experiment.data import Pixels
from convnorm.experiment.run.distributed import Process
from gan.extractor import Extractor, Features
from gan.models import PART

# (num, seed, share): `num` images as parts (PART, C, H, W) uint8 on the generator's device, the
# last one smaller; of all parts, those of the share.
Sample = Callable[[int, int, slice], Iterable[Tensor]]
# (num, seed): the classes (num,) that all those images were asked for as, in their order.
Labels = Callable[[int, int], Tensor]


class Extracted(NamedTuple):
    """Images (N, C, H, W) uint8, on the CPU or on disk, and their features, on the extractor's
    device.
    """

    images: Pixels
    features: Features


def extract(
    parts: Iterable[Tensor], num: int, extractor: Extractor, process: Process
) -> Extracted | None:
    """Extract the features of `num` images, and keep the images; see `extract_features`."""
    kept: list[Tensor] = []
    features = extract_features(parts, num, extractor, process, kept)
    return None if features is None else Extracted(torch.cat(kept), features)


def extract_features(
    parts: Iterable[Tensor],
    num: int,
    extractor: Extractor,
    process: Process,
    kept: list[Tensor] | None = None,
) -> Features | None:
    """Extract the features of `num` images; None in all processes but the main one.

    Several processes take parts in turn, as `process.turns` deals them out, and each part goes to
    the main one as soon as it is done. The numbers do not depend on how many processes there are.

    parts: this process's, (PART, C, H, W) uint8 on any device, the last of all smaller.
    kept: gets all parts, on the CPU, in order; None where the images are at hand.
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
            own_features = None if part is None else _features(part, extractor, on_cpu)
            own_images = None if part is None or kept is None else part.cpu()
            for images, features in process.gather_objects((own_images, own_features)):
                if features is not None:
                    found.append(features)
                    bar.update(len(features.features))
                if images is not None:
                    kept.append(images)
    next(own, None)  # it ends, and a generator is in the mode that it was in before
    if not process.is_main:
        return None
    return Features.joined(found).map(lambda part: part.to(extractor.device))


def _features(part: Tensor, extractor: Extractor, on_cpu: bool) -> Features:
    """on_cpu: leave them there, as what is sent to another process has to be."""
    features = extractor(part)
    return features.map(Tensor.cpu) if on_cpu else features
