"""What is wrong with a dataset is found, named in a line each, removed on demand, and made again, the same bytes."""

import io
import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from conftest import data_bytes, files
from PIL import Image
from test_generation import arguments
from test_generation import command as generate_command

from jobs import cli, render, status, verify
from models.splats import PARAMETERS, random_field
from pipeline.datasets import plan_file
from pipeline.datasets.plan import GenerationPlan, Plan
from pipeline.datasets.splat_dataset import SplatDataset, to_table, write_table
from pipeline.execution.production import commit
from pipeline.inspection.verification import verify_shard
from pipeline.rendering.renderer import render_shard
from pipeline.storage.store import Store

SPLATS = "data/shard-00001.parquet"


def check(url: Path, *options: str) -> int:
    return cli.run(verify.Options, verify.main, [str(url), *options])


def progress(url: Path) -> int:
    return cli.run(status.Options, status.main, [str(url)])


@pytest.fixture(scope="module")
def splats(ray_cluster, tiny_weights, tmp_path_factory) -> Path:
    """14 pictures in 4 shards."""
    out = tmp_path_factory.mktemp("sound") / "splats"
    assert generate_command(*arguments(out, tiny_weights, count=14)) == 0
    return out


@pytest.fixture(scope="module")
def pictures(splats, tmp_path_factory) -> dict[str, Path]:
    """The first 6 of them drawn as WebP in shards of 2, in both forms."""
    root = tmp_path_factory.mktemp("pictures")
    for form in ("files", "parquet"):
        assert cli.run(render.Options, render.main, render_arguments(splats, root / form, form)) == 0
    return {form: root / form for form in ("files", "parquet")}


def render_arguments(splats: Path, out: Path, form: str) -> list[str]:
    options = {"splats": splats, "out": out, "size": 16, "indices": "0-5", "shard-size": 2, "encoding": "webp"}
    return [f"--{name}={value}" for name, value in {**options, "format": form}.items()]


def test_whole_and_sound_datasets_pass(splats, pictures, capsys):
    assert check(splats) == 0
    assert "is whole and sound: 4 shards, 14 pictures" in capsys.readouterr().out
    for form in pictures:
        assert check(pictures[form]) == 0
        assert "3 shards, 6 pictures" in capsys.readouterr().out
    assert progress(splats) == 0
    assert "shards 4/4  14 of 14 pictures" in capsys.readouterr().out


def test_every_kind_of_damage_is_found_once_repaired_and_made_again(splats, tiny_weights, tmp_path, capsys):
    out = tmp_path / "splats"
    shutil.copytree(splats, out)
    whole = files(out)
    data = whole[SPLATS]
    (out / "data/shard-00000.parquet").unlink()
    (out / SPLATS).write_bytes(data[:9000] + bytes([data[9000] ^ 1]) + data[9001:])
    (out / "_stats/shard-00002.json").unlink()
    (out / "data/shard-00003.parquet").write_bytes(whole["data/shard-00003.parquet"][:-1])
    foreign = [out / "data/notes.txt", out / "data/shard-00004.parquet", out / "_stats/shard-00009.json"]
    for path in foreign:
        path.write_bytes(b"mine")
    torn = out / "data/.shard-00001.parquet.0123abcd.tmp"
    torn.write_bytes(b"PAR1")

    assert progress(out) == 1
    assert "3 of 4 shards are missing" in capsys.readouterr().err  # to find the flipped byte takes a reader
    assert check(out, "--repair") == 1
    said = capsys.readouterr()
    findings = [line.removeprefix(f"{out}/") for line in said.out.splitlines() if line.startswith(f"{out}/")]
    assert sorted(findings) == [
        "_stats/shard-00000.json: a record without data",
        "_stats/shard-00009.json: does not belong here",
        "data/notes.txt: does not belong here",
        "data/shard-00001.parquet: its checksum is not the recorded one",
        "data/shard-00002.parquet: data without a record",
        f"data/shard-00003.parquet: has {len(whole['data/shard-00003.parquet']) - 1} bytes, its record says "
        f"{len(whole['data/shard-00003.parquet'])}",
        "data/shard-00004.parquet: does not belong here",
    ]
    assert said.err.count("\n") == 1
    assert "7 findings; removed 4 bad shards" in said.err
    assert not list(out.glob("data/shard-0000[0-3].parquet"))
    assert not list(out.glob("_stats/shard-0000[0-3].json"))
    assert [path.read_bytes() for path in foreign] == [b"mine"] * 3
    assert check(out) == 1
    assert "shard-00000 to shard-00003: missing" in capsys.readouterr().out

    assert generate_command(*arguments(out, tiny_weights, count=14)) == 0
    assert not torn.exists()
    assert check(out) == 1
    for path in foreign:
        path.unlink()
    assert check(out) == 0
    assert files(out) == whole


