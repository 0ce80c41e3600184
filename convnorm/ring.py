"""The ring on which grid="full" filters: how a layer covers it, and where its outputs lie there."""

from convnorm.convolution import Pads
from convnorm.tables import Pair


def check_ring(padding: Pads, kernel: Pair, dilation: Pair) -> None:
    """Raise ValueError if circular padding goes more than once around the map."""
    left, right, top, bottom = padding
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if top + bottom > reach[0] or left + right > reach[1]:
        raise ValueError(
            f"circular padding of {(top + bottom, left + right)} pixels in all with grid='full' "
            f"asks for more than one turn of the ring; at most {reach} fits this kernel"
        )


def everywhere(
    size: Pair, kernel: Pair, padding: Pads, dilation: Pair, mode: str
) -> tuple[Pads, Pair, Pair]:
    """How a stride-1 convolution of (H, W) maps covers the whole ring.

    Returns the padding that makes it do so, the size of the ring, and where on it the first output
    that `padding` asks for lies.
    """
    left, right, top, bottom = padding
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if mode == "circular":  # the map is the ring: one turn of it, started where `padding` says
        return (left, reach[1] - left, top, reach[0] - top), size, (0, 0)
    rows, columns = max(reach[0], top, bottom), max(reach[1], left, right)
    ring = (size[0] + 2 * rows - reach[0], size[1] + 2 * columns - reach[1])
    return (columns, columns, rows, rows), ring, (rows - top, columns - left)


def kept_outputs(first: Pair, stride: Pair, size: Pair) -> tuple[range, range]:
    """Rows and columns of the ring at which a strided convolution has its outputs."""
    rows, columns = (
        range(start, start + step * (count - 1) + 1, step)
        for start, step, count in zip(first, stride, size, strict=True)
    )
    return rows, columns
