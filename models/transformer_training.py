"""Fused Triton kernels for the blocks of `models.transformer` with gradients.

What stands between two matrix products is one kernel forward and one backward, which keeps nothing that it can make
again from what the products keep anyway:

- `Attend` keeps queries, keys and values, and makes the weights again;
- `SwiGlu` keeps the gates and what they gate;
- `Join`, a layer's output added to the stream and the stream normalised for the next, keeps both, and sums what the
  modulation of a picture gets over its tokens in the same pass.

The products are torch's, and so is what becomes of their gradients. `transformer_triton` is the same for sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from models import transformer_triton, triton_blocks, triton_gradients
from models.transformer_triton import ATTEND, JOIN

if TYPE_CHECKING:
    from models.transformer import Block, PatchTransformer

MAX_TOKENS = 64  # of which all weights of a head are in registers at once
ATTEND_BACKWARD = {"num_warps": 4, "num_stages": 1}
# Tokens and columns at once.
SWIGLU = {"ROWS": 4, "COLUMNS": 512, "num_warps": 4}
JOIN_BACKWARD = {"ROWS": 4, "num_warps": 8}
# Of the six parts of a modulation: shift and scale, and gate, of attention; the same of the hidden layer.
PARTS = (2, 1, 2, 1)


def supports(backbone: PatchTransformer) -> bool:
    """Whether the kernels are made for its shape, and leave nothing out that it does in training."""
    blocks = cast("list[Block]", list(backbone.blocks))
    small = len(backbone.cos) <= MAX_TOKENS
    return small and transformer_triton.supports(backbone) and not any(block.dropout for block in blocks)


def run(
    backbone: PatchTransformer, tokens: Tensor, modulation: Tensor, last: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Tokens [B, H W, inputs] -> float32 [B, H W, D]: what the backbone does with them, its products in `dtype`.

    `modulation` [B, 6, D] is that of all blocks and `last` [B, 2, D] that of what they leave. Differentiable once.
    """

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight.to(dtype))

    def join(layer: Tensor, x: Tensor | None, gate: Tensor | None, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The stream, and what the next that reads it takes: attention, the hidden layer, and at last the head."""
        norm = next(norms)
        made: tuple[Tensor, Tensor] = Join.apply(
            layer, x, gate, offset, *norm, torch.float32 if norm is head else dtype
        )
        return made

    blocks = cast("list[Block]", list(backbone.blocks))
    norm1, gate1, norm2, gate2 = modulation.float().split(PARTS, dim=1)
    offsets = [block.offset.split(PARTS) for block in blocks]
    head = last.float(), last.new_zeros(last.shape[1:], dtype=torch.float32)
    norms = iter([*(norm for own in offsets for norm in ((norm1, own[0]), (norm2, own[2]))), head])
    x, normal = join(product(tokens.to(dtype), backbone.embed.weight), None, None, backbone.embed.bias)
    for block, own in zip(blocks, offsets, strict=True):
        qkv = product(normal, block.qkv.weight)
        mixed = Attend.apply(qkv, block.query_scale, block.key_scale, backbone.cos, backbone.sin)
        x, normal = join(product(mixed, block.project.weight), x, gate1, own[1])
        hidden = SwiGlu.apply(product(normal, block.gate_up.weight))
        x, normal = join(product(hidden, block.down.weight), x, gate2, own[3])
    return normal


class Attend(Function):
    """Queries, keys and values [B, T, 3 D], heads side by side in each -> [B, T, D]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv: Tensor, query_scale: Tensor, key_scale: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Scales [head width], the rotary table [T, head width / 2] each."""
        ctx.save_for_backward(qkv, query_scale, key_scale, cos, sin)
        batch, tokens, width = qkv.shape
        half = cos.shape[1]
        heads = width // (6 * half)
        mixed = qkv.new_empty(batch, tokens, width // 3)
        if batch:
            triton_blocks.attend[(batch * heads, triton.cdiv(tokens, ATTEND["BLOCK_Q"]))](
                qkv, query_scale, key_scale, cos, sin, mixed,
                TOKENS=tokens, PADDED=padded(tokens), HEADS=heads, HALF=half, SCALE=(2 * half) ** -0.5, **ATTEND,
            )  # fmt: skip
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the first three."""
        qkv, query_scale, key_scale, cos, sin = ctx.saved_tensors
        batch, tokens, width = qkv.shape
        half = cos.shape[1]
        heads = width // (6 * half)
        d_qkv = torch.empty_like(qkv)
        d_scales = qkv.new_empty(batch * heads, 2, 2 * half, dtype=torch.float32)
        if batch:
            triton_gradients.attend_backward[(batch * heads,)](
                d_mixed.contiguous(), qkv, query_scale, key_scale, cos, sin, d_qkv, d_scales,
                TOKENS=tokens, PADDED=padded(tokens), HEADS=heads, HALF=half, SCALE=(2 * half) ** -0.5,
                **ATTEND_BACKWARD,
            )  # fmt: skip
        return d_qkv, *d_scales.sum(0).unbind(0), None, None


class SwiGlu(Function):
    """Gates and behind them what they gate, [B, T, 2 hidden] -> silu(gate) * up [B, T, hidden]."""

    @staticmethod
    def forward(ctx: FunctionCtx, both: Tensor) -> Tensor:
        """See the class."""
        ctx.save_for_backward(both)
        hidden = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
        SwiGlu._launch(triton_gradients.swiglu_forward, both, hidden)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> Tensor:
        """The gradient of both."""
        (both,) = ctx.saved_tensors
        d_both = torch.empty_like(both)
        SwiGlu._launch(triton_gradients.swiglu_backward, d_hidden.contiguous(), both, d_both)
        return d_both

    @staticmethod
    def _launch(kernel: Any, *tensors: Tensor) -> None:
        hidden = min(tensor.shape[-1] for tensor in tensors)
        count = tensors[0].numel() // tensors[0].shape[-1]
        if count:
            grid = triton.cdiv(count, SWIGLU["ROWS"]), triton.cdiv(hidden, SWIGLU["COLUMNS"])
            kernel[grid](*tensors, count, HIDDEN=hidden, **SWIGLU)


class Join(Function):
    """after = x + gate * layer, and normal = rms_norm(after) * (1 + scale) + shift, for the layer that follows."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: Tensor,
        x: Tensor | None,
        gate: Tensor | None,
        gate_offset: Tensor,
        norm: Tensor,
        norm_offset: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """`layer` and the stream `x` [B, T, D] -> (after, float32, normal, of `dtype`), of that shape.

        `gate` [B, 1, D] and `norm` [B, 2, D], shift and scale, are what pictures have, and the offsets are added to
        them. Without `x` and `gate`, after = layer + gate_offset.
        """
        batch, tokens, width = layer.shape
        after = layer.new_empty(layer.shape, dtype=torch.float32)
        normal = layer.new_empty(layer.shape, dtype=dtype)
        gated = gate is not None
        gates = norm if gate is None else gate
        if batch:
            triton_blocks.join[(triton.cdiv(batch * tokens, JOIN["ROWS"]),)](
                layer, after if x is None else x, after, normal, gates, gate_offset, norm, norm_offset,
                gates.stride(0), norm.stride(0), batch * tokens,
                TOKENS=tokens, WIDTH=width, PADDED=triton.next_power_of_2(width), GATED=gated, **JOIN,
            )  # fmt: skip
        ctx.save_for_backward(after, layer, gates, gate_offset, norm, norm_offset)
        ctx.gated = gated
        ctx.set_materialize_grads(False)
        return after, normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor | None, d_normal: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors. What is normalised is always used, the stream behind the last block is not."""
        after, layer, gates, gate_offset, norm, norm_offset = ctx.saved_tensors
        batch, tokens, width = layer.shape
        d_layer = torch.empty_like(layer)
        d_before = torch.empty_like(after) if ctx.gated else None
        d_gate = after.new_empty(batch, 1, width)
        d_norm = after.new_empty(batch, 2, width)
        if batch:
            triton_gradients.join_backward[(batch,)](
                d_normal.contiguous(), after if d_after is None else d_after.contiguous(), after, layer,
                gates, gate_offset, norm, norm_offset,
                after if d_before is None else d_before, d_layer, d_gate, d_norm, gates.stride(0), norm.stride(0),
                TOKENS=tokens, WIDTH=width, PADDED=triton.next_power_of_2(width), GATED=ctx.gated,
                FOLLOWED=d_after is not None, **JOIN_BACKWARD,
            )  # fmt: skip
        d_offset = d_gate.sum(0).view_as(gate_offset)
        return d_layer, d_before, d_gate if ctx.gated else None, d_offset, d_norm, d_norm.sum(0), None


def padded(tokens: int) -> int:
    """Rows of a tile that holds so many tokens; a product takes no fewer than 16."""
    return max(16, triton.next_power_of_2(tokens))
