"""The prepared set on disk: every usable photograph once, square, at native resolution and at 64 pixels.

    OUT/photos-00000.parquet ...   id, source, heldout, side, image64, image; about 64 MB a file
    OUT/unreadable.txt             every file that could not be used, with its reason
    OUT/prepared.json              written last: counts, fingerprint, options, files; without it there is no set

`id` is the sha256 of the crop's pixels. `image` has side x side pixels, and `image64` is exactly `image` reduced by
area. Both are PNG.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import UserError
from pipeline.storage.image_column import PICTURE, schema
from pipeline.storage.remote import reading
from pipeline.storage.store import Store

FORMAT = 1
RECORD, UNREADABLE = "prepared.json", "unreadable.txt"
FILE_BYTES, GROUP_BYTES, GROUP_ROWS = 64 << 20, 16 << 20, 256
_FILE_NAME = re.compile(r"photos-\d{5,}\.parquet")

SCHEMA = schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "heldout": pa.bool_(),
        "side": pa.int32(),
        "image64": PICTURE,
        "image": PICTURE,
    }
)


def is_ours(name: str) -> bool:
    """Whether a set, finished or not, has files of that name."""
    return name in (RECORD, UNREADABLE) or _FILE_NAME.fullmatch(name) is not None


def read_record(fs: Any, root: str, url: str) -> dict[str, Any] | None:
    """What prepared.json says, None where there is none; UserError if it is of a later format or cannot be read."""
    try:
        with reading(fs, f"{url}/{RECORD}"):
            data = fs.cat_file(f"{root}/{RECORD}")
        record = json.loads(data)
        version = record["format"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{url}/{RECORD} is damaged ({error}); delete it and run python -m jobs.prepare again"
        ) from error
    if version > FORMAT:
        raise UserError(f"{url} has format {version}; this version reads up to {FORMAT}: use a newer splatcats")
    return record


def fingerprint(ids: Iterable[bytes]) -> str:
    """What tells a set, by the ids of its photographs in any order, from sets of others."""
    return hashlib.sha256(b"".join(sorted(ids))).hexdigest()


def finished(fs: Any, root: str, url: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the whole set that stands at `root`, None where there is none or files of it are missing.

    Raises UserError, naming what differs, where the set was made from other photographs or with other options.
    """
    record = read_record(fs, root, url)
    if record is None:
        return None
    made = record["options"]
    remedy = "give another --out, or delete it to start over"
    for name in ("photos", "box", "cap"):
        if made.get(name) != options[name]:
            raise UserError(f"{url} was made with --{name} {made.get(name)}, not {options[name]}; {remedy}")
    if made.get("listing") != options["listing"]:
        raise UserError(f"the files at {' '.join(options['photos'])} have changed since {url} was made; {remedy}")
    with reading(fs, url):
        sizes = {details["name"]: details["size"] for details in fs.ls(root, detail=True)}
    sizes = {name.rsplit("/", 1)[-1]: size for name, size in sizes.items()}
    return record if all(sizes.get(file["name"]) == file["bytes"] for file in record["files"]) else None


class Writer:
    """Rows of SCHEMA to numbered Parquet files of about FILE_BYTES; one file at a time is held in memory."""

    def __init__(self, store: Store):
        self.store = store
        self.files: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._group_bytes = self._file_rows = 0
        self._sink: Any = None

    def add(self, row: dict[str, Any]) -> None:
        """Append one row; writes a file whenever enough has come together."""
        self._rows.append(row)
        self._group_bytes += len(row["image64"]["bytes"]) + len(row["image"]["bytes"])
        if len(self._rows) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._end_group()
            if self._sink.tell() >= FILE_BYTES:
                self._end_file()

    def close(self) -> None:
        """Write what is left, and delete what an unfinished run with more files has left behind."""
        if self._rows:
            self._end_group()
        if self._sink:
            self._end_file()
        written = {file["name"] for file in self.files}
        for name in self.store.entries():
            if _FILE_NAME.fullmatch(name) and name not in written:
                self.store.remove(name)

    def _end_group(self) -> None:
        if not self._sink:
            self._sink = pa.BufferOutputStream()
            # The pictures are compressed already.
            self._parquet = pq.ParquetWriter(self._sink, SCHEMA, compression="none", use_dictionary=False)
        self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._file_rows += len(self._rows)
        self._rows, self._group_bytes = [], 0

    def _end_file(self) -> None:
        self._parquet.close()
        data = self._sink.getvalue()
        name = f"photos-{len(self.files):05d}.parquet"
        self.store.write(name, data)
        self.files.append({"name": name, "rows": self._file_rows, "bytes": data.size})
        self._sink, self._file_rows = None, 0
