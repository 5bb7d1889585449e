import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs import cli, generate, render
from models.rasterize import rasterize, to_uint8
from pipeline import rendering
from pipeline.dataset import SplatDataset
from pipeline.indices import Indices
from pipeline.rendering import draw, render_shard
from pipeline.store import Store

ROOT = Path(__file__).parents[1]


def command(splats: Path, out: Path, *more: str) -> int:
    options = ["--splats", str(splats), "--out", str(out), "--size", "48", *more]
    return cli.run(render.Options, render.main, options)


def files(root: Path) -> dict[str, bytes]:
    """Everything but the records, which hold times."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.parent.name != "_stats" and path.name not in ("summary.json", "README.md")
    }


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.fixture(scope="module")
def splats(ray_cluster, tiny_weights, tmp_path_factory) -> Path:
    """20 pictures in 5 shards."""
    out = tmp_path_factory.mktemp("source") / "splats"
    options = ["--out", str(out), "--weights", str(tiny_weights), "--count", "20", "--steps", "1", "--shard-size", "4"]
    assert cli.run(generate.Options, generate.main, options) == 0
    return out


@pytest.fixture(scope="module")
def pictures(splats, tmp_path_factory) -> Path:
    """All of them as PNG files."""
    out = tmp_path_factory.mktemp("pictures") / "png"
    assert command(splats, out) == 0
    return out


def test_one_picture_a_file_and_each_is_what_its_splats_say(splats, pictures):
    names = {f"shard-{i // 8:05d}/{i:08d}.png" for i in range(20)}
    assert files(pictures).keys() == names | {"plan.json"}
    for indices, fields in SplatDataset(str(splats)).read(Indices.parse("0-19")):
        for index, field in zip(indices, fields, strict=True):
            expected = to_uint8(rasterize(field[None], 48, 48))[0].numpy()
            picture = Image.open(pictures / f"shard-{index // 8:05d}/{index:08d}.png")
            np.testing.assert_allclose(np.asarray(picture).astype(int), expected.astype(int), atol=1)
            assert f"picture {index} of seed 0, kernel wavelet" in picture.text["Description"]
    assert sum(record.rows for record in Store(str(pictures)).committed()) == 20


def test_parquet_holds_the_same_pictures_and_says_that_they_are_pictures(splats, pictures, tmp_path):
    assert command(splats, tmp_path / "out", "--format", "parquet", "--workers", "1") == 0
    table = pq.read_table(tmp_path / "out/data")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == list(range(20))
    for row in rows:
        name = row["image"]["path"]
        assert name == f"{row['index']:08d}.png"
        assert row["image"]["bytes"] == (pictures / f"shard-{row['index'] // 8:05d}" / name).read_bytes()


@pytest.mark.parametrize(("encoding", "extension"), [("jpeg", "jpg"), ("webp", "webp")])
def test_lossy_encodings_stay_near_the_picture(splats, pictures, tmp_path, encoding, extension):
    assert command(splats, tmp_path / "out", "--encoding", encoding, "--quality", "95", "--indices", "3") == 0
    encoded = (tmp_path / f"out/shard-00000/00000003.{extension}").read_bytes()
    assert psnr(pixels(encoded), pixels((pictures / "shard-00000/00000003.png").read_bytes())) > 30


def test_chosen_pictures_any_shape_kernel_and_view(splats, tmp_path):
    options = ["--size", "40x24", "--kernel", "sharp", "--view", "patches", "--indices", "2-5,19", "--shard-size", "2"]
    assert command(splats, tmp_path / "out", *options) == 0
    assert files(tmp_path / "out").keys() == {
        "plan.json",
        *(f"shard-0000{shard}/{index:08d}.png" for shard, index in [(0, 2), (0, 3), (1, 4), (1, 5), (2, 19)]),
    }
    ((_, field),) = SplatDataset(str(splats)).read(Indices.parse("19"))
    expected = to_uint8(rasterize(field, 24, 40, kernel="sharp", view="patches"))[0].numpy()
    drawn = pixels((tmp_path / "out/shard-00002/00000019.png").read_bytes())
    np.testing.assert_allclose(drawn.astype(int), expected.astype(int), atol=1)


def test_bands_draw_the_same_picture(splats, monkeypatch):
    ((_, field),) = SplatDataset(str(splats)).read(Indices.parse("1"))
    options = render.Options(splats=str(splats), out="", size="70x53")
    plan = render.make_plan(options, SplatDataset(str(splats)).plan)
    with torch.inference_mode():
        whole = draw(field, plan)
        monkeypatch.setattr(rendering, "PIXELS_AT_ONCE", 70 * 10)
        bands = draw(field, plan)
    np.testing.assert_allclose(bands.astype(int), whole.astype(int), atol=1)


def test_run_again_after_losses_gives_the_same_bytes(splats, pictures, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(pictures, out)
    whole = files(out)
    (out / "shard-00000/00000003.png").write_bytes(b"")
    (out / "shard-00001/00000009.png").unlink()
    (out / "_stats/shard-00002.json").unlink()
    (out / "shard-00002/.00000018.png.0123abcd.tmp").write_bytes(b"torn")
    assert command(splats, out, "--workers", "3") == 0
    assert files(out) == whole


def test_rendering_never_imports_the_model(ray_cluster, splats, tmp_path):
    source = SplatDataset(str(splats))
    plan = render.make_plan(render.Options(splats=str(splats), out="", size="16", indices="0"), source.plan)

    def probe() -> list[str]:
        render_shard(source, plan, plan.shard(0), Store(str(tmp_path / "out")), "cpu")
        return list(sys.modules)

    # Other variables of the environment make Ray start a process of its own for the task.
    task = ray_cluster.remote(num_cpus=0.5, runtime_env={"env_vars": {"FRESH_PROCESS": "1"}})(probe)
    loaded = ray_cluster.get(task.remote())
    assert "models.rasterize" in loaded
    assert not {"models.denoiser", "models.transformer", "models.checkpoint"} & set(loaded)
    code = "import sys, jobs.render; sys.exit('models.denoiser' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_incomplete_splats_are_refused_except_for_what_is_there(splats, tmp_path, capsys):
    broken = tmp_path / "splats"
    shutil.copytree(splats, broken)
    (broken / "_stats/shard-00002.json").unlink()
    assert command(broken, tmp_path / "out") == 1
    assert "1 of 5 shards needed are missing, the first is shard-00002" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command(broken, tmp_path / "out", "--indices", "0-7,12-19") == 0


def test_a_damaged_shard_is_named_once_and_the_others_are_drawn(splats, tmp_path, capsys):
    broken, shard = tmp_path / "splats", "data/shard-00001.parquet"
    shutil.copytree(splats, broken)
    data = (broken / shard).read_bytes()
    (broken / shard).write_bytes(data[:20_000] + bytes([data[20_000] ^ 1]) + data[20_001:])
    assert command(broken, tmp_path / "out", "--shard-size", "4") == 1
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert f"1 of 5 shards failed, 4 are done (shard-00001: {broken / shard} is damaged" in output.err
    assert "retried 0  failed 1" in output.out
    assert len(list((tmp_path / "out").glob("*/*.png"))) >= 16


def test_parquet_without_the_columns_is_named(splats, tmp_path, capsys):
    broken = tmp_path / "splats"
    shutil.copytree(splats, broken)
    path = broken / "data/shard-00000.parquet"
    pq.write_table(pa.table({"cat": [1] * 4}), path)
    record = json.loads((broken / "_stats/shard-00000.json").read_text())
    (broken / "_stats/shard-00000.json").write_text(json.dumps({**record, "bytes": path.stat().st_size}))
    assert command(broken, tmp_path / "out") == 1
    assert "no column 'index' (int64) and 'splats'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0"], "--size 0"),
        (["--size", "-5"], "--size"),
        (["--size", "10x"], "--size 10x"),
        (["--size", "16384", "--encoding", "webp"], "webp takes sides of 1 to 16383 pixels"),
        (["--kernel", "round"], "unknown kernel 'round'; known: gaussian, sharp, wavelet"),
        (["--view", "top"], "unknown view 'top'; known: blobs, colour, depth, patches"),
        (["--format", "zip"], "unknown format 'zip'; known: files, parquet"),
        (["--encoding", "gif"], "unknown encoding 'gif'; known: jpeg, png, webp"),
        (["--quality", "0"], "--quality 0"),
        (["--indices", "0-20"], "there is no picture 20"),
        (["--indices", "3-1"], "run backwards"),
        (["--splats", "/dev/null"], "not a dataset of splats"),
        (["--splats", "no/where"], "does not exist: not a dataset of splats"),
        (["--out", "/dev/null/x"], "cannot write to /dev/null/x"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(splats, tmp_path, capsys, options, message):
    assert command(splats, tmp_path / "out", *options) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_size_in_the_same_place_is_refused(splats, pictures, capsys):
    before = files(pictures)
    assert command(splats, pictures, "--size", "64") == 1
    assert "width is 48 there, 64 here" in capsys.readouterr().err
    assert command(splats, splats) == 1
    assert "holds a dataset of 'splats'" in capsys.readouterr().err
    assert files(pictures) == before


def test_plans_of_the_same_options_are_equal_whatever_the_workers(splats):
    options = render.Options(splats=str(splats), out="", indices="0,1,2-3")
    source = SplatDataset(str(splats)).plan
    assert render.make_plan(options, source) == render.make_plan(
        dataclasses.replace(options, workers=5, indices="3,2,0-1"), source
    )
