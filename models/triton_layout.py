# mypy: allow-untyped-defs, allow-incomplete-defs
"""Around the backward pass on the device: pixels laid out for it before, and the sums of its warps added up after.

Pixels go tile by tile, in the order in which lanes read them, with all that does not depend on a splat computed once.
"""

import triton
import triton.language as tl

from models.triton_kernels import INFINITY


@triton.jit
def _pixels(LANES: tl.constexpr, COLUMN: tl.constexpr, TILE_X: tl.constexpr):
    """Rows and columns [TILE] of a tile's pixels, in the order in which they are packed.

    Each of LANES lanes has COLUMN pixels below each other, and loads VECTOR of them at once.
    """
    VECTOR: tl.constexpr = COLUMN if COLUMN < 4 else 4
    pixel = tl.arange(0, LANES * COLUMN)
    lane = pixel // VECTOR % LANES
    y = lane // TILE_X * COLUMN + pixel // (LANES * VECTOR) * VECTOR + pixel % VECTOR
    return y, lane % TILE_X


@triton.jit(do_not_specialize=["grid_y", "grid_x", "height", "width"])
def pack(
    pixels_y,
    place_y,
    pixels_x,
    image,
    lse,
    gradient,
    packed,
    least,
    grid_y,
    grid_x,
    height,
    width,
    SIDE: tl.constexpr,
    LANES: tl.constexpr,
    COLUMN: tl.constexpr,
    TILE_X: tl.constexpr,
):
    """Writes packed [B, grid_y, grid_x, SIDE + 4, TILE] and least [B, grid_y, grid_x, SIDE], a tile a program.

    Packed are the log2 sum of weights less each neighbour's window along y, infinite for a pixel that is not there, so
    that no splat takes part in it; the gradient times the colour; and the gradient. The least of each of the former
    over the tile is what weights are bounded with.
    """
    TILE: tl.constexpr = LANES * COLUMN
    TILE_Y: tl.constexpr = TILE // TILE_X
    program = tl.program_id(0)
    tile_x = program % grid_x
    tile_y = program // grid_x % grid_y
    picture = (program // grid_x // grid_y).to(tl.int64)
    plane = height.to(tl.int64) * width
    in_y, in_x = _pixels(LANES, COLUMN, TILE_X)
    y = tl.load(pixels_y + tile_y * TILE_Y + in_y)
    x = tl.load(pixels_x + tile_x * TILE_X + in_x)
    drawn = (y >= 0) & (x >= 0)
    pixel = y.to(tl.int64) * width + x
    norm = tl.load(lse + picture * plane + pixel, mask=drawn, other=INFINITY)
    image += picture * 3 * plane + pixel
    gradient += picture * 3 * plane + pixel
    red = tl.load(gradient, mask=drawn, other=0.0)
    green = tl.load(gradient + plane, mask=drawn, other=0.0)
    blue = tl.load(gradient + 2 * plane, mask=drawn, other=0.0)
    mean = red * tl.load(image, mask=drawn, other=0.0)
    mean += green * tl.load(image + plane, mask=drawn, other=0.0)
    mean += blue * tl.load(image + 2 * plane, mask=drawn, other=0.0)
    to = packed + program.to(tl.int64) * ((SIDE + 4) * TILE) + tl.arange(0, TILE)
    for i in tl.static_range(SIDE):
        window = tl.load(place_y + (2 * i + 1) * (grid_y * TILE_Y) + tile_y * TILE_Y + in_y)
        relative = tl.where(drawn, norm - window, INFINITY)
        tl.store(to + i * TILE, relative)
        tl.store(least + program.to(tl.int64) * SIDE + i, tl.min(relative, axis=0))
    tl.store(to + SIDE * TILE, mean)
    tl.store(to + (SIDE + 1) * TILE, red)
    tl.store(to + (SIDE + 2) * TILE, green)
    tl.store(to + (SIDE + 3) * TILE, blue)


@triton.jit(do_not_specialize=["splats", "strips"])
def combine(field, partial, gradient, splats, strips, K: tl.constexpr, BLOCK: tl.constexpr, STRIPS: tl.constexpr):
    """Gradient [splats, 9] of every splat from its patch's strips: partial [B H W, strips, 9, K]."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = number < splats
    part = tl.arange(0, 16)
    ahead = tl.arange(0, STRIPS)[:, None, None]
    sums = tl.zeros([STRIPS, BLOCK, 16], tl.float32)
    place = partial + (number // K * strips * (9 * K) + number % K)[None, :, None] + part[None, None, :] * K
    mask = valid[:, None] & (part < 9)[None, :]
    strip = 0
    while strip < strips:
        here = strip + ahead
        sums += tl.load(place + here * (9 * K), mask=mask[None, :, :] & (here < strips), other=0.0)
        strip += STRIPS
    sums = tl.sum(sums, axis=0)
    m_x = tl.sum(tl.where((part == 0)[None, :], sums, 0.0), axis=1)
    m_y = tl.sum(tl.where((part == 1)[None, :], sums, 0.0), axis=1)
    m_xx = tl.sum(tl.where((part == 2)[None, :], sums, 0.0), axis=1)
    m_xy = tl.sum(tl.where((part == 3)[None, :], sums, 0.0), axis=1)
    m_yy = tl.sum(tl.where((part == 4)[None, :], sums, 0.0), axis=1)
    at = number * 9
    kx = tl.load(field + at + 2, mask=valid, other=0.0)
    ky = tl.load(field + at + 3, mask=valid, other=0.0)
    rho = tl.load(field + at + 4, mask=valid, other=0.0)
    tl.store(gradient + at, kx * (kx * m_x + rho * ky * m_y) * -8.0, mask=valid)
    tl.store(gradient + at + 1, ky * (ky * m_y + rho * kx * m_x) * -8.0, mask=valid)
    tl.store(gradient + at + 2, (kx * m_xx + rho * ky * m_xy) * 8.0, mask=valid)
    tl.store(gradient + at + 3, (ky * m_yy + rho * kx * m_xy) * 8.0, mask=valid)
    tl.store(gradient + at + 4, kx * ky * m_xy * 8.0, mask=valid)
    tl.store(gradient + at[:, None] + part[None, :], sums, mask=mask & (part >= 5)[None, :])
