"""Fused Triton kernels for `models.rasterize`: the same blend in one launch forward and two backward, CUDA fp32.

Splats are binned by construction: a pixel sees the splats of its 3x3 patches and no others, so nothing is sorted and
nothing is accumulated atomically; results are deterministic. One program draws one tile of one patch's pixels. It walks
the neighbours twice, K splats at a time: first for each pixel's largest logit, then for the sums. Logits are kept in
units of log 2. The backward pass recomputes the weights from each pixel's log-sum-exp; a program writes the gradients
that its tile gives to each neighbour's splats, and a last kernel gathers them for every splat from its 3x3 patches.

Where a patch has many tiles, a neighbour all of whose weights are below 2^-CUTOFF of the largest weight at every pixel
of the tile is skipped. That changes a pixel by at most 2 * 9 K * 2^-CUTOFF of the largest colour: 4.3e-6 for K = 16.

Both passes are torch custom operators: `torch.compile` neither traces nor breaks at them, and they never wait for the
device. The few kilobytes that say where pixels lie are uploaded when a size is first drawn, then kept, so draw a size
once before capturing it in a CUDA graph.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels import DRAWABLE, log_window
from models.pixels import Axis
from models.splats import PARAMETERS

# Pixels of a tile (rows, columns) and the splat-pixel pairs that one thread holds at once, which sets the warps.
FORWARD_TILE, FORWARD_PAIRS = (8, 8), 8
BACKWARD_TILE, BACKWARD_PAIRS = (4, 8), 16
# A patch of at least this many tiles is worth testing its neighbours for negligible weight.
CULLED_TILES = 4
COMBINED_PATCHES = 8

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
        y = tl.inline_asm_elementwise(
            "cos.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = tl.cos(x)
    return y


@triton.jit
def _sin(x, FAST: tl.constexpr):
    if FAST:
        y = tl.inline_asm_elementwise(
            "sin.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
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
    return field + ((picture * rows + row) * columns + column) * (K * 9) + k * 9, (k < K) & inside


@triton.jit
def _pairs(
    splat, exists, i, j, place_y, place_x, y, x, in_y, in_x, height, width, SIDE: tl.constexpr
):
    """Distances and logits of neighbour (i, j)'s splats at a tile's pixels: dx, dy, q, logit [BLOCK_Y, BLOCK_X, KP]."""
    u = tl.load(splat, mask=exists, other=0.0) + (j - SIDE // 2)
    v = tl.load(splat + 1, mask=exists, other=0.0) + (i - SIDE // 2)
    kx = tl.load(splat + 2, mask=exists, other=0.0)
    ky = tl.load(splat + 3, mask=exists, other=0.0)
    rho = tl.load(splat + 4, mask=exists, other=0.0)
    depth = tl.load(splat + 8, mask=exists, other=NEGATIVE_INFINITY) * LOG2E
    offset_y = tl.load(place_y + y, mask=in_y, other=0.0)
    offset_x = tl.load(place_x + x, mask=in_x, other=0.0)
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
def _forward(
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
    picture, row, column, tile_y, tile_x = _tile(
        tl.program_id(0), first_row, first_column, drawn_rows, drawn_columns, tiles_y, tiles_x
    )
    y, in_y = _pixels(edges_y, row, tile_y, BLOCK_Y)
    x, in_x = _pixels(edges_x, column, tile_x, BLOCK_X)
    drawn = in_y[:, None] & in_x[None, :]
    slot = tl.arange(0, 16)

    highest = tl.full([BLOCK_Y, BLOCK_X, KP], NEGATIVE_INFINITY, tl.float32)
    tops = tl.full([16], NEGATIVE_INFINITY, tl.float32)
    for n in range(SIDE * SIDE):
        i = n // SIDE
        j = n % SIDE
        splat, exists = _splats(
            field, picture, row + i - SIDE // 2, column + j - SIDE // 2, rows, columns, K, KP
        )
        _, _, _, logit = _pairs(
            splat, exists, i, j, place_y, place_x, y, x, in_y, in_x, height, width, SIDE
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
            splat, exists = _splats(
                field, picture, row + i - SIDE // 2, column + j - SIDE // 2, rows, columns, K, KP
            )
            _, _, q, logit = _pairs(
                splat, exists, i, j, place_y, place_x, y, x, in_y, in_x, height, width, SIDE
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
def _backward(
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
        splat, exists = _splats(
            field, picture, row + i - SIDE // 2, column + j - SIDE // 2, rows, columns, K, KP
        )
        dx, dy, q, logit = _pairs(
            splat, exists, i, j, place_y, place_x, y, x, in_y, in_x, height, width, SIDE
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
def _combine(
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


@functools.lru_cache(maxsize=1024)
def _places(axis: Axis, neighbourhood: int, device: torch.device) -> tuple[Tensor, Tensor, int, int, int]:
    """An axis on the device: first pixel of each patch int32 [patches + 1], places [1 + neighbourhood, pixels].

    The places are the pixels' offsets in their patch, then the log2 windows of each neighbour, -inf beyond the picture.
    With them the first patch that has pixels, how many from there on have some, and the most pixels of any.
    """
    home, offset = axis.centres()
    edges = torch.searchsorted(home, torch.arange(axis.patches + 1))
    steps = torch.arange(neighbourhood)[:, None] - neighbourhood // 2
    if neighbourhood == 1:
        window = torch.zeros(1, len(axis), dtype=torch.float64)
    else:
        beyond = (home + steps < 0) | (home + steps >= axis.patches)
        window = log_window(offset - steps).masked_fill(beyond, -math.inf) * LOG2E.value
    first, last = int(home[0]), int(home[-1])
    places = torch.cat([offset[None], window]).float()
    return edges.int().to(device), places.to(device), first, last - first + 1, int(edges.diff().max())


def _geometry(
    field: Tensor, axis_y: Axis, axis_x: Axis, neighbourhood: int, tile: tuple[int, int]
) -> tuple[list[Tensor], list[int], int]:
    """Launch arguments shared by both passes (tables, then sizes) and the tiles of a patch."""
    edges_y, place_y, first_row, drawn_rows, most_y = _places(axis_y, neighbourhood, field.device)
    edges_x, place_x, first_column, drawn_columns, most_x = _places(axis_x, neighbourhood, field.device)
    tiles_y, tiles_x = triton.cdiv(most_y, tile[0]), triton.cdiv(most_x, tile[1])
    rows, columns = field.shape[1:3]
    sizes = [rows, columns, first_row, first_column, drawn_rows, drawn_columns, tiles_y, tiles_x]
    return [edges_y, place_y, edges_x, place_x], [*sizes, len(axis_y), len(axis_x)], tiles_y * tiles_x


def _warps(tile: tuple[int, int], splats: int, pairs: int) -> int:
    """Warps that give each thread at most about `pairs` of a tile's splat-pixel pairs with one patch."""
    return min(8, max(1, tile[0] * tile[1] * splats // (32 * pairs)))


def _launch_forward(
    field: Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int, keep_lse: bool
) -> tuple[Tensor, Tensor]:
    batch, _, _, splats, _ = field.shape
    image, lse = _outputs(field, len(axis_y), len(axis_x), keep_lse)
    if batch == 0:
        return image, lse
    tables, sizes, tiles = _geometry(field, axis_y, axis_x, neighbourhood, FORWARD_TILE)
    padded = triton.next_power_of_2(splats)
    _forward[(batch * sizes[4] * sizes[5] * tiles,)](
        field,
        *tables,
        image,
        lse,
        *sizes,
        K=splats,
        KP=padded,
        SIDE=neighbourhood,
        KERNEL=kernel,
        BLOCK_Y=FORWARD_TILE[0],
        BLOCK_X=FORWARD_TILE[1],
        CULL=tiles >= CULLED_TILES,
        KEEP_LSE=keep_lse,
        FAST=field.is_cuda,
        num_warps=_warps(FORWARD_TILE, padded, FORWARD_PAIRS),
        num_stages=1,
    )
    return image, lse


def _launch_backward(
    gradient: Tensor,
    field: Tensor,
    image: Tensor,
    lse: Tensor,
    axis_y: Axis,
    axis_x: Axis,
    kernel: str,
    neighbourhood: int,
) -> Tensor:
    batch, rows, columns, splats, _ = field.shape
    to_field = torch.empty_like(field)
    if batch == 0:
        return to_field
    tables, sizes, tiles = _geometry(field, axis_y, axis_x, neighbourhood, BACKWARD_TILE)
    padded = triton.next_power_of_2(splats)
    drawn = batch * sizes[4] * sizes[5]
    partial = field.new_empty(drawn, tiles, neighbourhood**2, len(PARAMETERS), splats)
    _backward[(drawn * tiles,)](
        field,
        *tables,
        image,
        lse,
        gradient,
        partial,
        *sizes,
        K=splats,
        KP=padded,
        SIDE=neighbourhood,
        KERNEL=kernel,
        BLOCK_Y=BACKWARD_TILE[0],
        BLOCK_X=BACKWARD_TILE[1],
        CULL=tiles >= CULLED_TILES,
        FAST=field.is_cuda,
        num_warps=_warps(BACKWARD_TILE, padded, BACKWARD_PAIRS),
        num_stages=1,
    )
    partial = partial.sum(1) if tiles > 1 else partial
    patches = batch * rows * columns
    _combine[(triton.cdiv(patches, COMBINED_PATCHES),)](
        field,
        partial,
        to_field,
        patches,
        *sizes[:6],
        K=splats,
        KP=padded,
        SIDE=neighbourhood,
        BLOCK=COMBINED_PATCHES,
        num_warps=4,
        num_stages=1,
    )
    return to_field


def _outputs(field: Tensor, height: int, width: int, keep_lse: bool) -> tuple[Tensor, Tensor]:
    batch = field.shape[0]
    image = field.new_empty(batch, 3, height, width)
    return image, field.new_empty((batch, height, width) if keep_lse else (0,))


# An axis as an operator's arguments: its integers, then its fractions.
_AXES = "int[] sizes_y, float[] span_y, int[] sizes_x, float[] span_x, str kernel, int neighbourhood"


def _axis(sizes: list[int], span: list[float]) -> Axis:
    pixels, patches, first, last = sizes
    return Axis(pixels, span[0], span[1], patches, first, last)


@torch.library.custom_op(
    "splatcats::draw",
    mutates_args=(),
    schema=f"(Tensor field, {_AXES}, bool keep_lse) -> (Tensor, Tensor)",
)
def _draw_operator(field, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood, keep_lse):  # type: ignore[no-untyped-def]
    axes = _axis(sizes_y, span_y), _axis(sizes_x, span_x)
    return _launch_forward(field.contiguous(), *axes, kernel, neighbourhood, keep_lse)


@_draw_operator.register_fake
def _(field, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood, keep_lse):  # type: ignore[no-untyped-def]
    return _outputs(field, sizes_y[3] - sizes_y[2], sizes_x[3] - sizes_x[2], keep_lse)


@torch.library.custom_op(
    "splatcats::draw_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor field, Tensor image, Tensor lse, {_AXES}) -> Tensor",
)
def _backward_operator(  # type: ignore[no-untyped-def]
    gradient, field, image, lse, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood
):
    axes = _axis(sizes_y, span_y), _axis(sizes_x, span_x)
    return _launch_backward(
        gradient.contiguous(), field.contiguous(), image, lse, *axes, kernel, neighbourhood
    )


@_backward_operator.register_fake
def _(gradient, field, image, lse, sizes_y, span_y, sizes_x, span_x, kernel, neighbourhood):  # type: ignore[no-untyped-def]
    return torch.empty_like(field, memory_format=torch.contiguous_format)


def _remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
    field, *ctx.arguments, _ = inputs
    ctx.save_for_backward(field, *output)


def _differentiate(ctx, gradient, _):  # type: ignore[no-untyped-def]
    return _backward_operator(gradient, *ctx.saved_tensors, *ctx.arguments), *[None] * 7


_draw_operator.register_autograd(_differentiate, setup_context=_remember)


def draw(field: Tensor, axis_y: Axis, axis_x: Axis, kernel: str, neighbourhood: int) -> Tensor:
    """Samples [B, 3, Y, X] of splat fields [B, H, W, K, 9], fp32, at the crossings of two axes.

    The same function as the reference in `models.rasterize`, to 1e-4, and once differentiable in `field`.
    """
    assert kernel in DRAWABLE and field.dtype == torch.float32
    keep_lse = torch.is_grad_enabled() and field.requires_grad
    arguments = []
    for axis in (axis_y, axis_x):
        arguments += [[axis.pixels, axis.patches, axis.first, axis.last], [axis.start, axis.stop]]
    image, _ = _draw_operator(field, *arguments, kernel, neighbourhood, keep_lse)
    return image
