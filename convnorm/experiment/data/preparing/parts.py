"""Encoded images, a part at a time: what a process is given to read, decode and resize."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from convnorm.experiment.errors import InputError

PER_PART = 64


class Part(Protocol):
    """A few images in a row; it is sent to another process."""

    def __len__(self) -> int: ...

    def contents(self) -> Iterator[tuple[str, bytes | InputError]]:
        """Give the name, for errors, and the bytes of each image, or why it cannot be read."""


@dataclass(frozen=True)
class Source:
    """All images that become one file, in order.

    labels: (N,) int64, positions in `classes`. found: what was read and skipped, in words.
    listed: what tells other images behind the same names, ready for JSON.
    """

    parts: Sequence[Part]
    labels: np.ndarray
    classes: tuple[str, ...]
    found: str
    listed: object


class Span(NamedTuple):
    """Where an encoded image lies. size: in bytes; -1 is up to the end of the file."""

    name: str
    file: str
    start: int = 0
    size: int = -1


@dataclass(frozen=True)
class Spans:
    """Images that lie in files as they are."""

    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.spans)

    def contents(self) -> Iterator[tuple[str, bytes | InputError]]:
        for span in self.spans:
            try:
                with open(span.file, "rb") as file:
                    file.seek(span.start)
                    content = file.read(span.size)
            except OSError as error:
                content = InputError(f"{span.name}: cannot be read ({error.strerror})")
            yield span.name, content


def in_parts(spans: Sequence[Span]) -> list[Spans]:
    """Return the same in parts."""
    starts = range(0, len(spans), PER_PART)
    return [Spans(tuple(spans[start : start + PER_PART])) for start in starts]


def numbered(values: Sequence[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and classes: the different values, in order, are the names of the classes."""
    different, labels = np.unique(np.array(values, np.int64), return_inverse=True)
    return labels, tuple(map(str, different.tolist()))
