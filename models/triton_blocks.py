# mypy: allow-untyped-defs, allow-incomplete-defs
"""Kernels of the transformer's blocks on the device, launched by `models.transformer_triton`: see there."""

import torch
import triton
import triton.language as tl

from models.triton_kernels import LOG2E

EPSILON = tl.constexpr(torch.finfo(torch.float32).eps)  # of the mean square, as torch has it


@triton.jit
def halves(at, exists, HALF: tl.constexpr):
    """Queries or keys at `at` [n, HALF] as they are, both halves in float32, and what normalises each."""
    first = tl.load(at, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=exists, other=0.0).to(tl.float32)
    square = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    return first, second, tl.rsqrt(square / (2 * HALF) + EPSILON)[:, None]


@triton.jit
def turn(first, second, share, scale, cos, sin, HALF: tl.constexpr):
    """The same normalised, scaled and rotated."""
    column = tl.arange(0, HALF)[None, :]
    first = first * share * tl.load(scale + column)
    second = second * share * tl.load(scale + HALF + column)
    return first * cos - second * sin, first * sin + second * cos


@triton.jit
def attend(
    qkv, query_scale, key_scale, cos, sin, mixed,
    TOKENS: tl.constexpr, PADDED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_Q: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    """One picture's BLOCK_Q queries in one head, over all of the picture's keys."""
    WIDTH: tl.constexpr = HEADS * 2 * HALF
    program = tl.program_id(0)
    first_row = (program // HEADS).to(tl.int64) * TOKENS
    start = program % HEADS * (2 * HALF)
    query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    key = tl.arange(0, PADDED)
    angle = tl.arange(0, HALF)
    column = tl.arange(0, 2 * HALF)
    asks, answers = (query < TOKENS)[:, None], (key < TOKENS)[:, None]
    query_at, key_at = query[:, None] * HALF + angle[None, :], key[:, None] * HALF + angle[None, :]
    query_cos, query_sin = tl.load(cos + query_at, mask=asks, other=0.0), tl.load(sin + query_at, mask=asks, other=0.0)
    key_cos, key_sin = tl.load(cos + key_at, mask=answers, other=0.0), tl.load(sin + key_at, mask=answers, other=0.0)
    kind = qkv.dtype.element_ty
    rows = qkv + first_row * (3 * WIDTH) + start
    queries = rows + query[:, None] * (3 * WIDTH) + angle[None, :]
    keys = rows + key[:, None] * (3 * WIDTH) + angle[None, :] + WIDTH
    values = rows + key[:, None] * (3 * WIDTH) + column[None, :] + 2 * WIDTH
    query1, query2, query_share = halves(queries, asks, HALF)
    key1, key2, key_share = halves(keys, answers, HALF)
    q1, q2 = turn(query1, query2, query_share, query_scale, query_cos, query_sin, HALF)
    k1, k2 = turn(key1, key2, key_share, key_scale, key_cos, key_sin, HALF)
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
    """One tile [BLOCK_M, BLOCK_N] of the hidden layer; those of the same tokens run together, and read these once."""
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


@triton.jit(do_not_specialize=["count"])
def join(
    layer, before, x, normal, gate, gate_offset, shift, shift_offset, gate_stride, shift_stride, count,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens: a layer's output joins the stream, `before` and then x, which is normalised and modulated."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, PADDED)[None, :]
    there = column < WIDTH
    exists = there & (first_row + row < count)
    at = first_row * WIDTH + row * WIDTH + column
    if TOKENS % ROWS == 0:
        picture = first_row // TOKENS + tl.zeros([1, 1], tl.int64)
    else:
        picture = tl.minimum(first_row + row, count - 1) // TOKENS
    value = tl.load(layer + at, mask=exists, other=0.0).to(tl.float32)
    offset = tl.load(gate_offset + column, mask=there, other=0.0)
    if GATED:
        gates = tl.load(gate + picture * gate_stride + column, mask=there, other=0.0) + offset
        value = tl.load(before + at, mask=exists, other=0.0) + gates * value
    else:
        value = tl.where(there, value + offset, 0.0)
    tl.store(x + at, value, mask=exists)
    share = tl.rsqrt(tl.sum(value * value, axis=1) / WIDTH + EPSILON)[:, None]
    shift += picture * shift_stride + column
    shift_offset += column
    scales = tl.load(shift + WIDTH, mask=there, other=0.0) + tl.load(shift_offset + WIDTH, mask=there, other=0.0)
    shifts = tl.load(shift, mask=there, other=0.0) + tl.load(shift_offset, mask=there, other=0.0)
    tl.store(normal + at, (value * share * (1.0 + scales) + shifts).to(normal.dtype.element_ty), mask=exists)
