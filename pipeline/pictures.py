"""Pictures to be measured: from folders, zips and Parquet files at any fsspec URL to one uint8 array."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def load_pictures(urls: Sequence[str], side: int = 64) -> np.ndarray:
    """Read every picture at `urls` as uint8 [n, side, side, 3], larger ones reduced by area.

    A URL is a folder (searched through for pictures, zips and Parquet), a .zip of pictures, a Parquet file
    with a column `image: struct<bytes, path>`, or one picture. The order is that of `urls`, then of names,
    then of rows. Raises UserError, naming the file, where there are no pictures, one cannot be decoded, or
    one is not square or is smaller than `side`.
    """
    pictures = [decode(data, name, side) for url in urls for name, data in _encoded(url)]
    if not pictures:
        raise UserError(f"{', '.join(urls)}: no pictures there")
    return np.stack(pictures)


def decode(data: bytes, name: str, side: int) -> np.ndarray:
    """One encoded picture as uint8 RGB [side, side, 3]; UserError naming it as `load_pictures` says."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be read as a picture: {error}") from error
    if picture.width != picture.height or picture.width < side:
        raise UserError(f"{name} is {picture.width} x {picture.height}; square pictures of {side} or more are needed")
    pixels = np.asarray(picture)
    return pixels if picture.width == side else reduce_area(pixels, side)


def reduce_area(pixels: np.ndarray, side: int) -> np.ndarray:
    """A square uint8 picture [Y, Y, 3] as [side, side, 3] by averaging over areas, rounded once; any ratio.

    Pillow's box filter rounds between its two passes, which brightens pictures by up to a level.
    """
    source = len(pixels)
    low, high = np.arange(side)[:, None] * source, np.arange(1, side + 1)[:, None] * source
    start = np.arange(source) * side
    overlap = (np.minimum(start + side, high) - np.maximum(start, low)).clip(min=0).astype(np.float64)
    sums = np.tensordot(overlap, np.tensordot(overlap, pixels.astype(np.float64), (1, 0)), (1, 1))
    return np.floor(sums.transpose(1, 0, 2) / source**2 + 0.5).astype(np.uint8)


def _encoded(url: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every picture below a URL; UserError where there is none."""
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from error
    known = (*IMAGE_SUFFIXES, ".zip", ".parquet")
    # On a file, find() gives the file itself, and nothing where nothing is.
    paths = [path for path in sorted(fs.find(root)) if path.lower().endswith(known)]
    if not paths:
        raise UserError(f"{url}: no pictures there; looked for {' '.join(known)}")
    for path in paths:
        with fs.open(path, "rb") as file:
            suffix = PurePosixPath(path).suffix.lower()
            if suffix == ".zip":
                yield from _members(file, path)
            elif suffix == ".parquet":
                yield from _rows(file, path)
            else:
                yield path, file.read()


def _members(file: io.IOBase, path: str) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = sorted(name for name in archive.namelist() if name.lower().endswith(IMAGE_SUFFIXES))
            if not names:
                raise UserError(f"{path}: no pictures there; looked for {' '.join(IMAGE_SUFFIXES)}")
            for name in names:
                yield f"{path}/{name}", archive.read(name)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} is not an intact zip: {error}") from error


def _rows(file: io.IOBase, path: str) -> Iterator[tuple[str, bytes]]:
    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        kind = parquet.schema_arrow.field("image").type if "image" in names else pa.null()
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise UserError(f"{path}: no column image: struct<bytes, path>; its columns: {', '.join(names)}")
        row = 0
        for part in parquet.iter_batches(256, columns=["image.bytes"]):
            for value in part.column("image").to_pylist():
                yield f"{path} row {row}", (value or {}).get("bytes") or b""
                row += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not an intact Parquet file: {error}") from error
