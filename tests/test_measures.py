"""Border ratio and PSNR by hand."""

import math

import pytest
import torch

from models.measures import border_ratio, psnr


def test_border_ratio_is_steps_at_borders_over_steps_inside() -> None:
    # Patches of 4 pixels; along x steps of 1 inside and of 3 at the border, along y all equal.
    row = torch.tensor([0.0, 1, 2, 3, 6, 7, 8, 9])
    seams = (row[None, :] + torch.arange(8.0)[:, None]).expand(3, 8, 8)
    smooth = torch.arange(8.0).expand(3, 8, 8) + torch.arange(8.0)[:, None]
    assert border_ratio(torch.stack([seams, smooth]), (2, 2)).tolist() == [2, 1]


def test_psnr_of_a_known_difference_after_clamping() -> None:
    picture = torch.zeros(2, 3, 4, 4)
    other = picture + 0.2
    found = psnr(picture, other)
    assert found.tolist() == pytest.approx([20 * math.log10(2 / 0.2)] * 2)
    assert psnr(picture + 1, picture + 5).tolist() == [math.inf] * 2
