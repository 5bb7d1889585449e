"""The only door to storage: any fsspec URL, files that appear whole or not at all, commit records, checksums.

A shard counts once its record ROOT/_stats/shard-00042.json is there and names the size of the data that are there.
The record is written last, so a run that is killed anywhere leaves a dataset that the next run completes.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from models.errors import UserError
from pipeline.plan import shard_name

RECORDS = "_stats"
DATA = "data"
_RECORD_NAME = re.compile(r"shard-\d{5,}\.json")
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class Record:
    """The commit record of one shard; `data` is the path of its file, or of its folder of files, below the root."""

    shard: int
    data: str
    rows: int
    first: int
    last: int
    bytes: int
    sha256: str
    seconds: float = 0.0
    host: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: builtins.bytes) -> Record | None:
        """Read a record; None if it is not one, which means the same as no record: the shard is to be done."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None


@dataclass
class Output:
    """A file being written; `bytes` and `sha256` are set once it is whole."""

    file: BinaryIO
    bytes: int = 0
    sha256: str = ""

    def measure(self) -> None:
        """Flush, count and hash what was written. Reads the local file back: Parquet writers want a plain file."""
        self.file.flush()
        with open(self.file.name, "rb") as written:
            self.bytes, self.sha256 = _measure([written])


class Store:
    """A folder at an fsspec URL (local path, s3://..., gs://...); names are relative to it. Can be pickled."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"cannot use {url}: {' '.join(str(error).split())}") from None
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        if protocol == "memory":
            raise UserError(f"cannot use {url}: memory:// lives in one process; use a folder or an object store")
        self._root = root.rstrip("/") or "/"
        self._local = "file" in self._fs.protocol
        # A local path is made absolute here: worker processes may have another working directory.
        self.url = self._root if self._local else self._fs.unstrip_protocol(self._root)

    def path(self, name: str) -> str:
        """The full path of `name`, for messages."""
        return f"{self.url}/{name}" if name else self.url

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def exists(self, name: str) -> bool:
        """Whether the file or folder `name` is there now."""
        self._fs.invalidate_cache()
        return self._fs.exists(self._full(name))

    def read(self, name: str) -> bytes:
        """The contents of a file; FileNotFoundError if it is not there."""
        return self._fs.cat_file(self._full(name))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading at random positions."""
        return self._fs.open(self._full(name), "rb")

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[Output]:
        """A file to write to, which appears as `name` when the block ends, whole; and not at all if it raises.

        Locally: a temporary name in the same folder, flushed to the disk, then renamed. In an object store: a local
        temporary file, then one upload, which such stores make visible at its end only.
        """
        if not self._local:
            with tempfile.NamedTemporaryFile(prefix="splatcats-") as remote:
                output = Output(cast(BinaryIO, remote))
                yield output
                output.measure()
                self._fs.put_file(remote.name, self._full(name))
            return
        target = Path(self._full(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as local:
                output = Output(local)
                yield output
                output.measure()
                os.fsync(local.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file atomically, replacing what was there."""
        with self.create(name) as output:
            output.file.write(data)

    def remove_orphans(self) -> int:
        """Remove temporary files that killed runs left behind; their number. Object stores never have any."""
        if not self._local or not os.path.isdir(self._root):
            return 0
        root = Path(self._root)
        folders = [root, root / DATA, root / RECORDS, *root.glob("shard-*")]
        orphans = [
            entry.path
            for folder in folders
            if folder.is_dir()
            for entry in os.scandir(folder)
            if _TEMPORARY_NAME.fullmatch(entry.name)
        ]
        for orphan in orphans:
            Path(orphan).unlink(missing_ok=True)
        return len(orphans)

    def sizes(self, name: str) -> dict[str, int]:
        """The sizes in bytes of the file `name`, or of all files in the folder `name`, in the order of names."""
        self._fs.invalidate_cache()
        found: dict[str, dict[str, Any]] = self._fs.find(self._full(name), detail=True)
        start = len(self._root) + 1
        return {
            path[start:]: int(found[path]["size"])
            for path in sorted(found)
            if not _TEMPORARY_NAME.fullmatch(path.rpartition("/")[2])
        }

    def entries(self, name: str = "") -> list[str]:
        """The names of the files and folders directly in the folder `name`, sorted; none if it is not there."""
        full = self._full(name)
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(full, detail=False)
        except FileNotFoundError:
            return []
        # An object store may list the folder itself, as an object without contents.
        names = sorted(path.rstrip("/")[len(full) + 1 :] for path in found)
        return [entry for entry in names if entry and not _TEMPORARY_NAME.fullmatch(entry)]

    def remove_folder(self, name: str) -> None:
        """Remove the folder `name` and all that is in it."""
        self._fs.rm(self._full(name), recursive=True)

    def commit(self, record: Record) -> None:
        """Declare a shard done. Its data must be complete; this is the last write of a shard."""
        text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
        self.write(f"{RECORDS}/{shard_name(record.shard)}.json", text.encode())

    def records(self) -> Iterator[Record]:
        """The records that are there, in the order of shards; unreadable ones count as absent."""
        names = [name for name in self.sizes(RECORDS) if _RECORD_NAME.fullmatch(Path(name).name)]
        names.sort(key=lambda name: (len(name), name))
        for start in range(0, len(names), 1000):
            paths = [self._full(name) for name in names[start : start + 1000]]
            texts = self._fs.cat(paths)  # many at once: an object store answers them concurrently
            yield from filter(None, map(Record.parse, (texts[path] for path in paths)))

    def committed(self) -> Iterator[Record]:
        """The records whose data are there with the recorded size. Cheap: lists names, reads no data."""
        listed = self.sizes(DATA)
        for record in self.records():
            size = listed.get(record.data)
            if size is None:
                size = sum(self.sizes(record.data).values())
            if size == record.bytes:
                yield record

    def measure(self, name: str) -> tuple[int, str]:
        """The number of bytes and the SHA-256 of a file, or of a folder's files joined in the order of names."""
        return _measure(map(self.open, self.sizes(name)))

    def verify(self, record: Record) -> None:
        """Read a shard's data whole; UserError that names the path unless bytes and checksum are as recorded."""
        size, sha256 = self.measure(record.data)
        if size != record.bytes:
            raise UserError(damaged(self, record.data, f"it has {size} bytes, its record says {record.bytes}"))
        if sha256 != record.sha256:
            raise UserError(damaged(self, record.data, "its checksum is not the recorded one"))


def _measure(files: Iterable[BinaryIO]) -> tuple[int, str]:
    digest, total = hashlib.sha256(), 0
    for opened in files:
        with opened as file:
            while block := file.read(1 << 20):
                digest.update(block)
                total += len(block)
    return total, digest.hexdigest()


def damaged(store: Store, name: str, reason: str) -> str:
    """The one sentence about a damaged shard and what to do about it."""
    return f"{store.path(name)} is damaged ({reason}): delete it and run the command that made it again"
