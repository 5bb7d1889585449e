# mypy: allow-untyped-defs, allow-incomplete-defs
"""Differentiating on the device: one warp gathers what the pixels of some tiles say about one patch's splats.

Nothing is stored but what the forward pass leaves, each pixel's colour and log2 of the sum of weights: weights are
computed again, from pixels that `models.triton_layout` has laid out. A warp takes TAKEN tiles of the 3x3 patches around
its own. It bounds the weight of each of its splats in each tile, all pairs at once, and then, GROUP splats at a time,
walks those tiles where one of them matters. The sums of gradients stay in registers, a lane's column of pixels first
added up by itself; so nothing is added atomically and results are deterministic.
"""

import triton
import triton.language as tl

from models.triton_kernels import (
    FALLOFF_LOG2,
    FALLOFF_ROOT,
    INFINITY,
    exp2,
    least_form,
    load_shape,
    value_and_slope,
)


@triton.jit
def _reach(at, first, drawn, SIDE: tl.constexpr):
    """The first patch drawn that the splats of patch `at` reach along an axis, counted from `first`; how many."""
    low = tl.maximum(at - SIDE // 2 - first, 0)
    return low, tl.maximum(tl.minimum(at + SIDE // 2 + 1 - first, drawn) - low, 0)


@triton.jit
def _seen_from(tile, tiles, seen_first):
    """Which neighbour of a tile's patch the splats' patch is: tiles are counted from the first in reach."""
    return seen_first - (tile >= tiles).to(tl.int32) - (tile >= 2 * tiles).to(tl.int32)


@triton.jit
def _kept(
    field, place_y, place_x, least, first, count, across, tiles_y, tiles_x, seen_y, seen_x, grid_y, grid_x,
    K: tl.constexpr, KP: tl.constexpr, SIDE: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    TAKEN: tl.constexpr, CUTOFF: tl.constexpr,
):  # fmt: skip
    """Words [KP]: in which of a strip's tiles each splat may matter, as bits."""
    k = tl.arange(0, KP)
    exists = k < K
    u, v, kx, ky, rho, depth = load_shape(field + k * 9, exists, 0, 0)
    lane = tl.arange(0, TAKEN)
    known = lane < count
    tile_y = (first + lane) // across
    tile_x = first + lane - tile_y * across
    i, j = _seen_from(tile_y, tiles_y, seen_y), _seen_from(tile_x, tiles_x, seen_x)
    at_y = place_y + 2 * i * (grid_y * TILE_Y) + tile_y * TILE_Y
    at_x = place_x + 2 * j * (grid_x * TILE_X) + tile_x * TILE_X
    top = tl.load(at_y, mask=known, other=0.0)
    bottom = tl.load(at_y + TILE_Y - 1, mask=known, other=0.0)
    left = tl.load(at_x, mask=known, other=0.0)
    right = tl.load(at_x + TILE_X - 1, mask=known, other=0.0)
    at_x += grid_x * TILE_X
    # Windows rise or fall within a patch.
    window = tl.maximum(tl.load(at_x, mask=known, other=0.0), tl.load(at_x + TILE_X - 1, mask=known, other=0.0))
    norm = tl.load(least + (tile_y * grid_x + tile_x) * SIDE + i, mask=known, other=INFINITY)
    away = least_form(
        u[:, None], v[:, None], kx[:, None], ky[:, None], rho[:, None], exists[:, None],
        left[None, :], right[None, :], top[None, :], bottom[None, :],
    )  # fmt: skip
    above = depth[:, None] - away + (window - norm)[None, :]
    return tl.sum(tl.where(above > -CUTOFF, 1 << lane[None, :], 0), axis=1)


@triton.jit(
    do_not_specialize=[
        "rows", "columns", "first_row", "first_column", "drawn_rows", "drawn_columns", "tiles_y", "tiles_x", "strips"
    ]
)  # fmt: skip
def backward(
    field,
    place_y,
    place_x,
    packed,
    least,
    partial,
    rows,
    columns,
    first_row,
    first_column,
    drawn_rows,
    drawn_columns,
    tiles_y,
    tiles_x,
    strips,
    step_y,
    K: tl.constexpr,
    KP: tl.constexpr,
    SIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    GROUP: tl.constexpr,
    TAKEN: tl.constexpr,
    CULL: tl.constexpr,
    CUTOFF: tl.constexpr,
    FAST: tl.constexpr,
):
    """Writes partial [B H W strips, 9, K]: five moments of dL/d(4 q), the colours' gradients, the depths'."""
    TILE: tl.constexpr = TILE_Y * TILE_X
    LANES: tl.constexpr = 32 // GROUP
    COLUMN: tl.constexpr = TILE // LANES
    VECTOR: tl.constexpr = COLUMN if COLUMN < 4 else 4
    program = tl.program_id(0)
    strip = program % strips
    column = program // strips % columns
    row = program // strips // columns % rows
    picture = (program // strips // columns // rows).to(tl.int64)
    field += ((picture * rows + row) * columns + column) * (K * 9)
    # The tiles that this patch's splats reach are a rectangle of the picture's; this strip has TAKEN of them.
    reach_y, reached_rows = _reach(row, first_row, drawn_rows, SIDE)
    reach_x, reached_columns = _reach(column, first_column, drawn_columns, SIDE)
    across = tl.maximum(reached_columns * tiles_x, 1)
    first = strip * TAKEN
    count = tl.minimum(reached_rows * tiles_y * reached_columns * tiles_x - first, TAKEN)
    seen_y, seen_x = row - first_row + SIDE // 2 - reach_y, column - first_column + SIDE // 2 - reach_x
    grid_y, grid_x = drawn_rows * tiles_y, drawn_columns * tiles_x
    corner = picture * grid_y * grid_x + reach_y * tiles_y * grid_x + reach_x * tiles_x
    packed += corner * ((SIDE + 4) * TILE)
    least += corner * SIDE
    place_y += reach_y * tiles_y * TILE_Y
    place_x += reach_x * tiles_x * TILE_X

    words = tl.full([KP], -1, tl.int32)
    if CULL:
        words = _kept(
            field, place_y, place_x, least, first, count, across, tiles_y, tiles_x, seen_y, seen_x, grid_y, grid_x,
            K, KP, SIDE, TILE_Y, TILE_X, TAKEN, CUTOFF,
        )  # fmt: skip

    lane = tl.arange(0, LANES)[:, None, None, None]
    member = tl.arange(0, GROUP)[None, :, None, None]
    below = tl.arange(0, COLUMN // VECTOR)[None, None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, None, :]
    pixel = tl.arange(0, COLUMN // VECTOR)[None, None, :, None] * (LANES * VECTOR) + lane * VECTOR
    pixel += tl.arange(0, VECTOR)[None, None, None, :] + member * 0
    in_x = lane % TILE_X + member * 0
    lane_y = (lane // TILE_X * COLUMN).to(tl.float32) * step_y
    number = below.to(tl.float32)
    pixels = packed + pixel
    first_y = first // across
    first_x = first - first_y * across

    for group in range((K + GROUP - 1) // GROUP):
        k = group * GROUP + member
        exists = k < K
        splat = field + k * 9
        u, v, kx, ky, rho, depth = load_shape(splat, exists, 0, 0)
        kx *= 1.0 / FALLOFF_ROOT
        ky *= 1.0 / FALLOFF_ROOT
        splat_red = tl.load(splat + 5, mask=exists, other=0.0)
        splat_green = tl.load(splat + 6, mask=exists, other=0.0)
        splat_blue = tl.load(splat + 7, mask=exists, other=0.0)
        slimness = 1.0 - rho * rho
        down_step = ky * step_y
        m_x = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        m_y = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        m_xx = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        m_xy = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        m_yy = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        red = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        green = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        blue = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        sums = tl.zeros([LANES, GROUP, 1, 1], tl.float32)
        word = tl.full([], -1, tl.int32)
        if CULL:
            word = tl.reduce_or(tl.where(tl.arange(0, KP) // GROUP == group, words, 0), axis=0)
        tile_y, tile_x = first_y, first_x
        n = 0
        while n < count:
            if (word >> n) & 1 != 0:
                i, j = _seen_from(tile_y, tiles_y, seen_y), _seen_from(tile_x, tiles_x, seen_x)
                at = place_x + (j * (2 * grid_x * TILE_X) + tile_x * TILE_X + in_x)
                dx = tl.load(at) - u
                window_x = tl.load(at + grid_x * TILE_X)
                dy = tl.load(place_y + (i * (2 * grid_y * TILE_Y) + tile_y * TILE_Y)) - v + lane_y
                tile = pixels + (tile_y * grid_x + tile_x).to(tl.int64) * ((SIDE + 4) * TILE)
                norm = tl.load(tile + i * TILE)
                mean = tl.load(tile + SIDE * TILE)
                to_red = tl.load(tile + (SIDE + 1) * TILE)
                to_green = tl.load(tile + (SIDE + 2) * TILE)
                to_blue = tl.load(tile + (SIDE + 3) * TILE)
                # q as two squares: two operations a pair, the rest once a column.
                along = dx * kx
                skewed = number * down_step + (dy * ky + along * rho)
                q = skewed * skewed + along * along * slimness
                weight = exp2(((depth + window_x) - norm) - q * FALLOFF_LOG2, FAST)
                level, slope = value_and_slope(q, KERNEL, FAST)
                towards = to_red * splat_red + to_green * splat_green + to_blue * splat_blue
                amount = weight * level
                to_logit = amount * towards - weight * mean
                to_q = weight * towards * slope - to_logit
                # Moments about the column's first pixel, by whole numbers of pixels; then about the splat's mean.
                column_0 = _column(to_q)
                column_1 = _column(to_q * number) * step_y
                column_2 = _column(to_q * (number * number)) * (step_y * step_y)
                by_y = column_0 * dy + column_1
                by_x = column_0 * dx
                m_x += by_x
                m_y += by_y
                m_xx += by_x * dx
                m_xy += by_y * dx
                m_yy += by_y * dy + (column_1 * dy + column_2)
                red += _column(amount * to_red)
                green += _column(amount * to_green)
                blue += _column(amount * to_blue)
                sums += _column(to_logit)
            n += 1
            tile_x += 1
            tile_y += (tile_x == across).to(tl.int32)
            tile_x = tl.where(tile_x == across, 0, tile_x)

        output = partial + program.to(tl.int64) * (9 * K) + k
        tl.store(output, tl.sum(m_x, axis=0, keep_dims=True), mask=exists)
        tl.store(output + K, tl.sum(m_y, axis=0, keep_dims=True), mask=exists)
        tl.store(output + 2 * K, tl.sum(m_xx, axis=0, keep_dims=True), mask=exists)
        tl.store(output + 3 * K, tl.sum(m_xy, axis=0, keep_dims=True), mask=exists)
        tl.store(output + 4 * K, tl.sum(m_yy, axis=0, keep_dims=True), mask=exists)
        tl.store(output + 5 * K, tl.sum(red, axis=0, keep_dims=True), mask=exists)
        tl.store(output + 6 * K, tl.sum(green, axis=0, keep_dims=True), mask=exists)
        tl.store(output + 7 * K, tl.sum(blue, axis=0, keep_dims=True), mask=exists)
        tl.store(output + 8 * K, tl.sum(sums, axis=0, keep_dims=True), mask=exists)


@triton.jit
def _column(values):
    """The sum over a lane's pixels: values [LANES, GROUP, COLUMN / VECTOR, VECTOR] to [LANES, GROUP, 1, 1]."""
    return tl.sum(tl.sum(values, axis=3, keep_dims=True), axis=2, keep_dims=True)
