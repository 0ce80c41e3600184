"""Makes the file of a source with several processes, in the order of the source."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from convnorm.experiment.data.pixels import Size, height_and_width, size_text
from convnorm.experiment.data.preparing import crop
from convnorm.experiment.data.preparing.crop import MADE_BY, Cropped, prepared
from convnorm.experiment.data.preparing.parts import Part, Source
from convnorm.experiment.data.stored import ImageFile, open_file
from convnorm.experiment.data.storing import Building, stored
from convnorm.experiment.data.stream import code_of, hash_of
from convnorm.experiment.errors import InputError

AHEAD = 4  # parts for each process that are begun


def prepare(
    source: Source, out: Path, size: Size, *, workers: int, skip_damaged: bool
) -> ImageFile:
    """Write the images of a source, cropped and resized to `size`, to the file `out`.

    The same call goes on with what was cut, and does nothing where the file is there. It holds as
    many images in memory as the parts that are begun.

    workers: how many processes decode; 1 is this one.
    skip_damaged: leave out images that cannot be read, and name them.

    Raises:
        InputError: `out` holds other images, an image is damaged, or the disk is full.
    """
    sides, hashed = height_and_width(size), hash_of(source.listed, size, code_of(crop))
    if out.exists() and open_file(out).about.source != hashed:
        raise InputError(
            f"OUT: {out} holds other images, or such as other versions made; expected a new file"
        )

    def build(building: Building) -> None:
        images = _each(source.parts, building.done, sides, workers)
        bar = tqdm(desc="preparing", total=len(source.labels), initial=building.done, disable=None)
        with closing(images), bar:
            for image in images:
                if isinstance(image, Cropped):
                    building.add(image.pixels, image.native)
                elif skip_damaged:
                    bar.write(f"left out: {image}", file=sys.stderr)
                    building.leave_out()
                else:
                    raise InputError(f"{image} (--skip_damaged leaves such images out)")
                bar.update()
        progress = building.progress
        least, most = (size_text(native) for native in progress.native_sizes or (sides, sides))
        made = f"{MADE_BY} of {least} to {most} pixels to {size_text(size)}"
        if progress.left_out:
            made += f"; {len(progress.left_out)} damaged left out"
        building.finish(source.labels, source.classes, made)

    return stored(out, hashed, len(source.labels), sides, build)


def _each(
    parts: Sequence[Part], start: int, sides: tuple[int, int], workers: int
) -> Iterator[Cropped | str]:
    """Give all images from number `start` on, or what is wrong with them."""
    ends = [0, *accumulate(map(len, parts))]
    first = bisect_right(ends, start) - 1  # part that is not done
    skip = start - ends[first]
    for found in _in_order(parts[first:], sides, workers):
        yield from found[skip:]
        skip = 0


def _in_order(
    parts: Sequence[Part], sides: tuple[int, int], workers: int
) -> Iterator[list[Cropped | str]]:
    if workers == 1:
        yield from (prepared(part, sides) for part in parts)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _end_with_parent)
    begun = deque()
    try:
        for part in parts:
            begun.append(pool.submit(prepared, part, sides))
            if len(begun) > AHEAD * workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            f"--workers: one of {workers} processes was killed, for memory perhaps; expected "
            "fewer, with which the same call goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
