"""What the benchmark compares with: the formulas evaluated as written, eagerly, all splats of the 3x3 patches a pixel.

Every intermediate is a tensor over all splat-pixel pairs, in float32, without autocast and without compiling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.denoiser import Denoiser
from models.rasterize import WHOLE, Region

# Pairs that are tensors at once; sixteen such tensors must fit the memory of a device.
PAIRS = {"cpu": 1 << 24, "cuda": 1 << 28}


def eager_draw(field: Tensor, height: int, width: int) -> Tensor:
    """Wavelet pictures [B, 3, height, width] of fields [B, H, W, K, 9]: exp(d - 4 q) blending, without windows.

    Sides are multiples of the numbers of patches.
    """
    batch, rows, columns, splats, _ = field.shape
    tall, wide = height // rows, width // columns
    padded = F.pad(field, (0, 0, 0, 0, 1, 1, 1, 1))
    depth = F.pad(field[..., 8], (0, 0, 1, 1, 1, 1), value=-100.0)  # beyond the picture are no splats
    padded = torch.cat([padded[..., :8], depth[..., None]], dim=-1)
    shifted = []
    for i in range(3):
        for j in range(3):
            near = padded[:, i : i + rows, j : j + columns].clone()
            near[..., 0] += j - 1
            near[..., 1] += i - 1
            shifted.append(near)
    near = torch.cat(shifted, dim=3)  # [B, H, W, 9 K, 9]
    x = (torch.arange(wide, device=field.device) + 0.5) / wide
    y = (torch.arange(tall, device=field.device) + 0.5) / tall
    lines = max(1, min(tall, PAIRS[field.device.type] // (batch * rows * columns * wide * 9 * splats)))
    bands = [_eager_band(near, part, x) for part in y.split(lines)]  # [B, H, lines, W, wide, 3] each
    image = torch.cat(bands, dim=2).flatten(3, 4).flatten(1, 2)
    return image.permute(0, 3, 1, 2)


def _eager_band(near: Tensor, y: Tensor, x: Tensor) -> Tensor:
    u, v, kx, ky, rho, *_, depth = (p[:, :, None, :, None] for p in near.unbind(-1))
    dx = kx * (x[:, None] - u)
    dy = ky * (y[:, None, None, None] - v)
    q = dx * dx + 2.0 * rho * dx * dy + dy * dy
    weight = torch.exp(depth - 4.0 * q)
    value = torch.exp(-0.9 * q) * torch.cos(6.0 * q)
    colour = torch.einsum("bhlwxn,bhwnc->bhlwxc", weight * value, near[..., 5:8])
    return colour / (weight.sum(dim=-1, keepdim=True) + 1e-8)


class EagerDenoiser(Denoiser):
    """The denoiser in float32 throughout, drawn by `eager_draw`."""

    def forward(self, noisy: Tensor, t: Tensor, hint: Tensor | None = None) -> Tensor:
        """As the denoiser's, without autocast; hints are not taken."""
        return self.field(self.head(self.backbone(self.tokens(noisy), t)))

    def draw(self, field: Tensor, height: int, width: int, region: Region = WHOLE) -> Tensor:
        """Draw by `eager_draw`; whole pictures only."""
        assert region == WHOLE
        return eager_draw(field, height, width)
