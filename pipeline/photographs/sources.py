"""Photographs where they lie: folders, zips and Parquet files at any fsspec URL, read one record at a time.

A damaged file is one thing, a store that fails to answer another: the first is a record that cannot be read, the second
a UserError wherever it shows, since nobody knows what the file holds.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import UserError, one_line
from pipeline.storage.remote import is_local, open_within, reading

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"])
PARQUET_SUFFIXES = frozenset([".parquet", ".pq"])
COLUMN = "image"
# No photograph is this large; a zip member that claims to be would have to be unpacked into memory.
FILE_BYTES_MAX = 512 << 20
# Parquet is read in small steps, since a file may be a single row group of many gigabytes.
BATCH_ROWS, BUFFER_BYTES = 16, 4 << 20


@dataclass(frozen=True)
class Record:
    """One photograph to be read: where it comes from, and a call that returns its encoded bytes or raises.

    A UserError says that the store failed to answer, anything else what is wrong with this photograph.
    """

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Place:
    """What one URL holds: its files (name, path, bytes) in order, records to expect, ignored files by suffix."""

    url: str
    fs: Any
    files: tuple[tuple[str, str, int], ...]
    num_records: int = 0
    ignored: Counter[str] = field(default_factory=Counter)

    def digest(self) -> str:
        """A fingerprint of the files' names and sizes below the URL, which notices added and removed files."""
        lines = [f"{name.removeprefix(self.url)} {size}" for name, _, size in self.files]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def locate(url: str) -> tuple[Any, str]:
    """The fsspec filesystem and path of a URL or local path; UserError for one that cannot be opened."""
    try:
        return fsspec.core.url_to_fs(url)
    except Exception as error:  # each remote filesystem has its own kinds, and a zip:// one reads the archive here
        raise UserError(f"{url} cannot be opened: {one_line(error)}") from error


def survey(url: str) -> Place:
    """Look at a folder, .zip, Parquet or picture file without reading its pictures.

    Raises UserError where nothing is there, nothing there is a photograph, or Parquet lacks an `image` column. A
    damaged zip or Parquet file counts as one record, which `records` then reports like any unreadable picture.
    """
    fs, path = locate(url)
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        raise UserError(f"{url}: nothing is there") from error
    except Exception as error:  # each remote filesystem has its own kinds: no credentials, no such host, ...
        raise UserError(f"{url} cannot be reached: {one_line(error)}") from error

    ignored: Counter[str] = Counter()
    if info["type"] == "directory":
        files = []
        with reading(fs, url):
            listing = sorted(_walk(fs, path))
        for found, size in listing:
            relative = found.removeprefix(path).lstrip("/")
            if _is_picture(found) or _suffix(found) in PARQUET_SUFFIXES:
                files.append((f"{url.rstrip('/')}/{relative}", found, size))
            else:
                ignored[_suffix(found)] += 1
    elif _suffix(path) in IMAGE_SUFFIXES | PARQUET_SUFFIXES | {".zip"}:
        files = [(url, path, info["size"] or 0)]
    else:
        raise UserError(f"{url} is neither a folder nor a .zip, .parquet or picture file")

    count = 0
    for name, file, _ in files:
        if _suffix(file) == ".zip":
            members, others = _zip_members(fs, file, name)
            count, ignored = count + members, ignored + others
        elif _suffix(file) in PARQUET_SUFFIXES:
            count += _parquet_rows(fs, file, name)
        else:
            count += 1
    if not count:
        only = f" (only {', '.join(f'{n} {s}' for s, n in ignored.most_common(5))})" if ignored else ""
        raise UserError(f"{url}: no photographs{only}; known: {' '.join(sorted(IMAGE_SUFFIXES))}")
    return Place(url, fs, tuple(files), count, ignored)


def records(place: Place) -> Iterator[Record]:
    """Every photograph of a place, in an order that depends on names alone; never raises for a bad file.

    Plain files are read by `Record.read`, wherever that is called; members and rows are read here, one by one.
    """
    for name, path, size in place.files:
        if _suffix(path) == ".zip":
            yield from _zip_records(place.fs, path, name)
        elif _suffix(path) in PARQUET_SUFFIXES:
            yield from _parquet_records(place.fs, path, name)
        elif size > FILE_BYTES_MAX:
            yield _broken(name, _too_large(size))
        else:
            yield Record(name, partial(_read, place.fs, path, name))


