# mypy: allow-untyped-defs, allow-incomplete-defs
"""What the device code of both passes shares: value kernels, and where tiles, pixels and splats are.

Positions come in two tables an axis: `edges`, the first pixel of every patch; and `place`, whose row 0 has each pixel's
offset in its patch and whose rows 1... the log2 windows of the neighbours. Weights are powers of 2.
"""

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
# The weight exp(d - 4 q) is 2^(LOG2E d - Q), with Q = FALLOFF_LOG2 q.
FALLOFF_LOG2 = tl.constexpr(4.0 * math.log2(math.e))
FALLOFF_ROOT = tl.constexpr(math.sqrt(4.0 * math.log2(math.e)))
INFINITY = tl.constexpr(float("inf"))
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
# The depth of a splat that is not there: no weight, and still a finite q.
ABSENT = tl.constexpr(-1e9)


@triton.jit
def exp2(x, FAST: tl.constexpr):
    """2^x, flushed to 0 below 2^-126: what lies there is nothing beside any pixel's largest weight."""
    # Without the flush every call is four instructions longer. The interpreter has no assembly.
    if FAST:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def _cos(x, FAST: tl.constexpr):
    # The hardware's cosine is good to 1e-6 where a kernel is not yet negligible.
    if FAST:
        y = tl.inline_asm_elementwise("cos.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.cos(x)
    return y


@triton.jit
def _sin(x, FAST: tl.constexpr):
    if FAST:
        y = tl.inline_asm_elementwise("sin.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.sin(x)
    return y


@triton.jit
def amount(share, q, KERNEL: tl.constexpr, FAST: tl.constexpr):
    """A weight, given as its log2 `share`, and the weight times `models.kernels.DRAWABLE[KERNEL]` at q."""
    weight = exp2(share, FAST)
    if KERNEL == "wavelet":
        product = exp2(share + q * (-0.9 * LOG2E), FAST) * _cos(q * 6.0, FAST)
    elif KERNEL == "sharp":
        s = q * 2.0
        low = tl.minimum(s, 1.0)
        low = low * low
        low = low * low
        low = low * low
        wave = exp2(s * -LOG2E, FAST) * _sin(tl.maximum(s, 1.0) - 1.0, FAST)
        product = weight * (1.0 - low * low - wave * 4.0)
    elif KERNEL == "gaussian":
        product = exp2(share + q * (-2.0 * LOG2E), FAST)
    else:
        product = weight
    return weight, product


@triton.jit
def value_and_slope(q, KERNEL: tl.constexpr, FAST: tl.constexpr):
    """The kernel at q, and its derivative by 4 q, the falloff: so weights change by -1 of themselves."""
    if KERNEL == "wavelet":
        fall = exp2(q * (-0.9 * LOG2E), FAST)
        answer = fall * _cos(q * 6.0, FAST)
        slope = answer * (-0.9 / 4.0) - fall * _sin(q * 6.0, FAST) * (6.0 / 4.0)
    elif KERNEL == "sharp":
        s = q * 2.0
        low = tl.minimum(s, 1.0)
        low2 = low * low
        low4 = low2 * low2
        low8 = low4 * low4
        fall = exp2(s * -LOG2E, FAST) * 4.0
        angle = tl.maximum(s, 1.0) - 1.0
        wave = fall * _sin(angle, FAST)
        answer = 1.0 - low8 * low8 - wave
        top = tl.where(s <= 1.0, low8 * low4 * low2 * low * -16.0, 0.0)
        slope = (top + wave - tl.where(s >= 1.0, fall * _cos(angle, FAST), 0.0)) * 0.5
    elif KERNEL == "gaussian":
        answer = exp2(q * (-2.0 * LOG2E), FAST)
        slope = answer * -0.5
    else:
        answer = q * 0.0 + 1.0
        slope = q * 0.0
    return answer, slope


@triton.jit
def load_shape(splat, exists, column, row):
    """Mean (moved by whole patches), scales such that Q = along^2 + ..., correlation and log2 depth of splats."""
    u = tl.load(splat, mask=exists, other=0.0) + column
    v = tl.load(splat + 1, mask=exists, other=0.0) + row
    kx = tl.load(splat + 2, mask=exists, other=0.0) * FALLOFF_ROOT
    ky = tl.load(splat + 3, mask=exists, other=0.0) * FALLOFF_ROOT
    rho = tl.load(splat + 4, mask=exists, other=0.0)
    depth = tl.load(splat + 8, mask=exists, other=ABSENT) * LOG2E
    return u, v, kx, ky, rho, depth


@triton.jit
def square_form(a, b, rho):
    """a^2 + 2 rho a b + b^2, as two squares: never negative, and no difference of large numbers."""
    across = a * rho + b
    return across * across + a * a * (1.0 - rho * rho)


@triton.jit
def least_form(u, v, kx, ky, rho, exists, left, right, top, bottom):
    """The least Q of splats over a rectangle, exact: a convex function is least on a side that faces its mean."""
    near_x = tl.minimum(tl.maximum(u, left), right) - u
    near_y = tl.minimum(tl.maximum(v, top), bottom) - v
    # The least point of the line through the near side, pushed back into it.
    along_y = tl.minimum(tl.maximum(v - rho * near_x * kx / tl.where(exists, ky, 1.0), top), bottom) - v
    along_x = tl.minimum(tl.maximum(u - rho * near_y * ky / tl.where(exists, kx, 1.0), left), right) - u
    return tl.minimum(square_form(kx * near_x, ky * along_y, rho), square_form(kx * along_x, ky * near_y, rho))
