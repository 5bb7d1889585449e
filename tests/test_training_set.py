"""The prepared set as arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import pixels
from PIL import Image

from models.errors import UserError
from pipeline.photographs import prepared
from pipeline.photographs.preparation import prepare
from pipeline.training.training_set import TrainingSet, load

CATS = Path(__file__).parent / "photos"


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten cats and sixty pictures of noise of 64 to 123 pixels, in several files of several row groups."""
    folder = tmp_path_factory.mktemp("noise")
    for seed in range(60):
        pixels = np.random.default_rng(seed).integers(0, 256, (64 + seed, 64 + seed, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed:02d}.png")
    out = tmp_path_factory.mktemp("set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "GROUP_ROWS", 5)
        patch.setattr(prepared, "FILE_BYTES", 400_000)
        record = prepare([str(folder), str(CATS)], str(out))
    assert record["kept"] == 70
    assert record["heldout"] > 1
    assert len(record["files"]) > 2
    return str(out)


def rows(url: str, heldout: bool) -> list[dict]:
    record = json.loads(Path(url, prepared.RECORD).read_text())
    found = [row for file in record["files"] for row in pq.read_table(Path(url, file["name"])).to_pylist()]
    return [row for row in found if row["heldout"] == heldout]


def equal(one: TrainingSet, other: TrainingSet) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("small", "large", "large_rows"))


def test_load_gives_the_stored_pixels_and_keeps_the_splits_apart(prepared_set: str) -> None:
    seen = []
    for heldout in (False, True):
        expected = rows(prepared_set, heldout)
        loaded = load(prepared_set, heldout=heldout, detail=None)
        np.testing.assert_array_equal(loaded.small, [pixels(row["image64"]["bytes"]) for row in expected])
        assert len(loaded.large) == len(loaded.large_rows) == 0
        seen.append({picture.tobytes() for picture in loaded.small})
    assert len(seen[0]) + len(seen[1]) == 70
    assert not seen[0] & seen[1]


def test_large_pictures_and_their_rows(prepared_set: str) -> None:
    expected = rows(prepared_set, False)
    loaded = load(prepared_set, heldout=False, detail=128)
    large = [number for number, row in enumerate(expected) if row["side"] >= 128]
    assert 5 < len(large) < len(expected)
    assert loaded.large.shape == (len(large), 128, 128, 3)
    assert loaded.large_rows.dtype == np.int64
    assert list(loaded.large_rows) == large
    for picture, number in zip(loaded.large, large, strict=True):
        kept = pixels(expected[number]["image"]["bytes"]).astype(np.float64)
        if len(kept) % 128 == 0:
            factor = len(kept) // 128
            averaged = kept.reshape(128, factor, 128, factor, 3).mean((1, 3))
            assert np.abs(picture - averaged).max() <= 0.5
        # The 64 px version is the same photograph: reducing one gives the other, up to rounding twice.
        halved = picture.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(halved - loaded.small[number]).max() <= 1.5


def test_stripes_partition_the_split(prepared_set: str) -> None:
    whole = load(prepared_set, heldout=False, detail=128)
    for rank in range(3):
        part = load(prepared_set, heldout=False, detail=128, stripe=(rank, 3))
        np.testing.assert_array_equal(part.small, whole.small[rank::3])
        mine = whole.large_rows % 3 == rank
        np.testing.assert_array_equal(part.large, whole.large[mine])
        np.testing.assert_array_equal(part.large_rows, whole.large_rows[mine] // 3)


def test_mapped_files_equal_memory(prepared_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    whole = load(prepared_set, heldout=False, detail=128, memory_bytes=1 << 30)
    assert not isinstance(whole.small, np.memmap)
    unnamed = load(prepared_set, heldout=False, detail=128, memory_bytes=1000)
    assert isinstance(unnamed.small, np.memmap)
    assert isinstance(unnamed.large, np.memmap)
    assert equal(unnamed, whole)
    assert not list((tmp_path / "temporary").iterdir())
    # Nothing reaches 500 pixels, and an empty array cannot be mapped.
    assert load(prepared_set, heldout=False, detail=500, memory_bytes=1000).large.shape == (0, 500, 500, 3)


def test_errors_name_the_thing_and_the_remedy(prepared_set: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prepared set.*python -m jobs\.prepare"):
        load(str(tmp_path / "none"), heldout=False, detail=None)
    with pytest.raises(UserError, match="no training photographs for worker 100 of 100"):
        load(prepared_set, heldout=False, detail=None, stripe=(99, 100))

    record = json.loads(Path(prepared_set, prepared.RECORD).read_text())
    for file in record["files"]:
        (tmp_path / file["name"]).write_bytes(Path(prepared_set, file["name"]).read_bytes())
    (tmp_path / prepared.RECORD).write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(UserError, match=r"format 2.*newer"):
        load(str(tmp_path), heldout=False, detail=None)
    (tmp_path / prepared.RECORD).write_text("{")
    with pytest.raises(UserError, match=r"prepared\.json is damaged"):
        load(str(tmp_path), heldout=False, detail=None)

    (tmp_path / prepared.RECORD).write_text(json.dumps(record))
    last = tmp_path / record["files"][-1]["name"]
    whole = last.read_bytes()
    last.write_bytes(whole[:-50])
    with pytest.raises(UserError, match=f"{last.name} is damaged"):
        load(str(tmp_path), heldout=False, detail=None)
    # A picture in the middle: its PNG signature is overwritten, while the Parquet file stays whole.
    damaged = whole.replace(b"\x89PNG", b"\x00PNG")
    last.write_bytes(damaged)
    with pytest.raises(UserError, match=f"{last.name} row 0 is damaged"):
        load(str(tmp_path), heldout=False, detail=None)
    last.unlink()
    with pytest.raises(UserError, match=f"{last.name} is damaged.*No such file"):
        load(str(tmp_path), heldout=False, detail=None)
