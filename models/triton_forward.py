# mypy: allow-untyped-defs, allow-incomplete-defs
"""Drawing on the device: one warp draws one tile of one patch's pixels.

First it bounds the weight of each of the 9 K splats over the tile, all splats at once, and keeps those that may matter
as bits of one word for every 16 splats. Then it takes the kept splats out of the words, GROUP at a time, and adds them
to its pixels, which stand in registers as [BLOCK_Y, BLOCK_X, GROUP] with a column of pixels in each lane.
"""

import triton
import triton.language as tl

from models.triton_kernels import (
    FALLOFF_LOG2,
    NEGATIVE_INFINITY,
    amount,
    least_form,
    load_shape,
    square_form,
)

# With bounds of a tile's weights no further apart than 2^SPREAD, no sum of weights relative to the upper bound can
# become too small for a float; beyond, every pixel's own largest weight is searched.
SPREAD = tl.constexpr(90.0)

SIZES = ["rows", "columns", "first_row", "first_column", "drawn_rows", "drawn_columns", "height", "width"]


@triton.jit
def _kept(
    field, row, column, rows, columns, place_y, place_x, y_first, y_last, x_first, x_last, height, width,
    K: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, SLOTS: tl.constexpr, SIDE: tl.constexpr,
    CUTOFF: tl.constexpr,
):  # fmt: skip
    """Words [SLOTS] of the splats that may matter in a tile, the largest weight's upper and lower bound there, log2.

    The least and the largest Q of a splat over the rectangle of the tile's pixel centres are exact: a convex function
    is largest in a corner. Windows rise or fall within a patch.
    """
    slot = tl.arange(0, SLOTS)
    i = slot // CHUNKS // SIDE
    j = slot // CHUNKS % SIDE
    known = i < SIDE
    at_row = row + i - SIDE // 2
    at_column = column + j - SIDE // 2
    inside = known & (at_row >= 0) & (at_row < rows) & (at_column >= 0) & (at_column < columns)
    lane = tl.arange(0, CHUNK)
    k = (slot % CHUNKS * CHUNK)[:, None] + lane[None, :]
    exists = inside[:, None] & (k < K)
    splat = field + ((at_row * columns + at_column) * (K * 9))[:, None] + k * 9
    u, v, kx, ky, rho, depth = load_shape(splat, exists, (j - SIDE // 2)[:, None], (i - SIDE // 2)[:, None])

    top, bottom = tl.load(place_y + y_first), tl.load(place_y + y_last)
    left, right = tl.load(place_x + x_first), tl.load(place_x + x_last)
    least = least_form(u, v, kx, ky, rho, exists, left, right, top, bottom)
    a, b, c, d = kx * (left - u), kx * (right - u), ky * (top - v), ky * (bottom - v)
    largest = tl.maximum(
        tl.maximum(square_form(a, c, rho), square_form(a, d, rho)),
        tl.maximum(square_form(b, c, rho), square_form(b, d, rho)),
    )
    window_y, window_x = place_y + (i + 1) * height, place_x + (j + 1) * width
    at_top = tl.load(window_y + y_first, mask=known, other=NEGATIVE_INFINITY)
    at_bottom = tl.load(window_y + y_last, mask=known, other=NEGATIVE_INFINITY)
    at_left = tl.load(window_x + x_first, mask=known, other=NEGATIVE_INFINITY)
    at_right = tl.load(window_x + x_last, mask=known, other=NEGATIVE_INFINITY)
    above = depth - least + (tl.maximum(at_top, at_bottom) + tl.maximum(at_left, at_right))[:, None]
    below = depth - largest + (tl.minimum(at_top, at_bottom) + tl.minimum(at_left, at_right))[:, None]
    upper = tl.max(tl.max(above, axis=1), axis=0)
    lower = tl.max(tl.max(below, axis=1), axis=0)
    matters = exists & (above > lower - CUTOFF)
    return tl.sum(tl.where(matters, 1 << lane[None, :], 0), axis=1), upper, lower


@triton.jit
def _taken(word, member, GROUP: tl.constexpr):
    """The lowest GROUP bits that are set in a word: their numbers [GROUP], negative beyond the last, and the rest."""
    number = tl.full([GROUP], -1, tl.int32)
    for g in tl.static_range(GROUP):
        low = word & -word
        word = word ^ low
        # The exponent of a power of two is its logarithm; that of 0 is negative.
        number = tl.where(member == g, (low.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127, number)
    return number, word


@triton.jit
def _less_depth(splat, exists, column, row, offset_y, offset_x):
    """Q - depth [BLOCK_Y, BLOCK_X, GROUP] of a group of splats at a tile's pixels, and the depth [GROUP]."""
    u, v, kx, ky, rho, depth = load_shape(splat, exists, column, row)
    # Q as two squares: two operations a pair, the rest once a column.
    along = (offset_x[None, :, None] - u[None, None, :]) * kx[None, None, :]
    across = along * rho[None, None, :] - (v * ky)[None, None, :]
    rest = along * along * (1.0 - rho * rho)[None, None, :] - depth[None, None, :]
    skewed = offset_y[:, None, None] * ky[None, None, :] + across
    return skewed * skewed + rest, depth


@triton.jit(do_not_specialize=[*SIZES, "tiles_y", "tiles_x"])
def forward(
    field,
    edges_y,
    place_y,
    edges_x,
    place_x,
    image,
    lse,
    rows,
    columns,
    first_row,
    first_column,
    drawn_rows,
    drawn_columns,
    height,
    width,
    tiles_y,
    tiles_x,
    K: tl.constexpr,
    KP: tl.constexpr,
    SIDE: tl.constexpr,
    SLOTS: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    GROUP: tl.constexpr,
    CUTOFF: tl.constexpr,
    KEEP_LSE: tl.constexpr,
    FAST: tl.constexpr,
):
    """Writes the image and, if kept, each pixel's log2 of the sum of weights [B, height, width].

    The image is [B, 3, height, width] of floats, or [B, height, width, 3] of bytes. K is padded to KP, a power of two.
    """
    program = tl.program_id(0)
    tile_x = program % tiles_x
    tile_y = program // tiles_x % tiles_y
    patch = program // tiles_x // tiles_y
    column = first_column + patch % drawn_columns
    row = first_row + patch // drawn_columns % drawn_rows
    picture = (patch // drawn_columns // drawn_rows).to(tl.int64)
    y_first = tl.load(edges_y + row) + tile_y * BLOCK_Y
    x_first = tl.load(edges_x + column) + tile_x * BLOCK_X
    y_last = tl.load(edges_y + row + 1) - 1
    x_last = tl.load(edges_x + column + 1) - 1
    if (y_first > y_last) | (x_first > x_last):
        return  # patches differ by a pixel, and this one has fewer tiles than others
    y = y_first + tl.arange(0, BLOCK_Y)
    x = x_first + tl.arange(0, BLOCK_X)
    in_y = y <= y_last
    in_x = x <= x_last
    offset_y = tl.load(place_y + y, mask=in_y, other=0.0)
    offset_x = tl.load(place_x + x, mask=in_x, other=0.0)

    CHUNK: tl.constexpr = KP if KP < 16 else 16
    CHUNKS: tl.constexpr = KP // CHUNK
    field += picture * rows * columns * (K * 9)
    words, upper, lower = _kept(
        field, row, column, rows, columns, place_y, place_x,
        y_first, tl.minimum(y_first + BLOCK_Y - 1, y_last), x_first, tl.minimum(x_first + BLOCK_X - 1, x_last),
        height, width, K, CHUNK, CHUNKS, SLOTS, SIDE, CUTOFF,
    )  # fmt: skip
    slot = tl.arange(0, SLOTS)
    member = tl.arange(0, GROUP)

    peak = tl.full([BLOCK_Y, BLOCK_X, GROUP], 0.0, tl.float32) + upper
    if upper - lower > SPREAD:
        peak = tl.full([BLOCK_Y, BLOCK_X, GROUP], NEGATIVE_INFINITY, tl.float32)
        for n in range(SIDE * SIDE * CHUNKS):
            i = n // CHUNKS // SIDE
            j = n // CHUNKS % SIDE
            splats = field + ((row + i - SIDE // 2) * columns + column + j - SIDE // 2) * (K * 9)
            window_y = tl.load(place_y + (i + 1) * height + y, mask=in_y, other=0.0)
            window_x = tl.load(place_x + (j + 1) * width + x, mask=in_x, other=0.0)
            word = tl.sum(tl.where(slot == n, words, 0), axis=0)
            while word != 0:
                number, word = _taken(word, member, GROUP)
                splat = splats + (n % CHUNKS * CHUNK + number) * 9
                away, _ = _less_depth(splat, number >= 0, j - SIDE // 2, i - SIDE // 2, offset_y, offset_x)
                peak = tl.maximum(peak, window_y[:, None, None] + window_x[None, :, None] - away)
        peak = tl.max(peak, axis=2)[:, :, None] + tl.zeros([BLOCK_Y, BLOCK_X, GROUP], tl.float32)

    total = tl.zeros([BLOCK_Y, BLOCK_X, GROUP], tl.float32)
    red = tl.zeros([BLOCK_Y, BLOCK_X, GROUP], tl.float32)
    green = tl.zeros([BLOCK_Y, BLOCK_X, GROUP], tl.float32)
    blue = tl.zeros([BLOCK_Y, BLOCK_X, GROUP], tl.float32)
    for n in range(SIDE * SIDE * CHUNKS):
        i = n // CHUNKS // SIDE
        j = n // CHUNKS % SIDE
        splats = field + ((row + i - SIDE // 2) * columns + column + j - SIDE // 2) * (K * 9)
        window_y = tl.load(place_y + (i + 1) * height + y, mask=in_y, other=0.0)
        window_x = tl.load(place_x + (j + 1) * width + x, mask=in_x, other=0.0)
        # The windows are part of what weights are relative to: once a pixel and neighbour, not once a splat.
        base = (peak - window_y[:, None, None]) - window_x[None, :, None]
        word = tl.sum(tl.where(slot == n, words, 0), axis=0)
        while word != 0:
            number, word = _taken(word, member, GROUP)
            exists = number >= 0
            splat = splats + (n % CHUNKS * CHUNK + number) * 9
            away, depth = _less_depth(splat, exists, j - SIDE // 2, i - SIDE // 2, offset_y, offset_x)
            q = away * (1.0 / FALLOFF_LOG2) + (depth * (1.0 / FALLOFF_LOG2))[None, None, :]
            weight, product = amount(-base - away, q, KERNEL, FAST)
            total += weight
            red += product * tl.load(splat + 5, mask=exists, other=0.0)[None, None, :]
            green += product * tl.load(splat + 6, mask=exists, other=0.0)[None, None, :]
            blue += product * tl.load(splat + 7, mask=exists, other=0.0)[None, None, :]

    mass = tl.sum(total, axis=2)
    share = 1.0 / mass
    drawn = in_y[:, None] & in_x[None, :]
    plane = height.to(tl.int64) * width
    pixel = y.to(tl.int64)[:, None] * width + x[None, :]
    _store(image, picture, plane, pixel, drawn, 0, tl.sum(red, axis=2) * share)
    _store(image, picture, plane, pixel, drawn, 1, tl.sum(green, axis=2) * share)
    _store(image, picture, plane, pixel, drawn, 2, tl.sum(blue, axis=2) * share)
    if KEEP_LSE:
        highest = tl.max(peak, axis=2)
        tl.store(lse + picture * plane + pixel, highest + tl.log2(mass), mask=drawn)


@triton.jit
def _store(image, picture, plane, pixel, drawn, CHANNEL: tl.constexpr, colour):
    if image.dtype.element_ty == tl.uint8:
        level = (tl.minimum(tl.maximum(colour, -1.0), 1.0) + 1.0) * 127.5
        tl.store(image + (picture * plane + pixel) * 3 + CHANNEL, (level + 0.5).to(tl.uint8), mask=drawn)
    else:
        tl.store(image + (picture * 3 + CHANNEL) * plane + pixel, colour, mask=drawn)
