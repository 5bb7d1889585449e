"""The evaluation on sets whose answer is planted, read from real files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import Tensor

from jobs.cli import run
from jobs.evaluate import Options, main
from models.errors import UserError
from models.features import FeatureNetwork, Features
from pipeline.evaluation import as_table, evaluate
from pipeline.pictures import load_pictures, reduce_area


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


def test_area_reduction_at_a_ratio_that_is_not_whole() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    fine = pixels.repeat(4, axis=0).repeat(4, axis=1).reshape(4, 6, 4, 6, 3)
    np.testing.assert_array_equal(reduce_area(pixels, 4), np.floor(fine.mean(axis=(1, 3)) + 0.5))


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return scenes(0, 1200)


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


def test_pictures_of_one_origin_reach_the_floor_and_darker_ones_do_not(real: np.ndarray) -> None:
    networks = {"blocks": BlockMeans()}
    report = evaluate(scenes(1, 500), real, networks=networks, batch=64)
    assert report["pictures"] == {"generated": 500, "real": 1200, "count": 500}
    figures = report["networks"]["blocks"]
    assert figures["frechet"]["generated"] == pytest.approx(figures["frechet"]["floor"], rel=0.1)
    assert figures["memorised"]["share"] < 0.03
    assert figures["cat"]["real"] == pytest.approx(0.5, abs=0.03)

    dark = evaluate(scenes(1, 500) // 2, real, networks=networks)["networks"]["blocks"]
    assert dark["frechet"]["floor"] == figures["frechet"]["floor"]
    # Halving moves each of 48 uniform means by 1/4 and halves its deviation: 48 (1/16 + 1/4 · 1/12) = 4.
    assert dark["frechet"]["generated"] == pytest.approx(4, rel=0.05)
    assert dark["kid"]["generated"] > 10 * abs(dark["kid"]["floor"])


def test_copied_photographs_are_found_and_the_figures_repeat(real: np.ndarray) -> None:
    generated = scenes(1, 500)
    generated[::5] = np.clip(real[200:300].astype(int) + 2, 0, 255)
    first, second = (evaluate(generated, real, networks={"blocks": BlockMeans()}, batch=b) for b in (64, 64))
    assert first == second
    assert first["networks"]["blocks"]["memorised"]["share"] == pytest.approx(0.2, abs=0.02)
    assert "memorised share" in as_table(first)


def test_sets_that_cannot_be_compared_are_refused(real: np.ndarray) -> None:
    networks = {"blocks": BlockMeans()}
    with pytest.raises(UserError, match=r"48 pictures are too few for a covariance of 48 features"):
        evaluate(real, real[:97], networks=networks)
    with pytest.raises(UserError, match=r"generated pictures are uint8 \(500, 32, 32, 3\)"):
        evaluate(scenes(1, 500)[:, :32, :32], real, networks=networks)


def test_the_same_pictures_from_folder_zip_and_parquet(tmp_path: Path) -> None:
    expected = scenes(2, 3)
    # Photographs may be larger: doubled and perturbed by what an average over 2 x 2 cancels.
    large = expected.repeat(2, axis=1).repeat(2, axis=2).clip(1, 254)
    large[:, ::2, ::2] += 1
    large[:, 1::2, 1::2] -= 1
    expected = expected.clip(1, 254)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    names = ["a.png", "b.png", "deep/c.png"]
    for name, picture in zip(names, expected, strict=True):
        (tmp_path / "folder" / name).write_bytes(encoded(picture))
    (tmp_path / "folder" / "notes.txt").write_text("not a picture")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name, picture in zip(names, expected, strict=True):
            archive.writestr(name, encoded(picture))
    rows = [{"bytes": encoded(picture), "path": name} for name, picture in zip(names, large, strict=True)]
    pq.write_table(pa.table({"index": [0, 1, 2], "image": rows}), tmp_path / "p.parquet")
    for name in ("folder", "p.zip", "p.parquet"):
        np.testing.assert_array_equal(load_pictures([str(tmp_path / name)]), expected)
    both = load_pictures([f"file://{tmp_path}/p.zip", str(tmp_path / "folder" / "a.png")])
    np.testing.assert_array_equal(both, expected[[0, 1, 2, 0]])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/none: no pictures there"):
        load_pictures([f"{tmp_path}/none"])
    (tmp_path / "torn.png").write_bytes(encoded(scenes(0, 1)[0])[:90])
    with pytest.raises(UserError, match=r"torn\.png cannot be read"):
        load_pictures([str(tmp_path)])
    (tmp_path / "torn.png").write_bytes(encoded(scenes(0, 1)[0, :32]))
    with pytest.raises(UserError, match=r"torn\.png is 64 x 32; square"):
        load_pictures([str(tmp_path)])
    pq.write_table(pa.table({"splats": [1]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: no column image.*its columns: splats"):
        load_pictures([str(tmp_path / "p.parquet")])
    empty = pa.table({"image": pa.array([], pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    pq.write_table(empty, tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: no pictures there"):
        load_pictures([str(tmp_path / "p.parquet")])
    (tmp_path / "p.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"p\.parquet is not an intact Parquet file"):
        load_pictures([str(tmp_path / "p.parquet")])
    (tmp_path / "p.zip").write_bytes(b"PK and no more")
    with pytest.raises(UserError, match=r"p\.zip is not an intact zip"):
        load_pictures([str(tmp_path / "p.zip")])


def test_the_command_refuses_too_few_pictures_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cat.png").write_bytes(encoded(scenes(0, 1)[0]))
    out = tmp_path / "report.json"
    code = run(
        Options,
        main,
        ["--generated", str(tmp_path), "--photos", str(tmp_path), "--out", str(out), "--device", "cpu"],
    )
    assert code == 1
    assert capsys.readouterr().err.startswith("error: 0 pictures are too few for a covariance of 1,280 features")
    assert not out.exists()
    arguments = [
        "--generated",
        str(tmp_path),
        "--photos",
        str(tmp_path),
        "--out",
        str(out),
        "--device",
        "toaster",
    ]
    assert run(Options, main, arguments) == 1
    assert capsys.readouterr().err.startswith("error: --device toaster cannot be used")
