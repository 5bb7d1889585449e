# mypy: allow-untyped-defs, allow-incomplete-defs
"""Differentiating on the device: one warp gathers what the pixels of 3x3 patches say about one patch's splats.

Nothing is stored but what the forward pass leaves, each pixel's colour and log2 of the sum of weights: weights are
computed again. A warp keeps its splats and their sums of gradients in registers, four splats a lane, and walks the
pixels in rows of BLOCK; so nothing is added atomically and results are deterministic. Where patches are large they are
cut in strips, a warp each, which the last kernel adds up.
"""

import triton
import triton.language as tl

from models.triton_forward import SIZES
from models.triton_kernels import FALLOFF_LOG2, INFINITY, exp2, load_shape, value_and_slope


@triton.jit(do_not_specialize=[*SIZES, "strips", "strip_rows"])
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
    height,
    width,
    strips,
    strip_rows,
    K: tl.constexpr,
    KP: tl.constexpr,
    SIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
    CULL: tl.constexpr,
    CUTOFF: tl.constexpr,
    FAST: tl.constexpr,
):
    """Writes partial [B H W strips, 9, K]: five moments of dL/dq, the colours' gradients, the depths'."""
    program = tl.program_id(0)
    strip = program % strips
    column = program // strips % columns
    row = program // strips // columns % rows
    picture = (program // strips // columns // rows).to(tl.int64)
    k = tl.arange(0, KP)
    exists = k < K
    splat = field + ((picture * rows + row) * columns + column) * (K * 9) + k * 9
    home_u, home_v, kx, ky, rho, depth = load_shape(splat, exists, 0, 0)
    splat_red = tl.load(splat + 5, mask=exists, other=0.0)[:, None]
    splat_green = tl.load(splat + 6, mask=exists, other=0.0)[:, None]
    splat_blue = tl.load(splat + 7, mask=exists, other=0.0)[:, None]
    slimness = (1.0 - rho * rho)[:, None]
    plane = height.to(tl.int64) * width
    image += picture * 3 * plane
    gradient += picture * 3 * plane
    lse += picture * plane

    m_x = tl.zeros([KP, BLOCK], tl.float32)
    m_y = tl.zeros([KP, BLOCK], tl.float32)
    m_xx = tl.zeros([KP, BLOCK], tl.float32)
    m_xy = tl.zeros([KP, BLOCK], tl.float32)
    m_yy = tl.zeros([KP, BLOCK], tl.float32)
    red = tl.zeros([KP, BLOCK], tl.float32)
    green = tl.zeros([KP, BLOCK], tl.float32)
    blue = tl.zeros([KP, BLOCK], tl.float32)
    sums = tl.zeros([KP, BLOCK], tl.float32)
    for n in range(SIDE * SIDE):
        # This patch is neighbour (i, j) of the patch whose pixels are walked.
        i = n // SIDE
        j = n % SIDE
        at_row = row - i + SIDE // 2
        at_column = column - j + SIDE // 2
        seen = (at_row >= first_row) & (at_row < first_row + drawn_rows)
        seen = seen & (at_column >= first_column) & (at_column < first_column + drawn_columns)
        y_first = tl.load(edges_y + at_row, mask=seen, other=0) + strip * strip_rows
        y_end = tl.minimum(tl.load(edges_y + at_row + 1, mask=seen, other=0), y_first + strip_rows)
        x_first = tl.load(edges_x + at_column, mask=seen, other=0)
        x_end = tl.load(edges_x + at_column + 1, mask=seen, other=0)
        u = home_u + (j - SIDE // 2)
        v = home_v + (i - SIDE // 2)
        while x_first < x_end:
            x = x_first + tl.arange(0, BLOCK)
            in_x = x < x_end
            dx = tl.load(place_x + x, mask=in_x, other=0.0)[None, :] - u[:, None]
            window_x = tl.load(place_x + (j + 1) * width + x, mask=in_x, other=0.0)
            along = dx * kx[:, None]
            across = along * rho[:, None]
            rest = along * along * slimness - depth[:, None]
            y = y_first
            while y < y_end:
                pixel = y.to(tl.int64) * width + x
                # A pixel beyond the block has an infinite sum of weights: no splat takes part in it.
                norm = tl.load(lse + pixel, mask=in_x, other=INFINITY)
                base = (norm - window_x) - tl.load(place_y + (i + 1) * height + y)
                dy = (tl.load(place_y + y) - v)[:, None]
                skewed = dy * ky[:, None] + across
                away = skewed * skewed + rest
                share = -base[None, :] - away
                top = tl.max(tl.max(share, axis=1), axis=0) if CULL else 0.0
                if top > -CUTOFF:
                    to_red = tl.load(gradient + pixel, mask=in_x, other=0.0)
                    to_green = tl.load(gradient + plane + pixel, mask=in_x, other=0.0)
                    to_blue = tl.load(gradient + 2 * plane + pixel, mask=in_x, other=0.0)
                    mean = to_red * tl.load(image + pixel, mask=in_x, other=0.0)
                    mean += to_green * tl.load(image + plane + pixel, mask=in_x, other=0.0)
                    mean += to_blue * tl.load(image + 2 * plane + pixel, mask=in_x, other=0.0)
                    weight = exp2(share, FAST)
                    q = away * (1.0 / FALLOFF_LOG2) + (depth * (1.0 / FALLOFF_LOG2))[:, None]
                    level, slope = value_and_slope(q, KERNEL, FAST)
                    towards = to_red[None, :] * splat_red + to_green[None, :] * splat_green
                    towards += to_blue[None, :] * splat_blue
                    to_logit = weight * (level * towards - mean[None, :])
                    to_q = weight * (slope * towards) - to_logit * 4.0
                    amount = weight * level
                    by_x = to_q * dx
                    by_y = to_q * dy
                    m_x += by_x
                    m_y += by_y
                    m_xx += by_x * dx
                    m_xy += by_x * dy
                    m_yy += by_y * dy
                    red += amount * to_red[None, :]
                    green += amount * to_green[None, :]
                    blue += amount * to_blue[None, :]
                    sums += to_logit
                y += 1
            x_first += BLOCK

    output = partial + program.to(tl.int64) * (9 * K) + k
    tl.store(output, tl.sum(m_x, axis=1), mask=exists)
    tl.store(output + K, tl.sum(m_y, axis=1), mask=exists)
    tl.store(output + 2 * K, tl.sum(m_xx, axis=1), mask=exists)
    tl.store(output + 3 * K, tl.sum(m_xy, axis=1), mask=exists)
    tl.store(output + 4 * K, tl.sum(m_yy, axis=1), mask=exists)
    tl.store(output + 5 * K, tl.sum(red, axis=1), mask=exists)
    tl.store(output + 6 * K, tl.sum(green, axis=1), mask=exists)
    tl.store(output + 7 * K, tl.sum(blue, axis=1), mask=exists)
    tl.store(output + 8 * K, tl.sum(sums, axis=1), mask=exists)


@triton.jit(do_not_specialize=["splats", "strips"])
def combine(field, partial, gradient, splats, strips, K: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient [splats, 9] of every splat from its patch's strips: partial [B H W, strips, 9, K]."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = number < splats
    part = tl.arange(0, 16)
    sums = tl.zeros([BLOCK, 16], tl.float32)
    place = partial + (number // K * strips * (9 * K) + number % K)[:, None] + part[None, :] * K
    mask = valid[:, None] & (part < 9)[None, :]
    strip = 0
    while strip < strips:
        sums += tl.load(place, mask=mask, other=0.0)
        place += 9 * K
        strip += 1
    m_x = tl.sum(tl.where((part == 0)[None, :], sums, 0.0), axis=1)
    m_y = tl.sum(tl.where((part == 1)[None, :], sums, 0.0), axis=1)
    m_xx = tl.sum(tl.where((part == 2)[None, :], sums, 0.0), axis=1)
    m_xy = tl.sum(tl.where((part == 3)[None, :], sums, 0.0), axis=1)
    m_yy = tl.sum(tl.where((part == 4)[None, :], sums, 0.0), axis=1)
    at = number * 9
    kx = tl.load(field + at + 2, mask=valid, other=0.0)
    ky = tl.load(field + at + 3, mask=valid, other=0.0)
    rho = tl.load(field + at + 4, mask=valid, other=0.0)
    tl.store(gradient + at, kx * (kx * m_x + rho * ky * m_y) * -2.0, mask=valid)
    tl.store(gradient + at + 1, ky * (ky * m_y + rho * kx * m_x) * -2.0, mask=valid)
    tl.store(gradient + at + 2, (kx * m_xx + rho * ky * m_xy) * 2.0, mask=valid)
    tl.store(gradient + at + 3, (ky * m_yy + rho * kx * m_xy) * 2.0, mask=valid)
    tl.store(gradient + at + 4, kx * ky * m_xy * 2.0, mask=valid)
    tl.store(gradient + at[:, None] + part[None, :], sums, mask=mask & (part >= 5)[None, :])
