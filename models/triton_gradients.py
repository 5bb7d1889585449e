# mypy: allow-untyped-defs, allow-incomplete-defs
"""Kernels of the transformer's blocks in training, launched by `models.transformer_training`: see there."""

import triton
import triton.language as tl

from models.triton_blocks import EPSILON, halves, turn
from models.triton_kernels import LOG2E


@triton.jit
def _turn_back(d1, d2, first, second, share, scale, cos, sin, place, exists, d_scale, HALF: tl.constexpr):
    """From the gradients of what `turn` made: store those of the halves at `place`, and of the scale at `d_scale`."""
    column = tl.arange(0, HALF)
    d_first, d_second = d1 * cos + d2 * sin, d2 * cos - d1 * sin
    tl.store(d_scale + column, tl.sum(d_first * first * share, axis=0))
    tl.store(d_scale + HALF + column, tl.sum(d_second * second * share, axis=0))
    d_first *= tl.load(scale + column)[None, :]
    d_second *= tl.load(scale + HALF + column)[None, :]
    along = tl.sum(d_first * first, axis=1) + tl.sum(d_second * second, axis=1)
    along = along[:, None] * share * share / (2 * HALF)
    kind = place.dtype.element_ty
    tl.store(place, (share * (d_first - first * along)).to(kind), mask=exists)
    tl.store(place + HALF, (share * (d_second - second * along)).to(kind), mask=exists)


