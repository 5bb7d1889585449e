"""How unlike photographs pictures are: against the discrepancy written out, pair by pair."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.resemblance import FARTHEST, Resemblance
from models.vgg import load_vgg


def clouds(count: int, seed: int) -> Tensor:
    """Pictures that differ in what large parts of them are like, as photographs do."""
    small = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(small, size=(16, 16), mode="bilinear")


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    return clouds(600, 0)


@pytest.fixture(scope="module")
def trained(photographs: Tensor, vgg_file: Path) -> Resemblance:
    return Resemblance(load_vgg(str(vgg_file)), photographs.split(100), enlarged=(1, 2))


@pytest.fixture
def judge(trained: Resemblance) -> Resemblance:
    """One that has not seen a generated picture yet."""
    return copy.copy(trained)


def kernel(a: Tensor, b: Tensor) -> Tensor:
    return (1 + a @ b.T / a.shape[1] ** 0.5).square()


def pair_by_pair(ours: Tensor, theirs: Tensor) -> Tensor:
    apart = ~torch.eye(len(ours), dtype=torch.bool)
    return kernel(ours, ours)[apart].mean() - 2 * kernel(ours, theirs).mean() + kernel(theirs, theirs).mean()


def test_it_is_the_discrepancy_of_all_pairs_in_value_and_slope(judge: Resemblance, photographs: Tensor) -> None:
    both = torch.cat([photographs, photographs.flip(3)])
    theirs = judge.features(both)
    assert theirs.mean(dim=0).abs().max() < 1e-3
    torch.testing.assert_close(theirs.T @ theirs / len(theirs), judge.variances.diag(), rtol=0.02, atol=0.02)
    pictures = (clouds(12, 1) * 0.8 + 0.1).requires_grad_(True)
    found = judge(pictures)
    expected = pair_by_pair(judge.features(pictures), theirs)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    slopes = [torch.autograd.grad(value, pictures)[0] for value in (found, expected)]
    assert (slopes[0] - slopes[1]).norm() < 0.02 * slopes[1].norm()


def test_pictures_like_photographs_are_near_and_others_far(judge: Resemblance) -> None:
    with torch.no_grad():
        judge(clouds(100, 2))
        assert abs(judge(clouds(100, 3))) < 0.3  # 0.15 and less when this was written
        assert judge(clouds(100, 4) * 0.5 + 0.5) > 1


def test_pictures_are_compared_with_recent_ones_too(judge: Resemblance, photographs: Tensor) -> None:
    with torch.no_grad():
        first, then = clouds(30, 5), clouds(10, 6) * 0.8
        judge(first)
        found = judge(then)
        before, ours, theirs = (judge.features(each) for each in (first, then, photographs))
        both = torch.cat([ours, before])
        kernels = kernel(ours, both)
        kernels.fill_diagonal_(0.0)
        expected = kernels.sum() / (10 * 39) - 2 * kernel(ours, theirs).mean() + kernel(theirs, theirs).mean()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(judge.recent, both)


def test_one_picture_that_went_wrong_does_not_outweigh_all_others(judge: Resemblance) -> None:
    pictures = clouds(20, 9)
    pictures[0] = 1.0
    lengths = judge.features(pictures).norm(dim=1) / judge.variances.numel() ** 0.5
    assert lengths[0] == pytest.approx(FARTHEST)
    assert lengths[1:].max() < FARTHEST
