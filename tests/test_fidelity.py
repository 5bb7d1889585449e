"""The evaluation on sets whose answer is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from models.errors import UserError
from models.features import FeatureNetwork, Features
from pipeline.evaluation.fidelity import check_enough, check_photographs, compare, look


class BlockMeans(FeatureNetwork):
    """The mean colour of each of 4 x 4 blocks: features that a test can reason about."""

    width = 48

    def forward(self, pictures: Tensor) -> Features:
        blocks = pictures.float().reshape(-1, 4, 16, 4, 16, 3).mean(dim=(2, 4)) / 255
        return Features(blocks.flatten(1), blocks[:, 0, 0, 0])


def scenes(seed: int, count: int) -> np.ndarray:
    """Pictures of 4 x 4 random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope="module")
def training() -> np.ndarray:
    return scenes(0, 1100)


@pytest.fixture(scope="module")
def heldout() -> np.ndarray:
    return scenes(3, 100)


def weigh(sets: list[np.ndarray], training: np.ndarray, heldout: np.ndarray) -> list[dict[str, Any]]:
    """The figures of sets of generated pictures."""
    ours = [look(BlockMeans(), pictures, mirrored=True, batch=64) for pictures in sets]
    known, unknown = (look(BlockMeans(), pictures, mirrored=True) for pictures in (training, heldout))
    return [comparison.figures for comparison in compare(ours, known, unknown)]


def test_pictures_of_one_origin_reach_the_floor_and_darker_ones_do_not(
    training: np.ndarray, heldout: np.ndarray
) -> None:
    figures, dark = weigh([scenes(1, 500), scenes(1, 500) // 2], training, heldout)
    assert figures["frechet"]["generated"] == pytest.approx(figures["frechet"]["floor"], rel=0.1)
    assert figures["memorised"]["share"] < 0.05
    assert figures["cat"]["floor"] == pytest.approx(0.5, abs=0.03)

    assert dark["frechet"]["floor"] == figures["frechet"]["floor"]
    # Halving moves each of 48 uniform means by 1/4 and halves its deviation: 48 (1/16 + 1/4 · 1/12) = 4.
    assert dark["frechet"]["generated"] == pytest.approx(4, rel=0.05)
    assert dark["kid"]["generated"] > 10 * abs(dark["kid"]["floor"])


def test_sets_of_different_sizes_are_compared_at_the_same_number(training: np.ndarray, heldout: np.ndarray) -> None:
    few, many = weigh([scenes(1, 100), scenes(2, 500)], training, heldout)
    assert few["frechet"]["floor"] == many["frechet"]["floor"]
    # Of so few pictures each distance is large, and no larger for the smaller set.
    assert few["frechet"]["generated"] == pytest.approx(many["frechet"]["generated"], rel=0.2)


def test_copied_photographs_are_found_mirrored_ones_too_and_the_figures_repeat(
    training: np.ndarray, heldout: np.ndarray
) -> None:
    clean = scenes(1, 500)
    (before,) = weigh([clean], training, heldout)
    generated = clean.copy()
    generated[::5] = np.clip(training[200:300].astype(int) + 2, 0, 255)
    generated[1::10] = training[300:350, :, ::-1]
    # A photograph that was never trained on is not a copy, however often it is generated.
    first, second, repeated = weigh([generated, generated, heldout.repeat(5, axis=0)], training, heldout)
    assert first == second
    assert first["memorised"]["threshold"] == before["memorised"]["threshold"]
    assert first["memorised"]["share"] == pytest.approx(0.3 + 0.7 * before["memorised"]["share"], abs=0.02)
    assert repeated["memorised"]["share"] == pytest.approx(0.01, abs=0.001)


def test_sets_that_cannot_be_compared_are_refused(training: np.ndarray, heldout: np.ndarray) -> None:
    networks = {"blocks": BlockMeans()}
    with pytest.raises(UserError, match=r"97 photographs are too few for a covariance of 48 features: at least 98"):
        check_enough("photographs", 97, networks, sets=2)
    with pytest.raises(UserError, match=r"48 pictures are too few for .* 48 features: at least 49 are"):
        check_enough("pictures", 48, networks)
    with pytest.raises(UserError, match=r"photographs are uint8 \(1100, 32, 32, 3\)"):
        check_photographs(training[:, :32, :32], heldout)
    with pytest.raises(UserError, match=r"photographs of both kinds are needed"):
        check_photographs(training, heldout[:0])