@triton.jit
def attend_backward(
    d_mixed, qkv, query_scale, key_scale, cos, sin, d_qkv, d_scales,
    TOKENS: tl.constexpr, PADDED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """One head of one picture, from its queries, keys and values alone: the weights are made once more."""
    WIDTH: tl.constexpr = HEADS * 2 * HALF
    program = tl.program_id(0)
    first_row = (program // HEADS).to(tl.int64) * TOKENS
    start = program % HEADS * (2 * HALF)
    token, angle, column = tl.arange(0, PADDED), tl.arange(0, HALF), tl.arange(0, 2 * HALF)
    exists = (token < TOKENS)[:, None]
    table = token[:, None] * HALF + angle[None, :]
    turn_cos, turn_sin = tl.load(cos + table, mask=exists, other=0.0), tl.load(sin + table, mask=exists, other=0.0)
    kind = qkv.dtype.element_ty
    row = first_row * (3 * WIDTH) + start + token[:, None] * (3 * WIDTH)
    half, whole = row + angle[None, :], row + column[None, :] + 2 * WIDTH
    query1, query2, query_share = halves(qkv + half, exists, HALF)
    key1, key2, key_share = halves(qkv + WIDTH + half, exists, HALF)
    q1, q2 = turn(query1, query2, query_share, query_scale, turn_cos, turn_sin, HALF)
    k1, k2 = turn(key1, key2, key_share, key_scale, turn_cos, turn_sin, HALF)
    q1, q2, k1, k2 = q1.to(kind), q2.to(kind), k1.to(kind), k2.to(kind)
    score = tl.dot(q1, tl.trans(k1))
    score = tl.dot(q2, tl.trans(k2), score) * (LOG2E * SCALE)
    if PADDED > TOKENS:
        score = tl.where((token < TOKENS)[None, :], score, float("-inf"))
    weight = tl.exp2(score - tl.max(score, axis=1)[:, None])
    weight = weight / tl.sum(weight, axis=1)[:, None]
    mixed_at = first_row * WIDTH + start + token[:, None] * WIDTH + column[None, :]
    given = tl.load(d_mixed + mixed_at, mask=exists, other=0.0)
    d_value = tl.dot(tl.trans(weight.to(kind)), given)
    tl.store(d_qkv + whole, d_value.to(kind), mask=exists)
    d_weight = tl.dot(given, tl.trans(tl.load(qkv + whole, mask=exists, other=0.0)))
    d_score = weight * (d_weight - tl.sum(weight * d_weight, axis=1)[:, None]) * SCALE
    d_score = d_score.to(kind)
    d_scale = d_scales + program * (4 * HALF)
    _turn_back(
        tl.dot(d_score, k1), tl.dot(d_score, k2), query1, query2, query_share, query_scale, turn_cos, turn_sin,
        d_qkv + half, exists, d_scale, HALF,
    )  # fmt: skip
    d_score = tl.trans(d_score)
    _turn_back(
        tl.dot(d_score, q1), tl.dot(d_score, q2), key1, key2, key_share, key_scale, turn_cos, turn_sin,
        d_qkv + WIDTH + half, exists, d_scale + 2 * HALF, HALF,
    )  # fmt: skip


@triton.jit
def _gates(both, count, HIDDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of gates and of what they gate, float32; where it lies in both and in the hidden layer; what exists."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    exists = (row < count) & (column < HIDDEN)
    at = row * (2 * HIDDEN) + column
    gate = tl.load(both + at, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(both + at + HIDDEN, mask=exists, other=0.0).to(tl.float32)
    return gate, up, at, row * HIDDEN + column, exists


@triton.jit(do_not_specialize=["count"])
def swiglu_forward(both, hidden, count, HIDDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """hidden = silu(gate) * up, of gates [count, HIDDEN] and behind them what they gate."""
    gate, up, _, place, exists = _gates(both, count, HIDDEN, ROWS, COLUMNS)
    value = gate / (1.0 + tl.exp2(gate * -LOG2E)) * up
    tl.store(hidden + place, value.to(hidden.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["count"])
def swiglu_backward(d_hidden, both, d_both, count, HIDDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The gradients of both from that of the hidden layer."""
    gate, up, at, place, exists = _gates(both, count, HIDDEN, ROWS, COLUMNS)
    given = tl.load(d_hidden + place, mask=exists, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp2(gate * -LOG2E))
    kind = d_both.dtype.element_ty
    tl.store(d_both + at, (given * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))).to(kind), mask=exists)
    tl.store(d_both + at + HIDDEN, (given * gate * sigmoid).to(kind), mask=exists)


@triton.jit
def join_backward(
    d_normal, d_after, after, layer, gate, gate_offset, shift, shift_offset, d_before, d_layer, sums,
    gate_stride, shift_stride,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    GATED: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    """One of PARTS of a picture's tokens, ROWS at a time, so that the sums over them need no second pass.

    The sums [pictures, PARTS, 3, WIDTH] are for gate, shift and scale; without a gate, for the offset in its place.
    FOLLOWED: the stream itself has a gradient too.
    """
    EACH: tl.constexpr = (TOKENS + PARTS - 1) // PARTS
    picture = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, PADDED)[None, :]
    there = column < WIDTH
    scale_at = shift + picture * shift_stride + WIDTH + column
    scales = 1.0 + tl.load(scale_at, mask=there, other=0.0)
    scales += tl.load(shift_offset + WIDTH + column, mask=there, other=0.0)
    if GATED:
        gates = tl.load(gate + picture * gate_stride + column, mask=there, other=0.0)
        gates += tl.load(gate_offset + column, mask=there, other=0.0)
    shift_sum = tl.zeros([ROWS, PADDED], tl.float32)
    scale_sum = tl.zeros([ROWS, PADDED], tl.float32)
    gate_sum = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(0, EACH, ROWS):
        token = part * EACH + start + row
        exists = there & (start + row < EACH) & (token < TOKENS)
        at = picture * (TOKENS * WIDTH) + token * WIDTH + column
        value = tl.load(after + at, mask=exists, other=0.0)
        share = tl.rsqrt(tl.sum(value * value, axis=1) / WIDTH + EPSILON)[:, None]
        given = tl.load(d_normal + at, mask=exists, other=0.0).to(tl.float32)
        shift_sum += given
        scale_sum += given * value * share
        given *= scales
        along = tl.sum(given * value, axis=1)[:, None] * share * share / WIDTH
        given = share * (given - value * along)
        if FOLLOWED:
            given += tl.load(d_after + at, mask=exists, other=0.0)
        if GATED:
            tl.store(d_before + at, given, mask=exists)
            gate_sum += given * tl.load(layer + at, mask=exists, other=0.0).to(tl.float32)
            given *= gates
        else:
            gate_sum += given
        tl.store(d_layer + at, given.to(d_layer.dtype.element_ty), mask=exists)
    sums += (picture * PARTS + part) * (3 * WIDTH) + column
    tl.store(sums, tl.sum(gate_sum, axis=0)[None, :], mask=there)
    tl.store(sums + WIDTH, tl.sum(shift_sum, axis=0)[None, :], mask=there)
    tl.store(sums + 2 * WIDTH, tl.sum(scale_sum, axis=0)[None, :], mask=there)
