# mypy: allow-untyped-defs, allow-incomplete-defs
"""Kernels of the transformer's blocks on the device, launched by `models.transformer_triton`: see there."""

import torch
import triton
import triton.language as tl

from models.triton_kernels import LOG2E

EPSILON = tl.constexpr(torch.finfo(torch.float32).eps)  # of the mean square, as torch has it


@triton.jit
def _turned(at, exists, scale, cos, sin, HALF: tl.constexpr):
    """Queries or keys at `at` [n, HALF], normalised, scaled and rotated: their first and second halves, float32."""
    first = tl.load(at, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=exists, other=0.0).to(tl.float32)
    square = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    share = tl.rsqrt(square / (2 * HALF) + EPSILON)[:, None]
    column = tl.arange(0, HALF)[None, :]
    first = first * share * tl.load(scale + column)
    second = second * share * tl.load(scale + HALF + column)
    return first * cos - second * sin, first * sin + second * cos


@triton.jit
def attend(
    qkv, query_scale, key_scale, cos, sin, mixed,
    TOKENS: tl.constexpr, PADDED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_Q: tl.constexpr,
    TURNS: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """One picture's BLOCK_Q queries in TURNS heads, one head after the other, over all of the picture's keys."""
    WIDTH: tl.constexpr = HEADS * 2 * HALF
    program = tl.program_id(0)
    first_row = (program // (HEADS // TURNS)).to(tl.int64) * TOKENS
    first_head = program % (HEADS // TURNS) * TURNS
    query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    key = tl.arange(0, PADDED)
    angle = tl.arange(0, HALF)
    column = tl.arange(0, 2 * HALF)
    asks, answers = (query < TOKENS)[:, None], (key < TOKENS)[:, None]
    query_at, key_at = query[:, None] * HALF + angle[None, :], key[:, None] * HALF + angle[None, :]
    query_cos, query_sin = tl.load(cos + query_at, mask=asks, other=0.0), tl.load(sin + query_at, mask=asks, other=0.0)
    key_cos, key_sin = tl.load(cos + key_at, mask=answers, other=0.0), tl.load(sin + key_at, mask=answers, other=0.0)
    kind = qkv.dtype.element_ty
    for turn in range(TURNS):
        start = (first_head + turn) * (2 * HALF)
        rows = qkv + first_row * (3 * WIDTH) + start
        queries = rows + query[:, None] * (3 * WIDTH) + angle[None, :]
        keys = rows + key[:, None] * (3 * WIDTH) + angle[None, :] + WIDTH
        values = rows + key[:, None] * (3 * WIDTH) + column[None, :] + 2 * WIDTH
        q1, q2 = _turned(queries, asks, query_scale, query_cos, query_sin, HALF)
        k1, k2 = _turned(keys, answers, key_scale, key_cos, key_sin, HALF)
        score = tl.dot(q1.to(kind), tl.trans(k1.to(kind)))
        score = tl.dot(q2.to(kind), tl.trans(k2.to(kind)), score) * (LOG2E * SCALE)
        if PADDED > TOKENS:
            score = tl.where((key < TOKENS)[None, :], score, float("-inf"))
        weight = tl.exp2(score - tl.max(score, axis=1)[:, None])
        total = tl.dot(weight.to(kind), tl.load(values, mask=answers, other=0.0))
        total = total / tl.sum(weight, axis=1)[:, None]
        place = mixed + first_row * WIDTH + start + query[:, None] * WIDTH + column[None, :]
        tl.store(place, total.to(kind), mask=asks)


@triton.jit(do_not_specialize=["count"])
def swiglu(
    normal, weight, hidden, count,
    INNER: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_M, BLOCK_N] of the hidden layer. Those of the same tokens run together, so these are read once."""
    program = tl.program_id(0)
    first_row = (program // (HIDDEN // BLOCK_N)).to(tl.int64) * BLOCK_M
    column = program % (HIDDEN // BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    last_row = (count - 1 - first_row).to(tl.int32)
    inner = tl.arange(0, BLOCK_K)
    # Beyond the last token the last one's again, which is not stored.
    tokens = normal + first_row * INNER + tl.minimum(row, last_row)[:, None] * INNER + inner[None, :]
    gates = weight + column[None, :] * INNER + inner[:, None]
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, INNER, BLOCK_K):
        part = tl.load(tokens + k)
        gate = tl.dot(part, tl.load(gates + k), gate)
        up = tl.dot(part, tl.load(gates + HIDDEN * INNER + k), up)
    value = gate / (1.0 + tl.exp2(gate * -LOG2E)) * up
    place = hidden + first_row * HIDDEN + row[:, None] * HIDDEN + column[None, :]
    tl.store(place, value.to(hidden.dtype.element_ty), mask=(row <= last_row)[:, None])


@triton.jit
def _streamed(total, x, gate, offset, exists, GATED: tl.constexpr):
    """The stream after a layer's output `total`, stored."""
    if GATED:
        total = tl.load(x, mask=exists, other=0.0).to(tl.float32) + (tl.load(gate) + tl.load(offset)) * total
    else:
        total += tl.load(offset)
    tl.store(x, total.to(x.dtype.element_ty), mask=exists)
    return total


@triton.jit
def _modulated(x, normal, shift, offset, exists, WIDTH: tl.constexpr):
    """Scale and shift the normalised stream x, and store it."""
    scale = 1.0 + (tl.load(shift + WIDTH) + tl.load(offset + WIDTH))
    value = x * scale + (tl.load(shift) + tl.load(offset))
    tl.store(normal, value.to(normal.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["count"])
def project(
    source, weight, x, normal, gate, gate_offset, shift, shift_offset, gate_stride, shift_stride, count,
    TOKENS: tl.constexpr, INNER: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Whole rows of BLOCK_M tokens, as 1 to 4 PARTS of PART columns: the sides of a tile are powers of 2."""
    WIDTH: tl.constexpr = PARTS * PART
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    last_row = (count - 1 - first_row).to(tl.int32)
    exists = (row <= last_row)[:, None]
    known = tl.minimum(row, last_row)[:, None]
    inner = tl.arange(0, BLOCK_K)
    tokens = source + first_row * INNER + known * INNER + inner[None, :]
    column = tl.arange(0, PART)[None, :]
    layer = weight + column * INNER + inner[:, None]
    total0 = tl.zeros([BLOCK_M, PART], tl.float32)
    total1 = total0
    total2 = total0
    total3 = total0
    for k in range(0, INNER, BLOCK_K):
        part = tl.load(tokens + k)
        total0 = tl.dot(part, tl.load(layer + k), total0)
        if PARTS > 1:
            total1 = tl.dot(part, tl.load(layer + PART * INNER + k), total1)
        if PARTS > 2:
            total2 = tl.dot(part, tl.load(layer + 2 * PART * INNER + k), total2)
        if PARTS > 3:
            total3 = tl.dot(part, tl.load(layer + 3 * PART * INNER + k), total3)

    if TOKENS % BLOCK_M == 0:
        picture = first_row // TOKENS + tl.zeros([1, 1], tl.int64)
    else:
        picture = (first_row + known) // TOKENS
    gate += picture * gate_stride + column
    gate_offset += column
    x += first_row * WIDTH + row[:, None] * WIDTH + column
    total0 = _streamed(total0, x, gate, gate_offset, exists, GATED)
    square = tl.sum(total0 * total0, axis=1)
    if PARTS > 1:
        total1 = _streamed(total1, x + PART, gate + PART, gate_offset + PART, exists, GATED)
        square += tl.sum(total1 * total1, axis=1)
    if PARTS > 2:
        total2 = _streamed(total2, x + 2 * PART, gate + 2 * PART, gate_offset + 2 * PART, exists, GATED)
        square += tl.sum(total2 * total2, axis=1)
    if PARTS > 3:
        total3 = _streamed(total3, x + 3 * PART, gate + 3 * PART, gate_offset + 3 * PART, exists, GATED)
        square += tl.sum(total3 * total3, axis=1)

    share = tl.rsqrt(square / WIDTH + EPSILON)[:, None]
    # Four columns a thread, as in the stream, whose numbers are larger: more would have all of them move once more.
    normal += first_row * WIDTH + row[:, None] * WIDTH + tl.max_contiguous(tl.multiple_of(column, (1, 4)), (1, 4))
    shift += picture * shift_stride + column
    shift_offset += column
    _modulated(total0 * share, normal, shift, shift_offset, exists, WIDTH)
    if PARTS > 1:
        _modulated(total1 * share, normal + PART, shift + PART, shift_offset + PART, exists, WIDTH)
    if PARTS > 2:
        _modulated(total2 * share, normal + 2 * PART, shift + 2 * PART, shift_offset + 2 * PART, exists, WIDTH)
    if PARTS > 3:
        _modulated(total3 * share, normal + 3 * PART, shift + 3 * PART, shift_offset + 3 * PART, exists, WIDTH)
