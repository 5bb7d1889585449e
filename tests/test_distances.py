"""Every distance against an answer that is known without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.distances import frechet, kid, manifold, memorised, nearest, neighbour_radius, overlap, realism
from models.errors import UserError


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_sample(seed: int, mean: Tensor, covariance: Tensor, count: int = 50) -> Tensor:
    """A sample whose own mean and unbiased covariance are exactly the given ones."""
    raw = normal(seed, count, len(mean))
    raw = raw - raw.mean(dim=0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(raw.mT.cov()), raw.mT, upper=False).mT
    return mean + white @ torch.linalg.cholesky(covariance).mT


def test_frechet_of_gaussians_with_a_closed_form() -> None:
    # Two covariances that do not commute. In two dimensions trace sqrt(AB) = sqrt(trace AB + 2 sqrt(det AB)).
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.5, -0.3], [-0.3, 3.0]], dtype=torch.float64)
    shift = torch.tensor([3.0, -4.0], dtype=torch.float64)
    product = a @ b
    expected = 25 + a.trace() + b.trace() - 2 * (product.trace() + 2 * product.det().sqrt()).sqrt()
    found = frechet(exact_sample(1, torch.zeros(2).double(), a), exact_sample(2, shift, b, count=80))
    assert found == pytest.approx(float(expected), abs=1e-9)


def test_frechet_of_equal_sets_is_zero_also_when_features_are_dead() -> None:
    vectors = torch.cat([normal(0, 200, 60), torch.zeros(200, 4)], dim=1).float()
    assert frechet(vectors, vectors[torch.randperm(200)]) == pytest.approx(0, abs=1e-4)


def test_frechet_refuses_a_singular_covariance() -> None:
    with pytest.raises(UserError, match=r"60 pictures are too few .* at least 65"):
        frechet(normal(0, 100, 64), normal(1, 60, 64))


def test_kid_is_the_unbiased_sum_over_pairs() -> None:
    a, b = normal(3, 7, 4), normal(4, 5, 4) + 0.5

    def mean(x: Tensor, y: Tensor, *, same: bool) -> float:
        values = [
            (float(p @ q) / 4 + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(y) if not (same and i == j)
        ]
        return sum(values) / len(values)

    expected = mean(a, a, same=True) + mean(b, b, same=True) - 2 * mean(a, b, same=False)
    assert kid(a, b) == pytest.approx(expected, rel=1e-12)


def test_kid_of_shifted_gaussians_has_a_closed_form() -> None:
    # For unit Gaussians around p and q, the moments of s = x·y / D are polynomials in c = p·q, |p|², |q|².
    width, shift = 16, 0.7

    def expected_kernel(c: float, p: float, q: float) -> float:
        spread = p + q + width
        moments = c, c**2 + spread, c**3 + 3 * c * spread + 6 * c
        return 1 + 3 * moments[0] / width + 3 * moments[1] / width**2 + moments[2] / width**3

    length = width * shift**2
    expected = expected_kernel(0, 0, 0) + expected_kernel(length, length, length) - 2 * expected_kernel(0, 0, length)
    zero, one = torch.zeros(width).double(), torch.eye(width).double()
    a, b = (exact_sample(seed, zero, one, count=2000) for seed in (5, 6))
    assert kid(a, b + shift) == pytest.approx(expected, rel=0.01)
    # The biased estimate would be about 2 (8 - 1) / 3000 too high.
    assert abs(kid(normal(5, 3000, width), normal(6, 3000, width))) < 3e-3


def test_overlap_of_one_origin_of_a_collapse_and_of_strangers() -> None:
    # More vectors than one block of pairs holds.
    real, fresh = manifold(normal(7, 1500, 3)), normal(8, 1300, 3)
    same = overlap(manifold(fresh), real)
    assert same.precision > 0.93
    assert same.recall > 0.93
    # A ball to the 5th neighbour misses all of an equally dense second sample with probability 1/32.
    assert same.coverage == pytest.approx(1 - (1500 / 2800) ** 5, abs=0.02)
    collapsed = overlap(manifold(normal(9, 1300, 3) * 0.1), real)
    assert collapsed.precision > 0.99
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.1
    assert overlap(manifold(fresh + 100), real) == (0, 0, 0)
    assert overlap(real, real) == (1, 1, 1)


def test_realism_by_hand() -> None:
    balls = manifold(torch.tensor([[0.0], [1.0], [3.0], [7.0]]), 1)
    # Radii 1, 1, 2, 4. At 2.5: 4 / 4.5 of the last ball, 2 / 0.5 of the third. On a rim: exactly 1, and inside.
    assert realism(torch.tensor([[2.5], [-1.0], [-2.0]]), balls).tolist() == [4, 1, 0.5]


def test_neighbours_by_hand() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_radius(line, 1).tolist() == [1, 1, 2, 4]
    assert neighbour_radius(line, 2).tolist() == [3, 2, 3, 6]
    distances, indices = nearest(torch.tensor([[2.5], [-1.0]]), line)
    assert distances.tolist() == [0.5, 1]
    assert indices.tolist() == [2, 0]
    with pytest.raises(UserError, match="4 pictures are too few"):
        neighbour_radius(line, 4)


def test_planted_copies_are_found_and_fresh_pictures_are_not() -> None:
    training, heldout, fresh = normal(10, 2000, 24), normal(13, 600, 24), normal(11, 1000, 24)

    def share(pictures: Tensor) -> float:
        return memorised(nearest(pictures, training)[0], nearest(heldout, training)[0]).share

    # Held-out photographs fall below their own 1st percentile by definition: 6 of 600.
    assert share(heldout) == 6 / 600
    assert share(fresh) < 0.03
    planted = fresh.clone()
    planted[:100] = training[500:600] + 1e-3 * normal(12, 100, 24)
    assert share(planted) == pytest.approx(0.1 + 0.9 * share(fresh), abs=0.005)
