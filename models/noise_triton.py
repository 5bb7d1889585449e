# mypy: allow-untyped-defs, allow-incomplete-defs
"""White noise made on a GPU: the normals that numpy's generator draws, a lane of the GPU for each picture.

Philox 4x64 of 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), keyed by seed and index,
whose blocks are eight numbers of 32 bits; of these a ziggurat of 256 strips (Marsaglia and Tang, "The ziggurat method
for generating random variables", 2000) makes normals, as `numpy.random.Generator.standard_normal` does with float32.
Most numbers make a normal at once. One in a hundred is near the edge of its strip, which the next number decides; of
the lowest strip, whose rest is the distribution's tail, two numbers for each try. So a picture's place in its stream
depends on all numbers before, and the numbers that make its normals cannot be divided among lanes.

A lane is as slow as that sounds, and it does not matter: it asks for next to nothing of the GPU, which does something
else meanwhile. The same values as numpy's, but for the last bit of a few in the tail where a logarithm is rounded
differently.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of the ziggurat: where its tail begins, and the area of each strip.
EDGE, AREA = 3.6541528853610088, 0.00492867323399
SCALE = 2.0**23  # 23 bits of a number are the place in a strip
LANES = 32

_EDGE = tl.constexpr(EDGE)
_PER_EDGE = tl.constexpr(1.0 / EDGE)
# What a lane's next number is for: a place in a strip; whether one near a strip's edge counts; a place in the tail, and
# whether that counts.
_PLACE = tl.constexpr(0)
_NEAR_EDGE = tl.constexpr(1)
_TAIL = tl.constexpr(2)
_TAIL_COUNTS = tl.constexpr(3)


def white_noise(seed: int, indices: Tensor, height: int, width: int) -> Tensor:
    """`models.noise.white_noise` for indices [B], int64, where these are."""
    out = torch.empty(len(indices), 3, height, width, device=indices.device)
    # numpy rounds each product before it adds.
    exact = {"enable_fp_fusion": False} if indices.is_cuda else {}
    if out.numel():
        _normals[(triton.cdiv(len(indices), LANES),)](
            indices, out, *_tables(indices.device), seed, *out.flatten(1).shape, LANES=LANES, num_warps=1, **exact
        )
    return out


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each strip: below which place it is sure, its width divided by SCALE, the density at its edge."""

    def density(x: float) -> float:
        return math.exp(-0.5 * x * x)

    edges = [0.0] * 255 + [EDGE, AREA / density(EDGE)]  # the last is as if the tail were a rectangle
    for strip in range(254, 0, -1):
        edges[strip] = math.sqrt(-2.0 * math.log(AREA / edges[strip + 1] + density(edges[strip + 1])))
    sure = [EDGE / edges[256], *(edges[strip - 1] / edges[strip] for strip in range(1, 256))]
    widths = [edges[256], *edges[1:256]]
    return (
        torch.tensor([round(share * SCALE) for share in sure], dtype=torch.int32, device=device),
        torch.tensor([width / SCALE for width in widths], device=device),
        torch.tensor([density(edge) for edge in edges[:256]], device=device),
    )


@triton.jit
def _product(a, FACTOR: tl.constexpr):
    """The high and the low half of a FACTOR, all uint64; in parts of 32 bits, which is what the hardware multiplies."""
    low: tl.constexpr = FACTOR & 0xFFFFFFFF
    high: tl.constexpr = FACTOR >> 32
    a_low = a & 0xFFFFFFFF
    a_high = (a >> 32) & 0xFFFFFFFF
    lows = a_low * low
    across = a_low * high
    other = a_high * low
    middle = (lows >> 32) + (across & 0xFFFFFFFF) + (other & 0xFFFFFFFF)
    return a_high * high + (across >> 32) + (other >> 32) + (middle >> 32), (middle << 32) | (lows & 0xFFFFFFFF)


@triton.jit
def _philox(counter, key, index):
    """The four numbers of a block of the stream with the key (key, index), all uint64."""
    x0 = counter
    x1 = counter * 0
    x2 = x1
    x3 = x1
    for _ in tl.static_range(10):
        high0, low0 = _product(x0, 0xD2E7470EE14C6C93)
        high2, low2 = _product(x2, 0xCA5A826395121157)
        x0, x1, x2, x3 = high2 ^ x1 ^ key, low2, high0 ^ x3 ^ index, low0
        key += 0x9E3779B97F4A7C15
        index += 0xBB67AE8584CAA73B
    return x0, x1, x2, x3


@triton.jit(do_not_specialize=["seed", "pictures"])
def _normals(indices, out, sure_table, width_table, density_table, seed, pictures, size, LANES: tl.constexpr):
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    there = lane < pictures
    index = tl.load(indices + lane, mask=there, other=0).to(tl.uint64)
    key = (index * 0 + seed).to(tl.uint64)
    counter = index * 0
    out += lane.to(tl.int64) * size
    made = lane * 0
    purpose = lane * 0 + _PLACE
    strip = lane * 0  # of the place in doubt
    held = lane.to(tl.float32)  # where that is, or how far in the tail
    negative = lane < 0
    while tl.max(tl.where(there & (made < size), 1, 0)) > 0:
        counter += 1
        x0, x1, x2, x3 = _philox(counter, key, index)
        for number in tl.static_range(8):
            pair = x0 if number // 2 == 0 else (x1 if number // 2 == 1 else (x2 if number // 2 == 2 else x3))
            bits = (pair >> (32 * (number % 2))) & 0xFFFFFFFF
            uniform = (bits >> 8).to(tl.float32) * (1.0 / 16777216.0)

            new = (bits & 0xFF).to(tl.int32)
            place = ((bits >> 9) & 0x7FFFFF).to(tl.int32)
            x = place.to(tl.float32) * tl.load(width_table + new)
            x = tl.where(((bits >> 8) & 1) == 1, -x, x)
            sure = place < tl.load(sure_table + new)

            outer = tl.load(density_table + strip)
            inner = tl.load(density_table + tl.maximum(strip - 1, 0))
            wide = held.to(tl.float64)
            under = ((inner - outer) * uniform + outer).to(tl.float64) < tl.exp(-0.5 * wide * wide)

            logarithm = tl.log(1.0 - uniform.to(tl.float64)).to(tl.float32)
            far = held + _EDGE
            counts = -logarithm - logarithm > held * held

            at_place = purpose == _PLACE
            at_end = purpose == _TAIL_COUNTS
            doubtful = at_place & (sure == 0)
            normal = tl.where(at_place, x, tl.where(at_end, tl.where(negative, -far, far), held))
            done = (at_place & sure) | ((purpose == _NEAR_EDGE) & under) | (at_end & counts)
            tl.store(out + made, normal, mask=done & there & (made < size))
            made += tl.where(done, 1, 0)
            negative = tl.where(doubtful, ((place >> 8) & 1) == 1, negative)
            strip = tl.where(doubtful, new, strip)
            held = tl.where(doubtful, x, tl.where(purpose == _TAIL, -_PER_EDGE * logarithm, held))
            after = tl.where(purpose == _TAIL, _TAIL_COUNTS, tl.where(at_end & (counts == 0), _TAIL, _PLACE))
            purpose = tl.where(doubtful, tl.where(new == 0, _TAIL, _NEAR_EDGE), after)
