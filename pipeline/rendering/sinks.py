"""Pictures out: the formats in which a shard of pictures is written, one function each, in one table."""

from __future__ import annotations

import hashlib
import io
import itertools
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import UserError
from pipeline.datasets.plan import file_name
from pipeline.rendering import pyramids
from pipeline.rendering.drawing import PIXELS_HELD
from pipeline.rendering.encoders import ENCODINGS, Picture, describe, require
from pipeline.rendering.press import Press, Written
from pipeline.storage import image_column

ROW_GROUP = 16
ROW_GROUP_BYTES = 1 << 26
COLUMN_TYPES = {int: pa.int64(), str: pa.string(), dict: image_column.PICTURE}
WHOLE_PICTURES = ("png", "jpeg", "webp", "avif", "raw", "gif")


def write_files(press: Press) -> Written:
    """One file a picture, in a folder a shard. Files are written where they are encoded, side by side."""
    extension = press.plan.extension

    def save(picture: Picture, encoded: bytes) -> tuple[str, bytes]:
        name = f"{press.shard.name}/{file_name(picture.index, extension)}"
        press.store.write(name, encoded, durable=False)
        return name, encoded

    digest, size, names = hashlib.sha256(), 0, []
    for name, encoded in press.pictures(save):
        digest.update(encoded)
        size += len(encoded)
        names.append(name)
    press.store.flush(names)
    return Written(press.shard.name, size, digest.hexdigest())


def write_webdataset(press: Press) -> Written:
    """One tar file a shard: for each picture its file and, as .json, what is known of it; reproducible bytes."""
    name, extension = press.plan.data(press.shard), press.plan.extension
    with (
        press.store.create(name) as output,
        tarfile.open(fileobj=output.file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for picture, encoded in press.pictures(lambda picture, encoded: (picture, encoded)):
            for kind, data in ((extension, encoded), ("json", describe(picture.facts).encode())):
                # Owner, group, rights and time are the constants of TarInfo: nothing of this machine or hour.
                member = tarfile.TarInfo(file_name(picture.index, kind))
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return Written(name, output.bytes, output.sha256)


def write_parquet(press: Press) -> Written:
    """One Parquet file a shard: `index`, `image`, which Hugging Face's `datasets` reads as a picture, and the facts."""
    name, extension = press.plan.data(press.shard), press.plan.extension

    def row(picture: Picture, encoded: bytes) -> dict[str, Any]:
        image = {"bytes": encoded, "path": file_name(picture.index, extension)}
        return {"index": picture.index, "image": image, **picture.facts}

    made = press.pictures(row)
    first = next(made)
    # The same are known of all pictures of a plan.
    schema = image_column.schema({column: COLUMN_TYPES[type(value)] for column, value in first.items()})
    with (
        press.store.create(name) as output,
        pq.ParquetWriter(
            output.file,
            schema,
            compression="none",  # the pictures are compressed
            use_dictionary=[column for column in schema.names if column not in ("index", "image")],
            write_statistics=["index"],
            write_page_checksum=True,
        ) as writer,
    ):
        rows: list[dict[str, Any]] = []
        size = 0
        for entry in itertools.chain([first], made):
            rows.append(entry)
            size += len(entry["image"]["bytes"])
            if len(rows) == ROW_GROUP or size > ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return Written(name, output.bytes, output.sha256)


@dataclass(frozen=True)
class Format:
    """How a shard of pictures is written."""

    write: Callable[[Press], Written]
    encodings: tuple[str, ...]  # the first is the default
    contents: str  # of a shard, for the card
    data_files: str = ""  # where Hugging Face's tools find the data
    most_pixels: int = PIXELS_HELD
    largest_side: int = 1 << 28
    pictures_per_shard: int = 4096

    @property
    def tiled(self) -> bool:
        """Whether pictures are drawn and written piece by piece, at several sizes."""
        return self.pictures_per_shard == 1


_TILED: dict[str, Any] = {
    "most_pixels": pyramids.LARGEST_SIDE**2,
    "largest_side": pyramids.LARGEST_SIDE,
    "pictures_per_shard": 1,
}

FORMATS = {
    "files": Format(write_files, WHOLE_PICTURES, "folders, one picture a file, named by its index"),
    "webdataset": Format(
        write_webdataset, WHOLE_PICTURES, "tar files, for each picture its file and a .json", "data/*.tar"
    ),
    "parquet": Format(
        write_parquet,
        WHOLE_PICTURES,
        "Parquet files with the columns `index`, `image` (encoded bytes and a file name) and what is known of it",
        "data/*.parquet",
    ),
    "tiff": Format(pyramids.write_tiff, ("deflate",), "tiled pyramids, one BigTIFF file a picture", **_TILED),
    "dzi": Format(
        pyramids.write_dzi,
        ("png", "jpeg", "webp", "avif"),
        "Deep Zoom pyramids, a .dzi and a folder of tiles a picture",
        **_TILED,
    ),
}


def choose(
    output: str | None, encoding: str | None, width: int, height: int, frames: int, fps: float
) -> tuple[str, str]:
    """The names of format and encoding for pictures of so many frames, where they are not given.

    `fps`: frames a second, 0 for pictures that stand still. UserError where they do not go together, cannot hold such
    pictures, or need what is not installed.
    """
    pixels, moving = width * height * frames, fps > 0
    if output is None and pixels > FORMATS["files"].most_pixels and not moving:
        output = "dzi" if encoding in FORMATS["dzi"].encodings else "tiff"
    output = output or "files"
    format = FORMATS[output]
    fitting = [name for name in format.encodings if (ENCODINGS[name].fastest if moving else ENCODINGS[name].still)]
    if not fitting:
        raise UserError(f"--format {output} holds no animations: give files, webdataset or parquet")
    encoding = encoding or fitting[0]
    if encoding not in fitting:
        what = "animations" if moving else "pictures"
        raise UserError(f"--encoding {encoding}: {what} in the format {output} are {', '.join(fitting)}")
    require(encoding)
    if output == "tiff":
        pyramids.require_tiff()
    if moving and fps > (fastest := ENCODINGS[encoding].fastest):
        faster = [f"or --encoding {name}" for name in fitting if ENCODINGS[name].fastest >= fps]
        remedy = " ".join(["give fewer", *faster])
        raise UserError(f"--fps {fps:g}: {encoding} shows at most {fastest} frames a second; {remedy}")
    largest = format.largest_side if format.tiled else ENCODINGS[encoding].largest_side
    if max(width, height) > largest:
        what = f"tiled pictures (--format {output}) have" if format.tiled else f"{encoding} takes"
        more = "" if format.tiled or moving else f"; with --format dzi up to {pyramids.LARGEST_SIDE:,}"
        raise UserError(f"--size {width}x{height}: {what} sides of 1 to {largest:,} pixels{more}")
    if pixels > format.most_pixels:
        what = f"{frames} frames of this size are" if frames > 1 else "this is"
        remedy = "choose fewer or smaller ones" if frames > 1 else "use --format tiff or dzi"
        raise UserError(
            f"--size {width}x{height}: {what} more than the {format.most_pixels / 1e6:,.0f} megapixels that are held in"
            f" memory at once: {remedy}"
        )
    return output, encoding
