"""The Triton kernel of convnorm.fused_filter, whose docstring has the mathematics.

No other file imports triton, and this one is imported when the kernel is first run.
"""

import triton
import triton.language as tl


@triton.jit
def _half_transform(table, size, is_sine, BLOCK: tl.constexpr):
    """The cosines or the sines of tables.folded_transform, padded with zeros."""
    half = (size + 1) // 2
    k, x = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.load(table + (is_sine * half + k) * half + x, mask=(k < half) & (x < half), other=0.0)


@triton.jit
def _even_and_odd(gain, k_row, k_column, n, m, inside):
    """The parts of the gain that are even and odd in each frequency, at a frequency."""
    here = tl.load(gain + k_row * (m // 2 + 1) + k_column, mask=inside, other=0.0)
    mirrored = tl.load(gain + (n - k_row) % n * (m // 2 + 1) + k_column, mask=inside, other=0.0)
    return 0.5 * (here + mirrored), 0.5 * (here - mirrored)


@triton.jit
def _offset(pixel, inside, start, step, count, stride):
    """From where a map starts to pixels of its ring; -1 for those that the map does not hold."""
    index = (pixel - start) // step
    held = (pixel >= start) & ((pixel - start) % step == 0) & (index < count)
    return tl.where(inside & held, index * stride, -1)


@triton.jit
def _offsets(i, size, start, step, count, stride):
    """The same for pixels i of the first half of a ring, and for their mirror images."""
    near = _offset(i, i < (size + 1) // 2, start, step, count, stride)
    # The middle of an odd ring mirrors itself and is of the first half alone.
    return near, _offset(size - 1 - i, i < size // 2, start, step, count, stride)


@triton.jit
def _load(source, row, column):
    return tl.load(source + row + column, mask=(row >= 0) & (column >= 0), other=0.0).to(tl.float32)


@triton.jit
def _store(target, row, column, values):
    values = values.to(target.dtype.element_ty)
    tl.store(target + row + column, values, mask=(row >= 0) & (column >= 0))


@triton.jit
def _product(left, middle, right, PRECISION: tl.constexpr):
    return tl.dot(tl.dot(left, middle, input_precision=PRECISION), right, input_precision=PRECISION)


@triton.jit
def filter_map(
    x,
    y,
    gain,
    row_table,
    column_table,
    batch_size,
    n,
    m,
    x_batch_stride,
    x_channel_stride,
    x_row_stride,
    x_column_stride,
    read_row_start,
    read_row_step,
    read_rows,
    read_column_start,
    read_column_step,
    read_columns,
    y_batch_stride,
    y_channel_stride,
    written_row_start,
    written_row_step,
    written_rows,
    written_column_start,
    written_column_step,
    written_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Filter one map, each of its four parts in a block of ROWS x COLUMNS numbers.

    y is contiguous, x has any strides. Programs that run together share a channel's gain.
    """
    channel = (tl.program_id(0) // batch_size).to(tl.int64)
    sample = (tl.program_id(0) % batch_size).to(tl.int64)
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]

    x += sample * x_batch_stride + channel * x_channel_stride
    top, bottom = _offsets(r, n, read_row_start, read_row_step, read_rows, x_row_stride)
    left, right = _offsets(c, m, read_column_start, read_column_step, read_columns, x_column_stride)
    top_left, top_right = _load(x, top, left), _load(x, top, right)
    bottom_left, bottom_right = _load(x, bottom, left), _load(x, bottom, right)

    row_cos = _half_transform(row_table, n, 0, ROWS)
    row_sin = _half_transform(row_table, n, 1, ROWS)
    column_cos = _half_transform(column_table, m, 0, COLUMNS)
    column_sin = _half_transform(column_table, m, 1, COLUMNS)
    top_even, top_odd = top_left + top_right, top_left - top_right
    bottom_even, bottom_odd = bottom_left + bottom_right, bottom_left - bottom_right
    cc = _product(row_cos, top_even + bottom_even, tl.trans(column_cos), PRECISION)
    cs = _product(row_cos, top_odd + bottom_odd, tl.trans(column_sin), PRECISION)
    sc = _product(row_sin, top_even - bottom_even, tl.trans(column_cos), PRECISION)
    ss = _product(row_sin, top_odd - bottom_odd, tl.trans(column_sin), PRECISION)

    inside = (r < (n + 1) // 2) & (c < (m + 1) // 2)
    # Where the cosine has frequency 0, the sine has the highest one.
    r_sin, c_sin = tl.where(r == 0, n // 2, r), tl.where(c == 0, m // 2, c)
    gain += channel * n * (m // 2 + 1)
    even_cc, odd = _even_and_odd(gain, r, c, n, m, inside)
    even_cs, _ = _even_and_odd(gain, r, c_sin, n, m, inside)
    even_sc, _ = _even_and_odd(gain, r_sin, c, n, m, inside)
    even_ss, _ = _even_and_odd(gain, r_sin, c_sin, n, m, inside)
    odd = tl.where((r > 0) & (c > 0), odd, 0.0)
    cc, ss = even_cc * cc - odd * ss, even_ss * ss - odd * cc
    cs, sc = even_cs * cs + odd * sc, even_sc * sc + odd * cs

    even_even = _product(tl.trans(row_cos), cc, column_cos, PRECISION)
    even_odd = _product(tl.trans(row_cos), cs, column_sin, PRECISION)
    odd_even = _product(tl.trans(row_sin), sc, column_cos, PRECISION)
    odd_odd = _product(tl.trans(row_sin), ss, column_sin, PRECISION)

    y += sample * y_batch_stride + channel * y_channel_stride
    top, bottom = _offsets(r, n, written_row_start, written_row_step, written_rows, written_columns)
    left, right = _offsets(c, m, written_column_start, written_column_step, written_columns, 1)
    top_even, top_odd = even_even + odd_even, even_odd + odd_odd
    bottom_even, bottom_odd = even_even - odd_even, even_odd - odd_odd
    _store(y, top, left, top_even + top_odd)
    _store(y, top, right, top_even - top_odd)
    _store(y, bottom, left, bottom_even + bottom_odd)
    _store(y, bottom, right, bottom_even - bottom_odd)
