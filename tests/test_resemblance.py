"""How unlike photographs pictures are: against the discrepancy written out, pair by pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.resemblance import FARTHEST, Features, Resemblance, cut
from models.vgg import load_vgg


def clouds(count: int, seed: int) -> Tensor:
    """Pictures that differ in what large parts of them are like, as photographs do."""
    small = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
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
    return trained.anew()


def kernel(a: Features, b: Features) -> Tensor:
    return (1 + a.along @ b.along.T).square() + a.beyond @ b.beyond.T


def measured(photographs: Tensor) -> Tensor:
    """Those that are not for the components, and mirrored."""
    return torch.cat([photographs[1::2], photographs[1::2].flip(3)])


def among(ours: Features) -> Tensor:
    return kernel(ours, ours)[~torch.eye(len(ours.along), dtype=torch.bool)].mean()


def among_photographs(theirs: Features) -> Tensor:
    """Without pairs of a photograph and its mirror image, which say nothing of photographs."""
    return kernel(theirs, theirs)[~torch.eye(len(theirs.along) // 2, dtype=torch.bool).repeat(2, 2)].mean()


def pair_by_pair(ours: Features, theirs: Features) -> Tensor:
    return among(ours) - 2 * kernel(ours, theirs).mean() + among_photographs(theirs)


def test_it_is_the_discrepancy_of_all_pairs_in_value_and_slope(judge: Resemblance, photographs: Tensor) -> None:
    theirs = judge.features(measured(photographs))
    pictures = (clouds(12, 1) * 0.8 + 0.1).requires_grad_(True)
    found = judge(pictures)
    expected = pair_by_pair(judge.features(pictures), theirs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    slopes = [torch.autograd.grad(value, pictures)[0] for value in (found, expected)]
    assert (slopes[0] - slopes[1]).norm() < 1e-3 * slopes[1].norm()


def test_what_is_beyond_the_components_counts_in_units_of_its_deviation(
    judge: Resemblance, photographs: Tensor
) -> None:
    pictures = clouds(5, 8)
    known = torch.cat([judge.statistics(photographs[::2]), judge.statistics(photographs[::2].flip(3))])
    deviation, mean = torch.std_mean(known, dim=0)
    components = torch.linalg.svd((known - mean) / (deviation + 1e-3)).Vh[: judge.features(pictures).along.shape[1]]
    scaled = (judge.statistics(pictures) - mean) / (deviation + 1e-3)
    rest = scaled - scaled @ components.T @ components
    found, length = judge.features(pictures).beyond, scaled.shape[1] ** 0.5
    assert rest.norm(dim=1).max() < FARTHEST * length
    expected = 2 * rest @ rest.T / length
    assert (found @ found.T - expected).norm() < 0.02 * expected.norm()


def test_pictures_like_photographs_are_near_and_others_far(judge: Resemblance) -> None:
    with torch.no_grad():
        judge(clouds(100, 2))
        alike = [float(judge(clouds(100, seed))) for seed in (3, 4, 5, 6)]
        assert abs(sum(alike) / 4) < 0.05
        assert judge(clouds(100, 4) * 0.5 + 0.5) > 1


def test_pictures_are_compared_with_recent_ones_too(judge: Resemblance, photographs: Tensor) -> None:
    with torch.no_grad():
        first, then = clouds(30, 5), clouds(10, 6) * 0.8
        judge(first)
        found = judge(then)
        before, ours, theirs = (judge.features(each) for each in (first, then, measured(photographs)))
        both = Features(*map(torch.cat, zip(ours, before, strict=True)))
        kernels = kernel(ours, both)
        kernels.fill_diagonal_(0.0)
        expected = kernels.sum() / (10 * 39) - 2 * kernel(ours, theirs).mean() + among_photographs(theirs)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(judge.recent, both)
        judge.remembered = 35
        judge(first)
        kept = Features(*(torch.cat([old, new[:5]]) for old, new in zip(before, ours, strict=True)))
        torch.testing.assert_close(judge.recent, kept)


def test_one_picture_that_went_wrong_does_not_outweigh_all_others(judge: Resemblance) -> None:
    pictures = clouds(20, 9)
    pictures[0] = 1.0
    for places, scale in zip(judge.features(pictures), (1.0, 2**0.5), strict=True):
        lengths = places.norm(dim=1) / places.shape[1] ** 0.25 / scale
        assert lengths[0] == pytest.approx(FARTHEST)
        assert lengths[1:].max() < FARTHEST


def test_without_quarters_it_does_not_matter_where_something_is(trained: Resemblance, vgg_file: Path) -> None:
    anywhere = Resemblance(load_vgg(str(vgg_file)), [clouds(20, 0)], enlarged=(1,), quarters=False)
    pictures = clouds(3, 7)
    torch.testing.assert_close(anywhere.statistics(pictures)[:, :3], pictures.mean(dim=(2, 3)))
    turned = pictures.roll(8, dims=3)  # the halves change places
    apart = [judge.statistics(turned)[:, :12] - judge.statistics(pictures)[:, :12] for judge in (anywhere, trained)]
    assert apart[0][:, :6].abs().max() < 1e-5
    assert apart[1].abs().max() > 0.1


def test_windows_are_cut_at_any_place_alike() -> None:
    pictures = torch.arange(2 * 3 * 6 * 8.0).view(2, 3, 6, 8).requires_grad_(True)
    found = cut(pictures, torch.tensor([[0.0, 0.999], [0.999, 0.45]]), 5, 4)
    expected = torch.stack([pictures[0, :, 0:5, 4:8], pictures[1, :, 1:6, 2:6]])
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(windows.square().sum(), pictures)[0] for windows in (found, expected)]
    torch.testing.assert_close(*slopes)
