# mypy: allow-untyped-defs, allow-incomplete-defs
"""The device code of `models.rasterize_triton`: one program draws, or differentiates, one tile of one patch's pixels.

A tile's pixels times a patch's splats stand in registers as [BLOCK_Y, BLOCK_X, KP], splats across the lanes of a warp,
KP being K padded to a power of two. What depends on a row or a column alone is computed once for each.
Positions come in two tables an axis: `edges`, the first pixel of every patch; and `place`, whose row 0 has each pixel's
offset in its patch and whose rows 1... the log2 windows of the neighbours.
"""

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
FALLOFF_LOG2 = tl.constexpr(4.0 * math.log2(math.e))
CUTOFF = tl.constexpr(26.0)
INFINITY = tl.constexpr(float("inf"))
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))

_SIZES = [
    "rows",
    "columns",
    "first_row",
    "first_column",
    "drawn_rows",
    "drawn_columns",
    "tiles_y",
    "tiles_x",
    "height",
    "width",
]


@triton.jit
def _cos(x, FAST: tl.constexpr):
    # The hardware's cosine is good to 1e-6 where a kernel is not yet negligible; the interpreter has no assembly.
    if FAST:
        y = tl.inline_asm_elementwise("cos.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.cos(x)
    return y


@triton.jit
def _sin(x, FAST: tl.constexpr):
    if FAST:
        y = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.sin(x)
    return y


@triton.jit
def _value(q, KERNEL: tl.constexpr, FAST: tl.constexpr):
    """`models.kernels.DRAWABLE[KERNEL]` at q."""
    if KERNEL == "wavelet":
        value = tl.exp2(q * (-0.9 * LOG2E)) * _cos(q * 6.0, FAST)
    elif KERNEL == "sharp":
        s = q * 2.0
        low = tl.minimum(s, 1.0)
        low = low * low
        low = low * low
        low = low * low
        wave = tl.exp2(s * -LOG2E) * _sin(tl.maximum(s, 1.0) - 1.0, FAST)
        value = 1.0 - low * low - wave * 4.0
    elif KERNEL == "gaussian":
        value = tl.exp2(q * (-2.0 * LOG2E))
    else:
        value = q * 0.0 + 1.0
    return value


@triton.jit
def _value_and_slope(q, KERNEL: tl.constexpr, FAST: tl.constexpr):
    """The kernel at q, and its derivative by q."""
    if KERNEL == "wavelet":
        fall = tl.exp2(q * (-0.9 * LOG2E))
        value = fall * _cos(q * 6.0, FAST)
        slope = value * -0.9 - fall * _sin(q * 6.0, FAST) * 6.0
    elif KERNEL == "sharp":
        s = q * 2.0
        low = tl.minimum(s, 1.0)
        low2 = low * low
        low4 = low2 * low2
        low8 = low4 * low4
        fall = tl.exp2(s * -LOG2E) * 4.0
        angle = tl.maximum(s, 1.0) - 1.0
        wave = fall * _sin(angle, FAST)
        value = 1.0 - low8 * low8 - wave
        top = tl.where(s <= 1.0, low8 * low4 * low2 * low * -16.0, 0.0)
        slope = (top + wave - tl.where(s >= 1.0, fall * _cos(angle, FAST), 0.0)) * 2.0
    elif KERNEL == "gaussian":
        value = tl.exp2(q * (-2.0 * LOG2E))
        slope = value * -2.0
    else:
        value = q * 0.0 + 1.0
        slope = q * 0.0
    return value, slope


@triton.jit
def _tile(program, first_row, first_column, drawn_rows, drawn_columns, tiles_y, tiles_x):
    """What a program draws: picture, row and column of its patch, and its tile there."""
    tile_x = program % tiles_x
    rest = program // tiles_x
    tile_y = rest % tiles_y
    rest = rest // tiles_y
    column = first_column + rest % drawn_columns
    rest = rest // drawn_columns
    row = first_row + rest % drawn_rows
    picture = (rest // drawn_rows).to(tl.int64)
    return picture, row, column, tile_y, tile_x


@triton.jit
def _pixels(edges, patch, tile, BLOCK: tl.constexpr):
    """Pixel indices of a tile along one axis, and which of them exist."""
    pixel = tl.load(edges + patch) + tile * BLOCK + tl.arange(0, BLOCK)
    return pixel, pixel < tl.load(edges + patch + 1)


@triton.jit
def _splats(field, picture, row, column, rows, columns, K: tl.constexpr, KP: tl.constexpr):
    """Pointers to the K splats of a patch [KP], and which of them exist."""
    k = tl.arange(0, KP)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return field + ((picture * rows + row) * columns + column) * (K * 9) + k * 9, k < tl.where(inside, K, 0)


@triton.jit
def _pairs(
    splat, exists, i, j, offset_y, offset_x, place_y, place_x, y, x, in_y, in_x, height, width, SIDE: tl.constexpr
):
    """Distances and logits of neighbour (i, j)'s splats at a tile's pixels: dx, dy, q, logit [BLOCK_Y, BLOCK_X, KP]."""
    u = tl.load(splat, mask=exists, other=0.0) + (j - SIDE // 2)
    v = tl.load(splat + 1, mask=exists, other=0.0) + (i - SIDE // 2)
    kx = tl.load(splat + 2, mask=exists, other=0.0)
    ky = tl.load(splat + 3, mask=exists, other=0.0)
    rho = tl.load(splat + 4, mask=exists, other=0.0)
    depth = tl.load(splat + 8, mask=exists, other=NEGATIVE_INFINITY) * LOG2E
    window_y = tl.load(place_y + (i + 1) * height + y, mask=in_y, other=0.0)
    window_x = tl.load(place_x + (j + 1) * width + x, mask=in_x, other=0.0)
    dx = offset_x[None, :, None] - u[None, None, :]
    dy = offset_y[:, None, None] - v[None, None, :]
    # (kx dx)^2 + 2 rho kx dx ky dy + (ky dy)^2 as two squares: two operations a pair, the rest once a row or column.
    along = dy * ky[None, None, :]
    across = along * rho[None, None, :]
    rest = along * along * (1.0 - rho * rho)[None, None, :]
    skewed = dx * kx[None, None, :] + across
    q = skewed * skewed + rest
    logit = (window_y[:, None, None] + depth[None, None, :]) + window_x[None, :, None] - q * FALLOFF_LOG2
    return dx, dy, q, logit


@triton.jit(do_not_specialize=_SIZES)
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
    tiles_y,
    tiles_x,
    height,
    width,
    K: tl.constexpr,
    KP: tl.constexpr,
    SIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    CULL: tl.constexpr,
    KEEP_LSE: tl.constexpr,
    FAST: tl.constexpr,
):
    """Writes image [B, 3, height, width] and, if kept, each pixel's log2 of the sum of weights [B, height, width]."""
    picture, row, column, tile_y, tile_x = _tile(
        tl.program_id(0), first_row, first_column, drawn_rows, drawn_columns, tiles_y, tiles_x
    )
    y, in_y = _pixels(edges_y, row, tile_y, BLOCK_Y)
    x, in_x = _pixels(edges_x, column, tile_x, BLOCK_X)
    offset_y = tl.load(place_y + y, mask=in_y, other=0.0)
    offset_x = tl.load(place_x + x, mask=in_x, other=0.0)
    drawn = in_y[:, None] & in_x[None, :]
    slot = tl.arange(0, 16)

    highest = tl.full([BLOCK_Y, BLOCK_X, KP], NEGATIVE_INFINITY, tl.float32)
    tops = tl.full([16], NEGATIVE_INFINITY, tl.float32)
    for n in range(SIDE * SIDE):
        i = n // SIDE
        j = n % SIDE
        splat, exists = _splats(field, picture, row + i - SIDE // 2, column + j - SIDE // 2, rows, columns, K, KP)
        _, _, _, logit = _pairs(
            splat, exists, i, j, offset_y, offset_x, place_y, place_x, y, x, in_y, in_x, height, width, SIDE
        )
        highest = tl.maximum(highest, logit)
        if CULL:
            tops = tl.where(slot == n, tl.max(logit), tops)
    peak = tl.max(highest, axis=2)
    if CULL:
        least = tl.min(tl.where(drawn, peak, INFINITY)) - CUTOFF
    else:
        least = NEGATIVE_INFINITY

    total = tl.zeros([BLOCK_Y, BLOCK_X, KP], tl.float32)
    red = tl.zeros([BLOCK_Y, BLOCK_X, KP], tl.float32)
    green = tl.zeros([BLOCK_Y, BLOCK_X, KP], tl.float32)
    blue = tl.zeros([BLOCK_Y, BLOCK_X, KP], tl.float32)
    for n in range(SIDE * SIDE):
        i = n // SIDE
        j = n % SIDE
        top = tl.max(tl.where(slot == n, tops, NEGATIVE_INFINITY)) if CULL else 0.0
        if top > least:
            splat, exists = _splats(field, picture, row + i - SIDE // 2, column + j - SIDE // 2, rows, columns, K, KP)
            _, _, q, logit = _pairs(
                splat, exists, i, j, offset_y, offset_x, place_y, place_x, y, x, in_y, in_x, height, width, SIDE
            )
            weight = tl.exp2(logit - peak[:, :, None])
            amount = weight * _value(q, KERNEL, FAST)
            total += weight
            red += amount * tl.load(splat + 5, mask=exists, other=0.0)[None, None, :]
            green += amount * tl.load(splat + 6, mask=exists, other=0.0)[None, None, :]
            blue += amount * tl.load(splat + 7, mask=exists, other=0.0)[None, None, :]

    mass = tl.sum(total, axis=2)
    plane = height.to(tl.int64) * width
    pixel = y.to(tl.int64)[:, None] * width + x[None, :]
    output = image + picture * 3 * plane + pixel
    tl.store(output, tl.sum(red, axis=2) / mass, mask=drawn)
    tl.store(output + plane, tl.sum(green, axis=2) / mass, mask=drawn)
    tl.store(output + 2 * plane, tl.sum(blue, axis=2) / mass, mask=drawn)
    if KEEP_LSE:
        tl.store(lse + picture * plane + pixel, peak + tl.log2(mass), mask=drawn)


@triton.jit(do_not_specialize=_SIZES)
def backward(
    field,
    edges_y,
    place_y,
    edges_x,
    place_x,
    image,
    lse,
    gradient,
    partial,
    rows,
    columns,
    first_row,
    first_column,
    drawn_rows,
    drawn_columns,
    tiles_y,
    tiles_x,
    height,
    width,
    K: tl.constexpr,
    KP: tl.constexpr,
    SIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    CULL: tl.constexpr,
    FAST: tl.constexpr,
):
    """Writes partial [programs, neighbours, 9, K]: five moments of dL/dq, the colours' gradients, the logits'."""
    program = tl.program_id(0)
    picture, row, column, tile_y, tile_x = _tile(
        program, first_row, first_column, drawn_rows, drawn_columns, tiles_y, tiles_x
    )
    y, in_y = _pixels(edges_y, row, tile_y, BLOCK_Y)
    x, in_x = _pixels(edges_x, column, tile_x, BLOCK_X)
    offset_y = tl.load(place_y + y, mask=in_y, other=0.0)
    offset_x = tl.load(place_x + x, mask=in_x, other=0.0)
    drawn = in_y[:, None] & in_x[None, :]
    plane = height.to(tl.int64) * width
    pixel = y.to(tl.int64)[:, None] * width + x[None, :]
    # A pixel beyond the tile has an infinite sum of weights: no splat takes part in it.
    norm = tl.load(lse + picture * plane + pixel, mask=drawn, other=INFINITY)
    given = gradient + picture * 3 * plane + pixel
    shown = image + picture * 3 * plane + pixel
    to_red = tl.load(given, mask=drawn, other=0.0)
    to_green = tl.load(given + plane, mask=drawn, other=0.0)
    to_blue = tl.load(given + 2 * plane, mask=drawn, other=0.0)
    mean = to_red * tl.load(shown, mask=drawn, other=0.0)
    mean += to_green * tl.load(shown + plane, mask=drawn, other=0.0)
    mean += to_blue * tl.load(shown + 2 * plane, mask=drawn, other=0.0)

    k = tl.arange(0, KP)
    for n in range(SIDE * SIDE):
        i = n // SIDE
        j = n % SIDE
        splat, exists = _splats(field, picture, row + i - SIDE // 2, column + j - SIDE // 2, rows, columns, K, KP)
        dx, dy, q, logit = _pairs(
            splat, exists, i, j, offset_y, offset_x, place_y, place_x, y, x, in_y, in_x, height, width, SIDE
        )
        share = logit - norm[:, :, None]
        output = partial + (program.to(tl.int64) * (SIDE * SIDE) + n) * (9 * K) + k
        top = tl.max(share) if CULL else 0.0
        if top > -CUTOFF:
            weight = tl.exp2(share)
            value, slope = _value_and_slope(q, KERNEL, FAST)
            along = to_red[:, :, None] * tl.load(splat + 5, mask=exists, other=0.0)[None, None, :]
            along += to_green[:, :, None] * tl.load(splat + 6, mask=exists, other=0.0)[None, None, :]
            along += to_blue[:, :, None] * tl.load(splat + 7, mask=exists, other=0.0)[None, None, :]
            to_value = weight * along
            to_logit = value * to_value - weight * mean[:, :, None]
            to_q = slope * to_value - to_logit * 4.0
            amount = weight * value
            by_x = to_q * dx
            by_y = to_q * dy
            tl.store(output, tl.sum(tl.sum(by_x, axis=0), axis=0), mask=k < K)
            tl.store(output + K, tl.sum(tl.sum(by_y, axis=0), axis=0), mask=k < K)
            tl.store(output + 2 * K, tl.sum(tl.sum(by_x * dx, axis=0), axis=0), mask=k < K)
            tl.store(output + 3 * K, tl.sum(tl.sum(by_x * dy, axis=0), axis=0), mask=k < K)
            tl.store(output + 4 * K, tl.sum(tl.sum(by_y * dy, axis=0), axis=0), mask=k < K)
            tl.store(output + 5 * K, tl.sum(tl.sum(amount * to_red[:, :, None], axis=0), axis=0), mask=k < K)
            tl.store(output + 6 * K, tl.sum(tl.sum(amount * to_green[:, :, None], axis=0), axis=0), mask=k < K)
            tl.store(output + 7 * K, tl.sum(tl.sum(amount * to_blue[:, :, None], axis=0), axis=0), mask=k < K)
            tl.store(output + 8 * K, tl.sum(tl.sum(to_logit, axis=0), axis=0), mask=k < K)
        else:
            nothing = tl.zeros([KP], tl.float32)
            for part in range(9):
                tl.store(output + part * K, nothing, mask=k < K)


@triton.jit(do_not_specialize=["patches", *_SIZES[:6]])
def combine(
    field,
    partial,
    gradient,
    patches,
    rows,
    columns,
    first_row,
    first_column,
    drawn_rows,
    drawn_columns,
    K: tl.constexpr,
    KP: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient [B, H, W, K, 9] of every splat from what its 3x3 patches gave: partial [patches, neighbours, 9, K]."""
    patch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = patch % columns
    row = (patch // columns) % rows
    picture = (patch // columns // rows).to(tl.int64)
    k = tl.arange(0, KP)
    valid = (patch < patches)[:, None] & (k < K)[None, :]
    m_x = tl.zeros([BLOCK, KP], tl.float32)
    m_y = tl.zeros([BLOCK, KP], tl.float32)
    m_xx = tl.zeros([BLOCK, KP], tl.float32)
    m_xy = tl.zeros([BLOCK, KP], tl.float32)
    m_yy = tl.zeros([BLOCK, KP], tl.float32)
    red = tl.zeros([BLOCK, KP], tl.float32)
    green = tl.zeros([BLOCK, KP], tl.float32)
    blue = tl.zeros([BLOCK, KP], tl.float32)
    depth = tl.zeros([BLOCK, KP], tl.float32)
    for n in range(SIDE * SIDE):
        # The patch whose neighbour n this patch is, counted among those that were drawn.
        to_row = row - first_row - n // SIDE + SIDE // 2
        to_column = column - first_column - n % SIDE + SIDE // 2
        inside = (to_row >= 0) & (to_row < drawn_rows) & (to_column >= 0) & (to_column < drawn_columns)
        source = (picture * drawn_rows + to_row) * drawn_columns + to_column
        source = (source * (SIDE * SIDE) + n) * (9 * K)
        place = partial + source[:, None] + k[None, :]
        mask = valid & inside[:, None]
        m_x += tl.load(place, mask=mask, other=0.0)
        m_y += tl.load(place + K, mask=mask, other=0.0)
        m_xx += tl.load(place + 2 * K, mask=mask, other=0.0)
        m_xy += tl.load(place + 3 * K, mask=mask, other=0.0)
        m_yy += tl.load(place + 4 * K, mask=mask, other=0.0)
        red += tl.load(place + 5 * K, mask=mask, other=0.0)
        green += tl.load(place + 6 * K, mask=mask, other=0.0)
        blue += tl.load(place + 7 * K, mask=mask, other=0.0)
        depth += tl.load(place + 8 * K, mask=mask, other=0.0)
    at = (patch.to(tl.int64) * (K * 9))[:, None] + (k * 9)[None, :]
    kx = tl.load(field + at + 2, mask=valid, other=0.0)
    ky = tl.load(field + at + 3, mask=valid, other=0.0)
    rho = tl.load(field + at + 4, mask=valid, other=0.0)
    tl.store(gradient + at, kx * (kx * m_x + rho * ky * m_y) * -2.0, mask=valid)
    tl.store(gradient + at + 1, ky * (ky * m_y + rho * kx * m_x) * -2.0, mask=valid)
    tl.store(gradient + at + 2, (kx * m_xx + rho * ky * m_xy) * 2.0, mask=valid)
    tl.store(gradient + at + 3, (ky * m_yy + rho * kx * m_xy) * 2.0, mask=valid)
    tl.store(gradient + at + 4, kx * ky * m_xy * 2.0, mask=valid)
    tl.store(gradient + at + 5, red, mask=valid)
    tl.store(gradient + at + 6, green, mask=valid)
    tl.store(gradient + at + 7, blue, mask=valid)
    tl.store(gradient + at + 8, depth, mask=valid)
