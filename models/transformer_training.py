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

from models import transformer_triton, triton_gradients

if TYPE_CHECKING:
    from models.transformer import Block, PatchTransformer

MAX_TOKENS = 64  # of which all weights of a head are in registers at once
ATTEND_BACKWARD = {"num_warps": 8, "num_stages": 1}
# Tokens and columns at once.
SWIGLU = {"ROWS": 4, "COLUMNS": 512, "num_warps": 4}
JOIN_BACKWARD = {"ROWS": 4, "num_warps": 8}
# Programs that backward passes of `Join` are cut into, for few pictures several each: a GPU runs some 300 at once.
JOIN_PROGRAMS = 1024
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

    `modulation` [B, 6, D] is that of all blocks and `last` [B, 2, D] that of what they leave; both contiguous.
    Differentiable once.
    """
    assert modulation.is_contiguous()
    assert last.is_contiguous()

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight.to(dtype))

    blocks = cast("list[Block]", list(backbone.blocks))
    norm1, gate1, norm2, gate2 = modulation.float().split(PARTS, dim=1)
    offsets = [block.offset.split(PARTS) for block in blocks]
    # What normalises the stream for the first layer of each block, and for the head.
    norms = [(norm1, own[0], dtype) for own in offsets]
    norms.append((last.float(), last.new_zeros(last.shape[1:], dtype=torch.float32), torch.float32))
    embedded = product(tokens.to(dtype), backbone.embed.weight)
    x, normal = Join.apply(embedded, None, None, backbone.embed.bias, *norms[0])
    for block, own, following in zip(blocks, offsets, norms[1:], strict=True):
        qkv = product(normal, block.qkv.weight)
        mixed = Attend.apply(qkv, *block.scales, backbone.cos, backbone.sin)
        x, normal = Join.apply(product(mixed, block.project.weight), x, gate1, own[1], norm2, own[2], dtype)
        hidden = SwiGlu.apply(product(normal, block.gate_up.weight))
        x, normal = Join.apply(product(hidden, block.down.weight), x, gate2, own[3], *following)
    answer: Tensor = normal
    return answer


class Attend(Function):
    """Queries, keys and values [B, T, 3 D], heads side by side in each -> [B, T, D]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv: Tensor, query_scale: Tensor, key_scale: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Scales [head width], the rotary table [T, head width / 2] each."""
        ctx.save_for_backward(qkv, query_scale, key_scale, cos, sin)
        batch, tokens, width = qkv.shape
        mixed = transformer_triton.attend(qkv.view(-1, width), query_scale, key_scale, cos, sin)
        return mixed.view(batch, tokens, width // 3)

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
                TOKENS=tokens, PADDED=transformer_triton.padded(tokens), HEADS=heads, HALF=half,
                SCALE=(2 * half) ** -0.5, **ATTEND_BACKWARD,
            )  # fmt: skip
        return d_qkv, *d_scales.sum(0).unbind(0), None, None


class SwiGlu(Function):
    """Gates and behind them what they gate, [B, T, 2 hidden] -> silu(gate) * up [B, T, hidden]."""

    @staticmethod
    def forward(ctx: FunctionCtx, both: Tensor) -> Tensor:
        """See the class."""
        ctx.save_for_backward(both)
        hidden = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
        SwiGlu._launch(triton_gradients.swiglu_forward, hidden.shape, both, hidden)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> Tensor:
        """The gradient of both."""
        (both,) = ctx.saved_tensors
        d_both = torch.empty_like(both)
        SwiGlu._launch(triton_gradients.swiglu_backward, d_hidden.shape, d_hidden.contiguous(), both, d_both)
        return d_both

    @staticmethod
    def _launch(kernel: Any, shape: torch.Size, *tensors: Tensor) -> None:
        """For hidden layers of that shape."""
        batch, tokens, hidden = shape
        if batch:
            grid = triton.cdiv(batch * tokens, SWIGLU["ROWS"]), triton.cdiv(hidden, SWIGLU["COLUMNS"])
            kernel[grid](*tensors, batch * tokens, HIDDEN=hidden, **SWIGLU)


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
        _, tokens, width = layer.shape
        after = layer.new_empty(layer.shape, dtype=torch.float32)
        normal = layer.new_empty(layer.shape, dtype=dtype)
        gated = gate is not None
        gates = norm if gate is None else gate
        transformer_triton.join(
            layer.view(-1, width),
            after.view(-1, width),
            normal.view(-1, width),
            tokens,
            (gate, gate_offset),
            (norm, norm_offset),
            before=None if x is None else x.view(-1, width),
        )
        ctx.save_for_backward(after, layer if gated else None, gates, gate_offset, norm, norm_offset)
        ctx.gated, ctx.kind = gated, layer.dtype
        ctx.set_materialize_grads(False)
        return after, normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_after: Tensor | None, d_normal: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors. What is normalised is always used, the stream behind the last block is not."""
        after, layer, gates, gate_offset, norm, norm_offset = ctx.saved_tensors
        batch, tokens, width = after.shape
        d_layer = torch.empty_like(after, dtype=ctx.kind)
        d_before = torch.empty_like(after) if ctx.gated else None
        parts = min(triton.cdiv(JOIN_PROGRAMS, max(1, batch)), triton.cdiv(tokens, JOIN_BACKWARD["ROWS"]))
        sums = after.new_empty(batch, parts, 3, width)
        if batch:
            triton_gradients.join_backward[(batch, parts)](
                d_normal.contiguous(), after if d_after is None else d_after.contiguous(), after,
                after if layer is None else layer, gates, gate_offset, norm, norm_offset,
                after if d_before is None else d_before, d_layer, sums, gates.stride(0), norm.stride(0),
                TOKENS=tokens, WIDTH=width, PADDED=triton.next_power_of_2(width), PARTS=parts, GATED=ctx.gated,
                FOLLOWED=d_after is not None, **JOIN_BACKWARD,
            )  # fmt: skip
        of_pictures = sums.sum(1)
        d_gate, d_norm = of_pictures.split((1, 2), dim=1)
        d_gate_offset, d_norm_offset = of_pictures.sum(0).split((1, 2))
        d_gate_offset = d_gate_offset.view_as(gate_offset)
        return d_layer, d_before, d_gate if ctx.gated else None, d_gate_offset, d_norm, d_norm_offset, None
