"""The backbone: a transformer over the patches of a picture, conditioned on the time t of the noise level.

Pre-norm blocks with RMSNorm, 2-D rotary positions, qk-norm and SwiGLU; conditioning by adaLN-zero (Peebles and Xie,
"Scalable diffusion models with transformers", 2022), with one modulation layer shared by all blocks plus a learned
offset per block, since a layer per block would double the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if find_spec("triton") and torch.version.cuda:
    from models import transformer_training, transformer_triton

TIME_FEATURES = 256


def rms_norm(x: Tensor) -> Tensor:
    """Scale the last axis to a root mean square of 1."""
    return F.rms_norm(x, x.shape[-1:])


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise, then scale and shift by the conditioning."""
    return rms_norm(x) * (1.0 + scale) + shift


def rotary_table(rows: int, columns: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [H W, head_width / 2]: half of the angles turn with the row, half with the column."""
    assert head_width % 4 == 0
    quarter = head_width // 4
    frequency = 100.0 ** (-torch.arange(quarter) / quarter)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angle = torch.cat([row.reshape(-1, 1) * frequency, column.reshape(-1, 1) * frequency], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + half]) of the last axis by the table's angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class Block(nn.Module):
    """Attention over all patches, then SwiGLU, each gated by the conditioning.

    `dropout` is the share of SwiGLU's hidden layer that training leaves out.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.dropout = 0.0
        hidden = max(64, 64 * round(width * 8 / 3 / 64))
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.query_scale = nn.Parameter(torch.ones(width // heads))
        self.key_scale = nn.Parameter(torch.ones(width // heads))
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.offset = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, H W, D] -> [B, H W, D], given the shared modulation [B, 6, D] and the rotary table."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.offset)[:, :, None].unbind(1)
        x = x + gate1 * self.attend(modulate(x, shift1, scale1), cos, sin)
        gate, up = self.gate_up(modulate(x, shift2, scale2)).chunk(2, dim=-1)
        hidden = F.dropout(F.silu(gate) * up, self.dropout, self.training)
        return x + gate2 * self.down(hidden)

    @property
    def scales(self) -> tuple[Tensor, Tensor]:
        """Of queries and keys, once they are normalised: [head width] both."""
        return self.query_scale, self.key_scale

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Multi-head attention with normalised, rotated queries and keys."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query = rotate(rms_norm(query) * self.query_scale, cos, sin).to(value.dtype)
        key = rotate(rms_norm(key) * self.key_scale, cos, sin).to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(1, 2).flatten(2))


class PatchTransformer(nn.Module):
    """Tokens [B, H W, inputs] and times [B] -> [B, H W, D], normalised for a linear head.

    `registers` are learned tokens beside those of the patches, without a place, whose answers are dropped (Darcet et
    al., "Vision transformers need registers", 2024).
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, *, rows: int, columns: int, inputs: int, width: int, blocks: int, heads: int, registers: int = 0
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.last_modulation = nn.Linear(width, 2 * width)
        cos, sin = rotary_table(rows, columns, width // heads)
        still = cos.new_zeros(registers, cos.shape[1])  # registers are not turned
        self.register_buffer("cos", torch.cat([cos, still + 1.0]), persistent=False)
        self.register_buffer("sin", torch.cat([sin, still]), persistent=False)
        self.trains_fused = False
        self.reset_parameters()
        self.registers = nn.Parameter(0.02 * torch.randn(registers, width)) if registers else None

    def set_dropout(self, share: float) -> None:
        """Leave out so much of every hidden layer in training; none as made, since it is no part of the shape."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.dropout = share

    def train_fused(self) -> bool:
        """Train by the kernels of `models.transformer_training` from now on; False if they are not made for it.

        That is: on CUDA, in bfloat16, where it is now, and as it is now.
        """
        known = "transformer_training" in globals() and transformer_training.supports(self)
        self.trains_fused = known and self.cos.is_cuda and transformer_triton.fits(self.cos.device)
        return self.trains_fused

    def reset_parameters(self) -> None:
        """Xavier weights; modulation zero, so that every block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.modulation, self.last_modulation):
            nn.init.zeros_(layer.weight)

    def forward(self, tokens: Tensor, t: Tensor, hint: Tensor | None = None) -> Tensor:
        """See the class; `hint` [B, D] is added to the conditioning."""
        conditioning = self.time(time_features(t))
        if hint is not None:
            conditioning = conditioning + hint
        modulation = self.modulation(conditioning).unflatten(-1, (6, -1))
        last = self.last_modulation(conditioning).unflatten(-1, (2, -1))
        if fused := self._fused(tokens):
            with torch.cuda.device_of(tokens):  # Triton launches on the current one
                return fused(self, tokens, modulation, last)
        x = self.embed(tokens)
        if self.registers is not None:
            x = torch.cat([x, self.registers.to(x).expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x, modulation, self.cos, self.sin)
        shift, scale = last[:, :, None].unbind(1)
        return modulate(x[:, : tokens.shape[1]], shift, scale)

    def _fused(self, tokens: Tensor) -> Callable[..., Tensor] | None:
        """The kernels that do it instead, on CUDA in bfloat16: for sampling if there are any, for training if asked."""
        if torch.compiler.is_compiling() or not tokens.is_cuda or "transformer_triton" not in globals():
            return None
        half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
        if not half:
            return None
        if torch.is_inference_mode_enabled():
            suits = transformer_triton.supports(self) and transformer_triton.fits(tokens.device)
            return transformer_triton.run if suits else None
        return transformer_training.run if self.trains_fused else None


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines [B, TIME_FEATURES] of t in [0, 1] at geometrically spaced frequencies."""
    half = TIME_FEATURES // 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t.device) / half)
    angle = 1000.0 * t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
