"""The evaluation on sets whose answer is planted, read from real files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from jobs.cli import run
from jobs.evaluate import Options, main
from models.errors import UserError
from models.features import FeatureNetwork, Features
from pipeline.evaluation import as_table, evaluate
from pipeline.pictures import load_pictures


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


def test_pictures_of_any_size_and_place_and_bad_ones_named(tmp_path: Path) -> None:
    expected = scenes(2, 3).clip(1, 254)
    # Rendered pictures may be larger: doubled and perturbed by what an average over 2 x 2 cancels.
    large = expected.repeat(2, axis=1).repeat(2, axis=2)
    large[:, ::2, ::2] += 1
    large[:, 1::2, 1::2] -= 1
    (tmp_path / "shard").mkdir()
    for name, picture in zip("abc", large, strict=True):
        (tmp_path / "shard" / f"{name}.png").write_bytes(encoded(picture))
    (tmp_path / "plan.json").write_text("not a picture")
    np.testing.assert_array_equal(load_pictures([str(tmp_path)]), expected)
    (tmp_path / "shard" / "torn.png").write_bytes(encoded(expected[0])[:90])
    with pytest.raises(UserError, match=r"torn\.png cannot be read"):
        load_pictures([str(tmp_path)])
    with pytest.raises(UserError, match="nothing is there"):
        load_pictures([f"{tmp_path}/none"])


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
