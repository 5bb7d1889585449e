"""Photographs as tests write them to every kind of place, and what a prepared set then holds."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.photographs import prepared

CATS = Path(__file__).parent / "photos"
FILES = sorted(CATS.glob("*.jpg"))
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(out: Path | str) -> list[dict]:
    fs, root = fsspec.core.url_to_fs(str(out))
    record = json.loads(fs.cat_file(f"{root}/{prepared.RECORD}"))
    tables = [pq.read_table(io.BytesIO(fs.cat_file(f"{root}/{file['name']}"))) for file in record["files"]]
    return [row for table in tables for row in table.to_pylist()]


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def write_parquet(path: Path, names: list[Path]) -> Path:
    column = pa.array([{"bytes": name.read_bytes(), "path": name.name} for name in names], PICTURE)
    pq.write_table(pa.table({"label": list(range(len(names))), "image": column}), path)
    return path


def write_zip(path: Path, names: list[Path]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.write(name, f"some/folder/{name.name}")
        archive.writestr("__MACOSX/._face.jpg", "metadata of macOS")
    return path
