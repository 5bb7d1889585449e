"""What is measured on pictures alone, without a feature network: steps across patch borders, and agreement."""

from __future__ import annotations

import torch
from torch import Tensor


def border_ratio(image: Tensor, patches: tuple[int, int] = (8, 8)) -> Tensor:
    """Mean step across patch borders over mean step inside patches, of pictures [B, C, Y, X]: [B].

    A step is the absolute difference of two neighbouring pixels. Y and X are multiples of the (rows, columns) of
    `patches`; both axes count alike. 1 where borders do not show; NaN for a picture of one colour.
    """
    ratios = []
    for axis, count in zip((2, 3), patches, strict=True):
        assert image.shape[axis] % count == 0
        step = image.diff(dim=axis).abs().mean(dim=(1, 5 - axis))
        border = torch.arange(1, image.shape[axis], device=image.device) % (image.shape[axis] // count) == 0
        ratios.append(step[:, border].mean(dim=1) / step[:, ~border].mean(dim=1))
    return (ratios[0] + ratios[1]) / 2


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """The agreement of pictures [B, 3, Y, X] in [-1, 1], both clamped for display, in dB: [B]; infinite if equal."""
    difference = image.clamp(-1, 1) - reference.clamp(-1, 1)
    return -10 * torch.log10(difference.square().mean(dim=(1, 2, 3)) / 4)
