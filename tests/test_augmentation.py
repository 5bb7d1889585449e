"""Augmentation: what is moved is told, what is told is moved, and the two sizes of a picture move alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.denoiser import Denoiser, DenoiserConfig
from pipeline.training.augmentation import AugmentedDenoiser, draw_transforms, warp
from pipeline.training.batches import augment

CPU = torch.device("cpu")


def smooth(count: int, side: int) -> torch.Tensor:
    """Random pictures without detail, so that interpolation hardly errs."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False).clamp(-1, 1)


def test_pictures_move_exactly_where_labels_say_so() -> None:
    matrices, labels = draw_transforms(400, 0.15, torch.Generator().manual_seed(1), CPU)
    moved = (matrices - torch.eye(2, 3)).abs().amax(dim=(1, 2)) > 1e-5
    assert torch.equal(moved, labels.abs().amax(dim=1) > 0)
    # Four parts, each with a chance of 0.15: 0.85 ** 4 = 0.52 stay.
    assert 0.4 < moved.float().mean() < 0.56
    pictures = smooth(400, 32)
    for mode in ("bilinear", "bicubic"):
        change = (warp(pictures, matrices, mode) - pictures).abs().amax(dim=(1, 2, 3))
        assert change[~moved].max() < 1e-4
        assert change[moved].median() > 0.05


def test_a_shift_is_by_what_the_label_says() -> None:
    matrices, labels = draw_transforms(300, 0.2, torch.Generator().manual_seed(2), CPU)
    only_shift = (labels[:, :4] == 0).all(dim=1) & (labels[:, 4] != 0)
    assert only_shift.any()
    ramp = torch.linspace(-0.5, 0.5, 64).expand(len(labels), 1, 64, 64)
    step = 64 / 63  # of the ramp over a whole picture
    for moved, label in zip(warp(ramp, matrices, "bilinear")[only_shift], labels[only_shift], strict=True):
        centre = (moved - ramp[0])[0, 32, 24:40].mean()
        torch.testing.assert_close(centre, 0.125 * label[4] * step, atol=2e-3, rtol=0)


def test_small_and_large_move_alike() -> None:
    large = smooth(8, 128)
    small = F.interpolate(large, size=(64, 64), mode="area")
    matrices, labels = draw_transforms(8, 0.9, torch.Generator().manual_seed(3), CPU)
    assert (labels.abs().amax(dim=1) > 0).all()
    clean, fine = augment(small, large[:4], matrices)
    assert clean.shape == small.shape
    assert fine.shape == (4, 3, 128, 128)
    # The front was reduced after the move and the back moved after reduction: the same, but for interpolation.
    either = augment(small, large, matrices)[0]
    assert (either[4:] - clean[4:]).abs().mean() < 0.01
    torch.testing.assert_close(either[:4], clean[:4])


def test_saying_that_nothing_was_done_changes_nothing_and_saying_more_does() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(rows=2, columns=2, splats_per_patch=4, width=16, blocks=1, heads=2))
    augmented = AugmentedDenoiser(denoiser)
    with torch.no_grad():
        for parameter in augmented.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    noisy, t = torch.randn(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(augmented(noisy, t, torch.zeros(3, 6)), denoiser(noisy, t))
    assert (augmented(noisy, t, torch.ones(3, 6)) - denoiser(noisy, t)).abs().max() > 1e-3
