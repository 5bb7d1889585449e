"""Windows of large pictures, and what their distances say when the answer is known."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.patches import CROPS, compare_patches, crops


def test_windows_are_parts_of_their_picture_at_places_of_its_number_alone() -> None:
    # Every pixel says where it is.
    places = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=-1).astype(np.uint8)
    picture = np.concatenate([places, np.zeros((256, 256, 1), np.uint8)], axis=-1)
    windows = crops(np.stack([picture] * 3), first=7)
    assert windows.shape == (3 * CROPS, 64, 64, 3)
    corners = windows[:, 0, 0, :2].astype(int)
    np.testing.assert_array_equal(windows[:, -1, -1, :2], corners + 63)
    assert len(np.unique(corners, axis=0)) == len(corners)
    np.testing.assert_array_equal(crops(picture[None], first=8), windows[CROPS : 2 * CROPS])


def test_the_gain_is_what_drawing_saves_of_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2000, 8, generator=generator)
    half = real[:1000]
    # Moved by a vector, a set is at its squared length.
    figures = compare_patches({"drawn": half + 1, "lanczos": half + 2, "bicubic": half + 3}, real)
    assert [figures[name] for name in ("drawn", "lanczos", "bicubic")] == pytest.approx([8, 32, 72], rel=1e-5)
    assert figures["gain"] == pytest.approx(0.75, rel=1e-5)
    assert figures["floor"] < 0.2
    flat = torch.zeros(2000, 8)
    assert compare_patches({"drawn": flat[:1000], "lanczos": flat[:1000]}, flat)["gain"] is None