@pytest.mark.parametrize("form", ["files", "parquet"])
def test_damage_to_pictures_is_found_repaired_and_made_again(splats, pictures, tmp_path, capsys, form):
    out = tmp_path / "out"
    shutil.copytree(pictures[form], out)
    whole = files(out)
    for path in out.glob("**/*"):
        if path.is_file() and "shard-00001" in str(path.relative_to(out)) and path.parent.name != "_stats":
            data = path.read_bytes()
            path.write_bytes(data[:-40] + bytes([data[-40] ^ 255]) + data[-39:])
    (out / "_stats/shard-00002.json").write_text("{")
    stray = out / ("shard-00000/00000001\n(copy).webp" if form == "files" else "data/00000001.webp")
    stray.write_bytes(b"mine")
    capsys.readouterr()
    assert check(out, "--repair") == 1
    said = capsys.readouterr()
    assert f"{stray}: does not belong here".replace("\n", "\\n") in said.out
    assert "shard-00001" in said.out
    assert "checksum is not the recorded one" in said.out
    assert f"{out}/_stats/shard-00002.json: cannot be read as the record of this shard" in said.out
    assert "3 findings; removed 2 bad shards" in said.err
    kept = (out / "_stats/shard-00000.json").stat().st_mtime_ns
    assert cli.run(render.Options, render.main, render_arguments(splats, out, form)) == 0
    assert (out / "_stats/shard-00000.json").stat().st_mtime_ns == kept  # the stray file does not undo its shard
    assert stray.read_bytes() == b"mine"
    stray.unlink()
    assert check(out) == 0
    assert files(out) == whole


def rewrite(out: Path, change) -> None:
    """Replace shard 1 by what `change` makes of it, with a record that agrees: what only reading the contents finds."""
    store = Store(str(out))
    plan = plan_file.load(store, Plan)
    shard = plan.shard(1)
    with store.create(plan.data(shard)) as output:
        change(output.file)
    commit(store, shard, plan.data(shard), output.bytes, output.sha256, started=0.0, device="cpu")


def verdict(out: Path) -> str:
    store = Store(str(out))
    plan = plan_file.load(store, Plan)
    return " ".join(finding.reason for finding in verify_shard(store, plan, plan.shard(1)).findings)


def test_contents_that_break_the_plan_are_found_although_the_checksum_agrees(splats, tmp_path):
    plan = plan_file.load(Store(str(splats)), GenerationPlan)
    indices = plan.shard(1).indices
    generator = torch.Generator().manual_seed(0)
    good = random_field(generator, len(indices), 8, 8, 16)

    def judge(field: torch.Tensor, table=lambda table: table) -> str:
        out = tmp_path / "out"
        shutil.copytree(splats, out, dirs_exist_ok=True)
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


def test_pictures_that_break_the_plan_are_found_although_the_checksum_agrees(pictures, tmp_path):
    original = pq.read_table(pictures["parquet"] / SPLATS)

    def encoded(*size: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, "webp")
        return buffer.getvalue()

    def judge(data: bytes | None, path: str = "00000003.webp") -> str:
        out = tmp_path / "out"
        shutil.copytree(pictures["parquet"], out, dirs_exist_ok=True)
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
def test_damaged_members_and_tiles_are_found_although_the_checksum_agrees(splats, tmp_path, format):
    source, clean, out = SplatDataset(str(splats)), tmp_path / "clean", tmp_path / "out"
    chosen = {"indices": "2-3", "size": "40"} if format == "webdataset" else {"indices": "2", "size": "600"}
    plan = render.make_plan(render.Options(splats=str(splats), out="", format=format, **chosen), source)
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


def test_a_record_cannot_point_outside_its_dataset(splats, tmp_path, capsys):
    out, outside = tmp_path / "splats", tmp_path / "precious.parquet"
    shutil.copytree(splats, out)
    shutil.copy(out / SPLATS, outside)
    path = out / "_stats/shard-00001.json"
    for data in ("../precious.parquet", str(outside), "data/../../precious.parquet", "data/shard-00000.parquet"):
        path.write_text(json.dumps({**json.loads((splats / "_stats/shard-00001.json").read_text()), "data": data}))
        assert progress(out) == 1
        assert "1 of 4 shards are missing" in capsys.readouterr().err
        assert f"data is {data!r} there" in verdict(out)
    assert check(out, "--repair") == 1
    assert outside.read_bytes() == data_bytes(splats)["shard-00001.parquet"]
    assert data_bytes(out).keys() == data_bytes(splats).keys() - {"shard-00001.parquet"}


def test_the_status_of_a_run_at_work_and_of_one_that_stopped(splats, tmp_path, capsys):
    out = tmp_path / "splats"
    shutil.copytree(splats, out)
    (out / "_stats/shard-00003.json").unlink()
    (out / "_stats/failures.json").write_text(json.dumps({"shard-00003": "no cats left", "shard-00001": "in vain"}))

    def finish(ages: list[float]) -> None:
        for shard, age in enumerate(ages):
            path = out / f"_stats/shard-0000{shard}.json"
            times = {"finished": time.time() - age, "seconds": 30.0}
            path.write_text(json.dumps({**json.loads(path.read_text()), **times}))

    os.utime(out / "plan.json", (0, 0))
    finish([50, 30, 10])  # four pictures each 20 s
    assert progress(out) == 1
    said = capsys.readouterr()
    assert "shards 3/4  12 of 14 pictures" in said.out
    assert "0.2/s  eta 10s  missing 1  failed 1" in said.out
    assert "a run seems to be at work: the last sign of one is 10s old" in said.out
    assert "shard-00003 failed: no cats left" in said.out
    assert "in vain" not in said.out
    assert "1 of 4 shards are missing; wait for it" in said.err
    finish([86_440, 86_420, 600])  # the night between is no time of work
    assert progress(out) == 1
    said = capsys.readouterr()
    assert "no run seems to be at work: the last sign of one is 10m old" in said.out
    assert "run the command that made it again" in said.err


@pytest.mark.parametrize("job", [verify, status])
def test_places_without_a_dataset_are_named(tmp_path, capsys, job):
    for place, message in [(tmp_path, "has no plan.json"), (tmp_path / "none", "does not exist")]:
        assert cli.run(job.Options, job.main, [str(place)]) == 1
        assert f"{place} {message}: not a dataset" in capsys.readouterr().err
