"""Distances between two sets of feature vectors: Fréchet, kernel (KID), overlap, copies.

Every function takes tensors [n, D] on any device, computes in float64 there, draws nothing at random and
changes nothing. All pairs are visited in blocks of ROWS, so that memory grows with n, not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from models.errors import UserError

NEIGHBOURS = 5
QUANTILE = 0.01
ROWS = 1024


class Overlap(NamedTuple):
    """Shares in [0, 1] of how two sets overlap; see `overlap`."""

    precision: float
    recall: float
    coverage: float


class Memorised(NamedTuple):
    """The share of pictures nearer than `threshold` to a photograph trained on; see `memorised`."""

    share: float
    threshold: float


class Manifold(NamedTuple):
    """Vectors [n, D], each owning the ball [n] that reaches to one of its nearest neighbours in the set."""

    vectors: Tensor
    radius: Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance between Gaussians fitted to a [n, D] and b [m, D]; 0 for equal sets.

    Unbiased covariances. UserError below D + 1 vectors in either set, where a covariance would be singular
    and the distance mostly a matter of the number of pictures.
    """
    mean_a, covariance_a = moments(a)
    mean_b, covariance_b = moments(b)
    # trace sqrt(A B) = trace sqrt(sqrt(A) B sqrt(A)), whose inner matrix is symmetric. Rounding can leave
    # eigenvalues a little below 0.
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    inner = root @ covariance_b @ root
    cross = torch.linalg.eigvalsh((inner + inner.mT) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return float(distance.clamp(min=0))


def check_count(count: int, width: int) -> None:
    """Raise the UserError of `moments` if `count` vectors of `width` features have no regular covariance."""
    if count <= width:
        raise UserError(
            f"{count:,} pictures are too few for a covariance of {width:,} features; "
            f"at least {width + 1:,} are needed in each set, and two such sets of photographs"
        )


def moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of vectors [n, D], n > D; UserError for fewer."""
    check_count(*vectors.shape)
    vectors = vectors.double()
    mean = vectors.mean(dim=0)
    centred = vectors - mean
    return mean, centred.mT @ centred / (len(vectors) - 1)


def kid(a: Tensor, b: Tensor) -> float:
    """The kernel inception distance: the unbiased squared MMD under the kernel (x·y / D + 1)^3, all pairs.

    The usual mean over random subsets estimates the same number with more noise. Around 0 for sets of one
    origin, on either side of it; at least two vectors in each.
    """
    a, b = a.double(), b.double()
    within = sum(_kernel_sum(x, x, diagonal=False) / (len(x) * (len(x) - 1)) for x in (a, b))
    return within - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _kernel_sum(a: Tensor, b: Tensor, *, diagonal: bool = True) -> float:
    def kernel(dots: Tensor) -> Tensor:
        return (dots / a.shape[1] + 1) ** 3

    total = sum(float(kernel(rows @ b.mT).sum()) for rows in a.split(ROWS))
    return total if diagonal else total - float(kernel(a.square().sum(dim=1)).sum())


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For each vector of a [n, D] the distance [n] to the nearest vector of b [m, D], and its index [n]."""
    distances, indices = zip(*(block.min(dim=1) for block in _blocks(a, b)), strict=True)
    return torch.cat(distances), torch.cat(indices)


def neighbour_radius(a: Tensor, neighbours: int = 1) -> Tensor:
    """For each vector of a [n, D] the distance [n] to its `neighbours`-th nearest other vector of that set.

    UserError where the set has no such neighbour.
    """
    if len(a) <= neighbours:
        raise UserError(f"{len(a):,} pictures are too few to have {neighbours} neighbours each")
    radii, start = [], 0
    for block in _blocks(a, a):
        own = torch.arange(len(block), device=block.device)
        block[own, start + own] = torch.inf
        radii.append(block.kthvalue(neighbours, dim=1).values)
        start += len(block)
    return torch.cat(radii)


def manifold(vectors: Tensor, neighbours: int = NEIGHBOURS) -> Manifold:
    """The balls of `vectors` [n, D] to their `neighbours`-th nearest neighbours; UserError where there are too few."""
    return Manifold(vectors, neighbour_radius(vectors, neighbours))


def realism(vectors: Tensor, real: Manifold) -> Tensor:
    """For each of `vectors` [n, D] the greatest of radius / distance over the balls of `real`: float64 [n].

    At least 1 exactly where it lies in some ball; the greater, the deeper (Kynkäänniemi et al., 2019).
    """
    # An exact copy lies at distance 0; any positive floor keeps the quotient finite.
    return torch.cat([(real.radius / block.clamp(min=1e-30)).amax(dim=1) for block in _blocks(vectors, real.vectors)])


def overlap(generated: Manifold, real: Manifold) -> Overlap:
    """How two sets overlap, both made by `manifold` with as many neighbours.

    precision: generated within the ball of some real vector; recall: real within the ball of some generated
    one; coverage: real whose own ball holds a generated one. For two large samples of one origin, coverage is
    about 1 - 2^-neighbours.
    """
    shares = (
        realism(generated.vectors, real) >= 1,
        realism(real.vectors, generated) >= 1,
        nearest(real.vectors, generated.vectors)[0] <= real.radius,
    )
    return Overlap(*(float(share.double().mean()) for share in shares))


def memorised(generated: Tensor, heldout: Tensor, quantile: float = QUANTILE) -> Memorised:
    """How many generated pictures look copied, from distances [n] and [h] to the nearest photograph trained on.

    The `quantile` of the distances of held-out photographs, which cannot have been copied, is the threshold: pictures
    that copy nothing fall below it with a share of about `quantile`.
    """
    threshold = heldout.quantile(quantile)
    return Memorised(float((generated < threshold).double().mean()), float(threshold))


def _blocks(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Distances between all vectors of a and of b, as blocks [<= ROWS, m] in the order of a."""
    b = b.double()
    for rows in a.split(ROWS):
        yield torch.cdist(rows.double(), b, compute_mode="use_mm_for_euclid_dist")