def _read(fs: Any, path: str, name: str) -> bytes:
    with reading(fs, name):
        return fs.cat_file(path)


def _walk(fs: Any, folder: str) -> Iterator[tuple[str, int]]:
    """Every file below a folder, and its size."""
    if not is_local(fs):
        for path, details in fs.find(folder, detail=True).items():
            yield path, details["size"] or 0
        return
    # Its `find` leaves out folders that may not be read without a word, and links to folders; here they are read, or
    # an error.
    for details in fs.ls(folder, detail=True):
        path = details["name"]
        if not os.path.isdir(path):
            yield path, details["size"]
        elif details["islink"] and Path(folder).resolve().is_relative_to(Path(path).resolve()):
            raise UserError(f"{path} is a link to a folder that it is in: remove it")
        else:
            yield from _walk(fs, path)


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _is_picture(path: str) -> bool:
    # macOS leaves a ._NAME.jpg of metadata beside every NAME.jpg in the archives and on the disks it writes.
    return _suffix(path) in IMAGE_SUFFIXES and not PurePosixPath(path).name.startswith("._")


def _broken(name: str, error: Exception) -> Record:
    def fail() -> NoReturn:
        raise error

    return Record(name, fail)


def _too_large(size: int) -> ValueError:
    return ValueError(f"{size / 1e6:,.0f} MB is too large for a photograph")


def _zip_members(fs: Any, path: str, name: str) -> tuple[int, Counter[str]]:
    """The number of pictures in a zip (1 for a damaged one), and its other members by suffix."""
    try:
        with open_within(reading, fs, path, name) as handle, zipfile.ZipFile(handle) as archive:
            names = [member.filename for member in archive.infolist() if not member.is_dir()]
    except UserError:
        raise
    except Exception:  # as below; `records` says what
        return 1, Counter()
    others = Counter(_suffix(name) for name in names if not _is_picture(name))
    return len(names) - others.total(), others


def _zip_records(fs: Any, path: str, name: str) -> Iterator[Record]:
    try:
        with open_within(reading, fs, path, name) as handle, zipfile.ZipFile(handle) as archive:
            members = [member for member in archive.infolist() if _is_picture(member.filename)]
            for member in sorted(members, key=lambda member: member.filename):
                yield _zip_record(archive, member, f"{name}/{member.filename}")
    except UserError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged bytes
        yield _broken(name, error)


def _zip_record(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Record:
    if member.file_size > FILE_BYTES_MAX:
        return _broken(name, _too_large(member.file_size))
    try:
        data = archive.read(member)
    except UserError:
        raise
    except Exception as error:  # damaged, encrypted, an unknown compression: zipfile raises a different kind each
        return _broken(name, error)
    return Record(name, lambda: data)


def _parquet_rows(fs: Any, path: str, name: str) -> int:
    """The number of rows of a Parquet file (1 for a damaged one), after checking that it has pictures."""
    try:
        with open_within(reading, fs, path, name) as handle:
            parquet = pq.ParquetFile(handle)
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowException, OSError):
        return 1
    place = schema.get_field_index(COLUMN)  # negative also where there are several
    if place < 0:
        raise UserError(f"{name} has no column {COLUMN!r}; its columns: {', '.join(schema.names)}")
    kind = schema.field(place).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"{name}: column {COLUMN!r} is {kind}; needed: struct<bytes: binary, path: string> or binary")
    return rows


def _parquet_records(fs: Any, path: str, name: str) -> Iterator[Record]:
    row = 0
    try:
        with open_within(reading, fs, path, name) as handle:
            parquet = pq.ParquetFile(handle, buffer_size=BUFFER_BYTES)
            for batch in parquet.iter_batches(BATCH_ROWS, columns=[COLUMN]):
                for value in batch.column(0).to_pylist():
                    yield _parquet_record(value, f"{name}#{row}")
                    row += 1
    except (pa.ArrowException, OSError) as error:
        yield _broken(f"{name} from row {row} on" if row else name, error)


def _parquet_record(value: Any, name: str) -> Record:
    data, path = (value["bytes"], value.get("path")) if isinstance(value, dict) else (value, None)
    name = f"{name} ({path})" if path else name
    if data is None:
        return _broken(name, ValueError("the row holds no bytes"))
    return Record(name, lambda: data)
