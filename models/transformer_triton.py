"""Fused Triton kernels for the blocks of `models.transformer` without gradients: four kernels, three products a block.

At a width of a few hundred, a block waits for memory as long as it computes, so what stands between two matrix products
is done in as few passes as can be:

- `attend` reads queries, keys and values as their layer wrote them, normalises, rotates and attends;
- `swiglu` makes a tile of the gate and the same tile of what it gates, and writes their product alone;
- `join` adds a layer's output, gated, to the stream x, and normalises and modulates x for the layer that follows. The
  embedding of the tokens is the same without a gate and a stream before it.

The stream is float32, as it is under autocast; products take bfloat16 and sum in float32. Tiles are constants: choosing
them at run time would let the last bits depend on the process. No value of a picture depends on the rest of its batch,
but for the matrix products that the library does.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.runtime import driver

from models import triton_blocks

if TYPE_CHECKING:
    from models.transformer import Block, PatchTransformer

# Queries at once.
ATTEND = {"BLOCK_Q": 64, "num_warps": 4, "num_stages": 1}
# Tokens, columns of the hidden layer, and columns of the input at once.
SWIGLU = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
# Tokens at once.
JOIN = {"ROWS": 8, "num_warps": 4}
MAX_TOKENS = 256
MAX_WIDTH = 1024
SHARED_MEMORY = 96 * 1024  # bytes that a program of `swiglu` takes


def supports(backbone: PatchTransformer) -> bool:
    """Whether the kernels are made for its shape: a picture's tokens and a token's columns fit a multiprocessor."""
    if backbone.registers is not None:
        return False
    width = backbone.embed.out_features
    tokens, half = backbone.cos.shape
    return width % 64 == 0 and width <= MAX_WIDTH and tokens <= MAX_TOKENS and half in (16, 32, 64)


@functools.cache
def fits(device: torch.device) -> bool:
    """Whether a GPU has room for the tiles, as most have from Ampere (2020) on."""
    index = torch.cuda.current_device() if device.index is None else device.index
    room: int = driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return room >= SHARED_MEMORY


def run(
    backbone: PatchTransformer, tokens: Tensor, modulation: Tensor, last: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Tokens [B, H W, inputs] -> float32 [B, H W, D]: what the backbone does with them, its products in `dtype`.

    `modulation` [B, 6, D] is that of all blocks and `last` [B, 2, D] that of what they leave; both contiguous.
    """
    batch, count, inputs = tokens.shape
    assert len(modulation) == len(last) == batch
    width = backbone.embed.out_features
    x = tokens.new_empty(batch * count, width, dtype=torch.float32)
    normal = tokens.new_empty(batch * count, width, dtype=dtype)
    plain = last.new_zeros(2, width)
    blocks = cast("list[Block]", list(backbone.blocks))
    # What normalises and modulates for the first layer of each block, and for the head: shift and scale, and offsets.
    norms = [(modulation, block.offset) for block in blocks] + [(last, plain)]
    source = tokens.to(dtype).reshape(-1, inputs)
    join(F.linear(source, backbone.embed.weight.to(dtype)), x, normal, count, (None, backbone.embed.bias), norms[0])
    for number, block in enumerate(blocks):
        mixed = attend(F.linear(normal, block.qkv.weight.to(dtype)), *block.scales, backbone.cos, backbone.sin)
        gate1, after1 = ((modulation[:, at], block.offset[at]) for at in (2, 3))
        join(F.linear(mixed, block.project.weight.to(dtype)), x, normal, count, gate1, after1)
        hidden = swiglu(normal, block.gate_up.weight.to(dtype))
        if number + 1 == len(blocks):
            normal = tokens.new_empty(x.shape, dtype=torch.float32)
        gate2 = modulation[:, 5], block.offset[5]
        join(F.linear(hidden, block.down.weight.to(dtype)), x, normal, count, gate2, norms[number + 1])
    return normal.view(batch, count, width)


def attend(qkv: Tensor, query_scale: Tensor, key_scale: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries, keys and values [tokens, 3 D] of a block, heads side by side in each -> [tokens, D]."""
    tokens, half = cos.shape
    heads = qkv.shape[1] // (6 * half)
    mixed = qkv.new_empty(len(qkv), heads * 2 * half)
    grid = len(qkv) // tokens * heads, triton.cdiv(tokens, ATTEND["BLOCK_Q"])
    if len(qkv):
        triton_blocks.attend[grid](
            qkv, query_scale, key_scale, cos, sin, mixed,
            TOKENS=tokens, PADDED=padded(tokens), HEADS=heads, HALF=half,
            SCALE=(2 * half) ** -0.5, **ATTEND,
        )  # fmt: skip
    return mixed


def swiglu(normal: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) * up of the layer `weight` [2 hidden, D], gates first: [tokens, D] -> [tokens, hidden]."""
    count, inner = normal.shape
    size = len(weight) // 2
    hidden = normal.new_empty(count, size)
    if count:
        triton_blocks.swiglu[(triton.cdiv(count, SWIGLU["BLOCK_M"]) * (size // SWIGLU["BLOCK_N"]),)](
            normal, weight, hidden, count, INNER=inner, HIDDEN=size, **SWIGLU
        )
    return hidden


def join(
    layer: Tensor,
    x: Tensor,
    normal: Tensor,
    tokens: int,
    gate: tuple[Tensor | None, Tensor],
    norm: tuple[Tensor, Tensor],
    before: Tensor | None = None,
) -> None:
    """In place, x += gate * layer and normal = rms_norm(x) * (1 + scale) + shift, all [B tokens, D].

    With `before`, the stream was that, and x is filled.

    `gate` and `norm` are each a part that pictures have, [B, D] or [B, n, D] with a row a picture, and the offset that
    is added to it; of `norm` both have the shift, and behind it the scale. Without the pictures' part of `gate`,
    x = layer + the offset.
    """
    count, width = layer.shape
    of_picture, offset = gate
    if count:
        triton_blocks.join[(triton.cdiv(count, JOIN["ROWS"]),)](
            layer, x if before is None else before, x, normal,
            norm[0] if of_picture is None else of_picture, offset, *norm,
            0 if of_picture is None else of_picture.stride(0), norm[0].stride(0), count,
            TOKENS=tokens, WIDTH=width, PADDED=triton.next_power_of_2(width), GATED=of_picture is not None, **JOIN,
        )  # fmt: skip


def padded(tokens: int) -> int:
    """Rows of a tile that holds so many tokens; a product takes no fewer than 16."""
    return max(16, triton.next_power_of_2(tokens))
