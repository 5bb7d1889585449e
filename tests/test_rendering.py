"""Splats to pictures on Ray: whole runs, what they write, and what they do about faults."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import files
from pictures import pixels
from PIL import Image
from processes import is_caught, kill_session, wait_for_session_end

from jobs import cli, render
from models.rasterize import rasterize, to_uint8
from pipeline.datasets import records
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.rendering.renderer import render_shard
from pipeline.storage.store import Store

ROOT = Path(__file__).parents[1]


def command(splats: Path, out: Path, *more: str) -> int:
    options = ["--splats", str(splats), "--out", str(out), "--size", "48", *more]
    return cli.run(render.Options, render.main, options)


@pytest.fixture(scope="module")
def pictures(splats, tmp_path_factory) -> Path:
    """All of them as PNG files."""
    out = tmp_path_factory.mktemp("pictures") / "png"
    assert command(splats, out) == 0
    return out


def test_one_picture_a_file_and_each_is_what_its_splats_say(splats, pictures):
    names = {f"shard-{i // 8:05d}/{i:08d}.png" for i in range(20)}
    assert files(pictures).keys() == names | {"plan.json"}
    for indices, fields in SplatDataset.open(str(splats)).read(Indices.parse("0-19")):
        for index, field in zip(indices, fields, strict=True):
            expected = to_uint8(rasterize(field[None], 48, 48))[0].numpy()
            picture = Image.open(pictures / f"shard-{index // 8:05d}/{index:08d}.png")
            np.testing.assert_allclose(np.asarray(picture).astype(int), expected.astype(int), atol=1)
            assert picture.mode == "RGB"
            facts = json.loads(picture.text["Description"])
            assert facts["source"] == SplatDataset.open(str(splats)).plan.fingerprint()
            assert {name: facts[name] for name in ("index", "seed", "kernel", "width", "height")} == {
                "index": index,
                "seed": 0,
                "kernel": "wavelet",
                "width": 48,
                "height": 48,
            }
    assert sum(record.rows for record in records.committed(Store(str(pictures)))) == 20


def test_chosen_pictures_any_shape_kernel_and_view(splats, tmp_path):
    options = [
        "--size",
        "40x24",
        "--fit",
        "stretch",
        "--kernel",
        "sharp",
        "--view",
        "patches",
        "--indices",
        "2-5,19",
        "--shard-size",
        "2",
    ]
    assert command(splats, tmp_path / "out", *options) == 0
    assert files(tmp_path / "out").keys() == {
        "plan.json",
        *(f"shard-0000{shard}/{index:08d}.png" for shard, index in [(0, 2), (0, 3), (1, 4), (1, 5), (2, 19)]),
    }
    ((_, field),) = SplatDataset.open(str(splats)).read(Indices.parse("19"))
    expected = to_uint8(rasterize(field, 24, 40, kernel="sharp", view="patches"))[0].numpy()
    drawn = pixels((tmp_path / "out/shard-00002/00000019.png").read_bytes())
    np.testing.assert_allclose(drawn.astype(int), expected.astype(int), atol=1)


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


WHOLE_PICTURES = ["--size", "256", "--shard-size", "4"]
TILED = ["--size", "1100", "--indices", "0-4"]


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("files", WHOLE_PICTURES),
        pytest.param("webdataset", WHOLE_PICTURES, marks=pytest.mark.slow),
        pytest.param("parquet", WHOLE_PICTURES, marks=pytest.mark.slow),
        pytest.param("tiff", TILED, marks=pytest.mark.slow),
        pytest.param("dzi", TILED, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
def test_a_run_killed_in_the_middle_and_run_again_gives_the_same_bytes(splats, tmp_path, format, options):
    """SIGKILL to the command, its Ray and its workers, once a shard is committed and another is being written."""
    out, options = tmp_path / "killed", [*options, "--format", format]
    line = [sys.executable, "-m", "jobs.render", "--splats", str(splats), "--out", str(out), *options]
    process = subprocess.Popen(line, cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not (committed(out) and unfinished(out) and is_caught(process.pid, lambda: bool(unfinished(out)))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        kill_session(process.pid)
        process.wait()
    wait_for_session_end(process.pid)
    kept = {name: (out / "_stats" / f"{name}.json").read_bytes() for name in committed(out)}
    assert unfinished(out)

    clean = tmp_path / "clean"
    assert command(splats, out, *options) == command(splats, clean, *options) == 0
    assert files(out) == files(clean)
    assert {name: (out / "_stats" / f"{name}.json").read_bytes() for name in kept} == kept
    records_of = [[(r.shard, r.sha256) for r in records.committed(Store(str(place)))] for place in (out, clean)]
    assert records_of[0] == records_of[1]


def committed(out: Path) -> set[str]:
    """The shards that have records."""
    return {path.stem for path in out.glob("_stats/shard-*.json")}


def unfinished(out: Path) -> set[str]:
    """The shards of which there is something, whole files or temporary ones, and no record."""
    found = {re.search(r"shard-[0-9]{5}", str(path.relative_to(out))) for path in out.rglob("*") if path.is_file()}
    return {match[0] for match in found if match} - committed(out)


def test_rendering_never_imports_the_model(ray_cluster, splats, tmp_path):
    source = SplatDataset.open(str(splats))
    plan = render.make_plan(render.Options(splats=str(splats), out="", size="16", indices="0"), source)

    def probe() -> list[str]:
        render_shard(source, plan, plan.shard(0), Store(str(tmp_path / "out")), "cpu", 1)
        return list(sys.modules)

    # Other variables of the environment make Ray start a process of its own for the task.
    task = ray_cluster.remote(num_cpus=0.5, runtime_env={"env_vars": {"FRESH_PROCESS": "1"}})(probe)
    loaded = ray_cluster.get(task.remote())
    assert "models.rasterize" in loaded
    assert not {"models.denoiser", "models.transformer", "models.checkpoint"} & set(loaded)
    code = "import sys, jobs.render; sys.exit('models.denoiser' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


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


def test_another_size_in_the_same_place_is_refused(splats, pictures, capsys):
    before = files(pictures)
    assert command(splats, pictures, "--size", "64") == 1
    assert "width is 48 there, 64 here" in capsys.readouterr().err
    assert command(splats, splats) == 1
    assert "holds a dataset of 'splats'" in capsys.readouterr().err
    assert files(pictures) == before


def test_the_last_lines_say_what_was_made_where_and_what_bounds(splats, tmp_path, capsys):
    assert command(splats, tmp_path / "out", "--indices", "2-3") == 0
    *_, made, last = capsys.readouterr().out.splitlines()
    assert made.startswith("2 pictures of ")
    assert made.endswith(f"from {tmp_path}/out/shard-00000/00000002.png on")
    assert re.fullmatch(r"drawing .* s \(\d+% busy\), encoding .* s \(\d+% busy\): \w+ bounds", last)
    assert command(splats, tmp_path / "film", "--indices", "2-4", "--animate", "pictures") == 0
    assert "1 film of 3 frames of " in capsys.readouterr().out


def test_a_region_shows_that_part_of_the_picture_at_its_own_shape(splats, tmp_path):
    assert command(splats, tmp_path / "whole", "--size", "256", "--indices", "3") == 0
    part = ["--size", "128", "--region", "0.25,0.5,0.75,0.75", "--indices", "3"]
    assert command(splats, tmp_path / "part", *part) == 0
    whole, drawn = (
        pixels((tmp_path / place / "shard-00000/00000003.png").read_bytes()).astype(int) for place in ("whole", "part")
    )
    assert drawn.shape == (64, 128, 3)
    np.testing.assert_allclose(drawn, whole[128:192, 64:192], atol=1)
