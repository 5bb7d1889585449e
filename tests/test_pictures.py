"""Reading pictures and photographs to be measured, from real files."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from pipeline.evaluation.pictures import load_photographs, load_pictures
from pipeline.photographs.preparation import prepare


def scenes(count: int) -> np.ndarray:
    """Pictures of 4 x 4 random blocks."""
    blocks = np.random.default_rng(2).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=1).repeat(16, axis=2)


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


def test_pictures_of_any_size_and_place_and_bad_ones_named(tmp_path: Path) -> None:
    expected = scenes(3).clip(1, 254)
    # Rendered pictures may be larger: doubled and perturbed by what an average over 2 x 2 cancels.
    large = expected.repeat(2, axis=1).repeat(2, axis=2)
    large[:, ::2, ::2] += 1
    large[:, 1::2, 1::2] -= 1
    (tmp_path / "shard").mkdir()
    for name, picture in zip("abc", large, strict=True):
        (tmp_path / "shard" / f"{name}.png").write_bytes(encoded(picture))
    (tmp_path / "plan.json").write_text("not a picture")
    np.testing.assert_array_equal(load_pictures(str(tmp_path)), expected)
    np.testing.assert_array_equal(load_pictures(str(tmp_path), count=2), expected[:2])
    with pytest.raises(UserError, match="has 3 pictures, not 4"):
        load_pictures(str(tmp_path), count=4)
    (tmp_path / "shard" / "torn.png").write_bytes(encoded(expected[0])[:90])
    with pytest.raises(UserError, match=r"torn\.png cannot be read"):
        load_pictures(str(tmp_path))
    with pytest.raises(UserError, match="nothing is there"):
        load_pictures(f"{tmp_path}/none")


def test_photographs_are_the_same_prepared_or_not_or_in_a_zip(many_photographs: Path, tmp_path: Path) -> None:
    prepare([str(many_photographs)], str(tmp_path / "prepared"))
    archive = shutil.make_archive(str(tmp_path / "cats"), "zip", many_photographs)
    raw, *others = (
        load_photographs([str(place)], large={128: 20, 256: 5}, seed=0)
        for place in (many_photographs, tmp_path / "prepared", archive)
    )
    for other in others:
        np.testing.assert_array_equal(raw.training, other.training)
        np.testing.assert_array_equal(raw.heldout, other.heldout)
        np.testing.assert_array_equal(raw.large[128], other.large[128])
    assert len(raw.training) + len(raw.heldout) == 160
    assert raw.large[128].shape == (20, 128, 128, 3)
    assert raw.large[256].shape == (0, 256, 256, 3)


def test_photographs_that_are_too_small_are_named(many_photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.png").write_bytes(encoded(scenes(1)[0, :32, :32]))
    reason = r"tiny\.png.* 32 x 32 pixels give a square below.*$"
    with pytest.raises(UserError, match=rf"^1 photographs cannot be used; the first: {tmp_path}/{reason}"):
        load_photographs([str(many_photographs), str(tmp_path)], large={128: 2}, seed=0)
    with pytest.raises(UserError, match=rf"^none of the 1 photographs can be used; the first: {tmp_path}/{reason}"):
        load_photographs([str(tmp_path)], large={128: 2}, seed=0)
