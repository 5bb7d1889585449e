"""Augmentation that does not leak: training pictures are moved about, and the network is told how.

Each picture is scaled, turned, stretched and shifted, each with a small probability, and the amounts go into the
conditioning (Karras et al., "EDM", 2022, appendix F.2). A small set of photographs then lasts longer, and sampling,
which says that nothing was done, draws upright cats in place. Mirroring is not told: a
mirrored cat is a cat.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.denoiser import Denoiser

SCALE = 0.2  # deviation of log2 of the zoom
TURN = 0.35  # deviation of the angle, in radians
STRETCH = 0.2  # deviation of log2 of the zoom along one axis, whose direction is uniform
SHIFT = 0.125  # deviation of the shift, in pictures
LABELS = 6


def draw_transforms(
    count: int, chance: float, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw `count` transforms, each of its four parts on with probability `chance`.

    Returns matrices [count, 2, 3], from places in the result to places in the source, both with the picture at
    [-1, 1]^2, and labels [count, LABELS], about 1 in size, that say what was done: zero for nothing.
    """
    on = (torch.rand(count, 4, generator=generator, device=device) < chance).float()
    amount = torch.randn(count, 5, generator=generator, device=device)
    scale, turn, stretch = (amount[:, :3] * on[:, :3]).unbind(1)
    shift = amount[:, 3:] * on[:, 3:]
    axis = math.pi * torch.rand(count, generator=generator, device=device)
    linear = rotation(TURN * turn) * torch.exp2(SCALE * scale)[:, None, None]
    along = torch.exp2(STRETCH * stretch)
    squeeze = rotation(axis) @ torch.diag_embed(torch.stack([along, 1.0 / along], 1)) @ rotation(-axis)
    labels = torch.cat([scale[:, None], turn[:, None], polar(stretch, 2.0 * axis), shift], 1)
    return torch.cat([linear @ squeeze, 2.0 * SHIFT * shift[:, :, None]], 2), labels


def polar(length: Tensor, angle: Tensor) -> Tensor:
    """Vectors [B, 2] of given lengths and angles [B]."""
    return torch.stack([length * angle.cos(), length * angle.sin()], 1)


def rotation(angle: Tensor) -> Tensor:
    """Rotation matrices [B, 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def warp(pictures: Tensor, matrices: Tensor, mode: str) -> Tensor:
    """Pictures [B, C, Y, X] looked up where `matrices` [B, 2, 3] say, mirrored at their edges."""
    if not len(pictures):  # which affine_grid refuses
        return pictures
    grid = F.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode=mode, padding_mode="reflection", align_corners=False)


class AugmentedDenoiser(nn.Module):
    """A denoiser in training: told by labels [B, LABELS] how its pictures were moved. Zero labels change nothing."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.labels = nn.Linear(LABELS, denoiser.config.width, bias=False)
        nn.init.zeros_(self.labels.weight)

    def forward(self, noisy: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Predict splat fields, see Denoiser."""
        return self.denoiser(noisy, t, self.labels(labels))
