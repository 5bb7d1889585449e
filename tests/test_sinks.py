"""Every format, read by the tools of its own world; all of them hold the same pixels."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import render
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.inspection.verification import verify_shard
from pipeline.rendering.renderer import render_shard
from pipeline.storage.store import Store

INDICES = "2-5,19"


def drawn(splats: Path, out: Path, **options: str) -> Path:
    """All shards of a rendering, one after the other, in this process."""
    source = SplatDataset.open(str(splats))
    options = {"size": "40", "indices": INDICES, "shard_size": 3, **options}
    plan = render.make_plan(render.Options(splats=str(splats), out=str(out), **options), source)
    for shard in plan.shards():
        render_shard(source, plan, shard, Store(str(out)), "cpu", 3)
        assert not verify_shard(Store(str(out)), plan, shard).findings
    return out


@pytest.fixture(scope="module")
def pixels(splats, tmp_path_factory) -> dict[int, np.ndarray]:
    """The pictures as PNG files show them."""
    out = drawn(splats, tmp_path_factory.mktemp("files"))
    return {int(path.stem): np.asarray(Image.open(path)) for path in sorted(out.glob("shard-*/*.png"))}


def test_files_are_the_chosen_pictures(pixels):
    assert list(pixels) == [2, 3, 4, 5, 19]
    assert len({picture.tobytes() for picture in pixels.values()}) == 5


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_webdataset_reads_the_tars(splats, pixels, tmp_path, encoding):
    import webdataset

    out = drawn(splats, tmp_path, format="webdataset", encoding=encoding)
    shards = sorted(map(str, out.glob("data/*.tar")))
    assert len(shards) == 2
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert [int(sample["__key__"]) for sample in samples] == list(pixels)
    for sample in samples:
        index, picture = int(sample["__key__"]), sample[{"png": "png", "raw": "ppm"}[encoding]]
        assert np.array_equal(picture, pixels[index])
        assert (sample["json"]["index"], sample["json"]["seed"], sample["json"]["width"]) == (index, 0, 40)
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_datasets_shows_the_parquet_files_as_pictures(splats, pixels, tmp_path, encoding, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    out = drawn(splats, tmp_path / "out", format="parquet", encoding=encoding)
    read = datasets.load_dataset(
        "parquet", data_files=str(out / "data/*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read["index"][:] == list(pixels)
    source = SplatDataset.open(str(splats)).plan.fingerprint()
    for row in read:
        assert isinstance(row["image"], Image.Image)
        assert np.array_equal(np.asarray(row["image"]), pixels[row["index"]])
        assert (row["seed"], row["kernel"], row["width"], row["height"], row["source"]) == (
            0,
            "wavelet",
            40,
            40,
            source,
        )
    extension = {"png": "png", "raw": "ppm"}[encoding]
    paths = [image["path"] for image in pq.read_table(out / "data")["image"].to_pylist()]
    assert paths == [f"{index:08d}.{extension}" for index in pixels]


@pytest.mark.parametrize("format", ["files", "webdataset", "parquet", "tiff", "dzi"])
def test_whenever_it_is_made_and_with_however_many_encoders_the_bytes_are_the_same(splats, tmp_path, format):
    def shard_bytes(out: Path, encoders: int) -> dict[str, bytes]:
        source = SplatDataset.open(str(splats))
        options = render.Options(splats=str(splats), out=str(out), size="40", indices="2-4", format=format)
        plan = render.make_plan(options, source)
        render_shard(source, plan, plan.shard(0), Store(str(out)), "cpu", encoders)
        assert not verify_shard(Store(str(out)), plan, plan.shard(0)).findings
        return {
            str(path.relative_to(out)): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file() and path.parent.name != "_stats"
        }

    clean = shard_bytes(tmp_path / "clean", 1)
    assert clean
    # A run that was killed in the middle left torn files; the next one is an hour later, with other encoders.
    again = tmp_path / "again"
    for name, data in clean.items():
        (again / name).parent.mkdir(parents=True, exist_ok=True)
        (again / name).write_bytes(data[: len(data) // 2])
        os.utime(again / name, (0, 0))
    assert shard_bytes(again, 3) == clean


@pytest.mark.parametrize(
    "motion", [{"zoom": "0.5,0.5,4", "frames": 3, "indices": "2"}, {"animate": "rollout", "indices": "3"}]
)
def test_animations_and_what_is_known_of_them_go_into_every_format_of_whole_pictures(splats, tmp_path, motion):
    paths = {}
    for format, glob in (("files", "shard-*/*"), ("webdataset", "data/*"), ("parquet", "data/*")):
        (paths[format],) = drawn(splats, tmp_path / format, format=format, **motion).glob(glob)
    film = Image.open(paths["files"])
    assert film.n_frames == 3
    facts = json.loads(film.getexif()[270])
    assert facts["motion"] == motion.get("animate", "zoom")
    assert {"neighbourhood", "fit", "path" if "zoom" in motion else "times"} < facts.keys()
    with tarfile.open(paths["webdataset"]) as tar:
        picture, known = (tar.extractfile(member).read() for member in tar)
    (row,) = pq.read_table(paths["parquet"]).to_pylist()
    assert picture == row.pop("image")["bytes"] == paths["files"].read_bytes()
    assert json.loads(known) == row == facts
