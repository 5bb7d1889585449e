"""Contents that break the plan are found although record and checksum agree with them."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image
from test_verification import SPLATS, verdict

from jobs import render
from models.splats import PARAMETERS, random_field
from pipeline.datasets import plan_file
from pipeline.datasets.plan import GenerationPlan, Plan
from pipeline.datasets.splat_dataset import SplatDataset, to_table, write_table
from pipeline.execution.production import commit
from pipeline.inspection.verification import verify_shard
from pipeline.rendering.renderer import render_shard
from pipeline.storage.store import Store


def rewrite(out: Path, change) -> None:
    """Replace shard 1 by what `change` makes of it, with a record that agrees: what only reading the contents finds."""
    store = Store(str(out))
    plan = plan_file.load(store, Plan)
    shard = plan.shard(1)
    with store.create(plan.data(shard)) as output:
        change(output.file)
    commit(store, shard, plan.data(shard), output.bytes, output.sha256, started=0.0, device="cpu")


def test_contents_that_break_the_plan_are_found_although_the_checksum_agrees(few_splats, tmp_path):
    plan = plan_file.load(Store(str(few_splats)), GenerationPlan)
    indices = plan.shard(1).indices
    generator = torch.Generator().manual_seed(0)
    good = random_field(generator, len(indices), 8, 8, 16)

    def judge(field: torch.Tensor, table=lambda table: table) -> str:
        out = tmp_path / "out"
        shutil.copytree(few_splats, out, dirs_exist_ok=True)
        rewrite(out, lambda file: write_table(table(to_table(plan, indices, field.half().numpy())), file))
        return verdict(out)

    assert judge(good) == ""
    for name, value in [("u", 1.6), ("kx", 0.2), ("rho", -0.96), ("d", 4.1)]:
        field = good.clone()
        field[2, 7, 3, 5, PARAMETERS.index(name)] = value
        assert f"{name} out of its bounds" in judge(field)
    for value in (float("nan"), float("inf")):
        field = good.clone()
        field[0, 0, 0, 0, PARAMETERS.index("r")] = value
        assert "not finite" in judge(field)
    assert "has 3 rows, not 4" in judge(good, lambda table: table.slice(0, 3))
    assert "has 8 rows, not 4" in judge(good, lambda table: pa.concat_tables([table, table]))
    assert "has no column 'splats' (fixed_size_list" in judge(good, lambda table: table.select(["index"]))
    shifted = pa.array([i + 1 for i in indices], pa.int64())
    assert "'index' is not what the plan says" in judge(good, lambda table: table.set_column(0, "index", shifted))


def test_pictures_that_break_the_plan_are_found_although_the_checksum_agrees(few_pictures, tmp_path):
    original = pq.read_table(few_pictures["parquet"] / SPLATS)

    def encoded(*size: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, "webp")
        return buffer.getvalue()

    def judge(data: bytes | None, path: str = "00000003.webp") -> str:
        out = tmp_path / "out"
        shutil.copytree(few_pictures["parquet"], out, dirs_exist_ok=True)
        rows = original.to_pylist()
        rows[1]["image"] = {"bytes": data, "path": path}
        rewrite(out, lambda file: pq.write_table(pa.Table.from_pylist(rows, original.schema), file))
        return verdict(out)

    sound = encoded(16, 16)
    assert judge(sound) == ""
    assert "00000003.webp: is 20x16, not 16x16" in judge(encoded(16, 20))
    assert "does not decode" in judge(sound[:-8])
    assert "is no webp picture" in judge(b"")
    assert "is no webp picture" in judge(None)
    assert "picture 3 (../../cat.webp) where 3 should be" in judge(sound, "../../cat.webp")


def flip(path: Path, at: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def pages(path: Path) -> list[tifffile.TiffPage]:
    with tifffile.TiffFile(path) as tiff:
        return list(tiff.pages)


TILE = "shard-00000/00000002_files/10/1_0.png"
DAMAGE = {  # of each format: which file, what happens to it, what is said
    "webdataset": [
        (
            WEB := "data/shard-00000.tar",
            lambda path: flip(path, members(path)[2].offset_data + 500),
            "3.png: does not d",
        ),
        (WEB, lambda path: os.truncate(path, members(path)[3].offset), "00000003.png's .json is not there"),
    ],
    "tiff": [
        (
            TIFF := "shard-00000/00000002.tif",
            lambda path: flip(path, pages(path)[-1].dataoffsets[0] + 500),
            "cannot be",
        ),
        (TIFF, lambda path: os.truncate(path, pages(path)[-1].offset), "its pages are [(600, 600, 3)], not ["),
    ],
    "dzi": [
        (TILE, lambda path: flip(path, 500), "1_0.png: does not decode"),
        (TILE, Path.unlink, "1_0.png is not there"),
        (TILE, lambda path: shutil.copy(path.with_name("0_0.png"), path), "1_0.png: is 512x512, not 88x512"),
        ("shard-00000/00000002.dzi", lambda path: os.truncate(path, 150), "does not name the size 600x600"),
    ],
}


@pytest.mark.parametrize("format", DAMAGE)
def test_damaged_members_and_tiles_are_found_although_the_checksum_agrees(few_splats, tmp_path, format):
    source, clean, out = SplatDataset.open(str(few_splats)), tmp_path / "clean", tmp_path / "out"
    chosen = {"indices": "2-3", "size": "40"} if format == "webdataset" else {"indices": "2", "size": "600"}
    plan = render.make_plan(render.Options(splats=str(few_splats), out="", format=format, **chosen), source)
    shard = plan.shard(0)
    plan_file.claim(Store(str(clean)), plan)
    render_shard(source, plan, shard, Store(str(clean)), "cpu", 1)
    for name, damage, said in [("plan.json", Path.touch, ""), *DAMAGE[format]]:
        shutil.copytree(clean, out, dirs_exist_ok=True)
        damage(out / name)
        store = Store(str(out))
        measured = store.measure(plan.files(shard, store.sizes(plan.data(shard))))
        commit(store, shard, plan.data(shard), *measured, started=0.0, device="cpu")
        found = " ".join(finding.reason for finding in verify_shard(store, plan, shard).findings)
        assert said in found if said else not found
