"""The only door to storage: a folder at any fsspec URL, files that appear whole or not at all, checksums."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec

from models.errors import UserError, one_line
from pipeline.storage import atomic
from pipeline.storage.remote import answering, is_local, open_within


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
            self.bytes, self.sha256 = measured([written])


class Store:
    """A folder at an fsspec URL (local path, s3://..., gs://...); names are relative to it. Can be pickled, and forked.

    Whatever a remote store answers other than success is raised as an OSError that says what and where.
    """

    def __init__(self, url: str) -> None:
        if not url:
            raise UserError("an empty text is no place: give a folder or URL")
        try:
            self._opened, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"cannot use {url}: {one_line(error)}") from None
        self._given, self._process = url, os.getpid()
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        if protocol == "memory":
            raise UserError(f"cannot use {url}: memory:// lives in one process; use a folder or an object store")
        self._local = is_local(self._fs)
        self._root = root.rstrip("/")
        if not self._root:
            raise UserError(f"cannot use {url}: name a folder in it")
        # A local path is made absolute here: worker processes may have another working directory.
        self.url = self._root if self._local else self._fs.unstrip_protocol(self._root)

    @property
    def _fs(self) -> Any:
        # The connections of most file systems do not survive a fork, which PyTorch's DataLoader makes, say.
        if self._process != os.getpid():
            self._opened, self._process = fsspec.core.url_to_fs(self._given)[0], os.getpid()
        return self._opened

    def path(self, name: str) -> str:
        """The full path of `name`, for messages."""
        return f"{self.url}/{name}" if name else self.url

    def _full(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{name!r} leads out of {self.url}: it is refused")
        return f"{self._root}/{name}" if name else self._root

    def _answering(self, name: str) -> AbstractContextManager[None]:
        return answering(self._fs, self.path(name))

    def exists(self, name: str) -> bool:
        """Whether the file or folder `name` is there now."""
        with self._answering(name):
            self._fs.invalidate_cache()
            try:
                self._fs.info(self._full(name))  # `exists` of some file systems is False where they fail to answer
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def read(self, name: str) -> bytes:
        """The contents of a file; FileNotFoundError if it is not there."""
        with self._answering(name):
            return self._fs.cat_file(self._full(name))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of files, those left out that are not there. An object store is asked for many at once."""
        found = self._fs.cat_ranges([self._full(name) for name in names], None, None, on_error="return")
        there: dict[str, bytes] = {}
        for name, contents in zip(names, found, strict=True):
            if not isinstance(contents, Exception):
                there[name] = contents
            elif not isinstance(contents, FileNotFoundError):
                with self._answering(name):
                    raise contents
        return there

    def open(self, name: str, *, buffered: bool = True) -> BinaryIO:
        """Open a file for reading at random positions. Not buffered, a remote one is asked for what is read alone."""
        options = {} if buffered else {"cache_type": "none"}
        return open_within(answering, self._fs, self._full(name), self.path(name), **options)

    def modified(self, name: str) -> float:
        """When a file was last written, in seconds since 1970, by the clock of the store."""
        with self._answering(name):
            changed: datetime = self._fs.modified(self._full(name))
        return changed.timestamp()

    def entries(self, name: str = "") -> list[str]:
        """The names of the files and folders directly in the folder `name`, sorted; none if it is not there.

        Temporary files of this project are left out.
        """
        full = self._full(name)
        try:
            with self._answering(name):
                self._fs.invalidate_cache()
                found = self._fs.ls(full, detail=False)
        except FileNotFoundError:
            return []
        # An object store may list the folder itself, as an object without contents.
        names = sorted(path.rstrip("/")[len(full) + 1 :] for path in found)
        return [entry for entry in names if entry and not atomic.is_temporary(entry)]

    @contextlib.contextmanager
    def create(self, name: str, *, exclusive: bool = False, durable: bool = True) -> Iterator[Output]:
        """A file to write to, which appears as `name` when the block ends, whole; and not at all if it raises.

        Locally: a temporary name in the same folder, flushed to the disk, then renamed. In an object store: a local
        temporary file, then one upload, which such stores make visible at its end only. `exclusive`: FileExistsError
        if `name` is there by then; the last writer wins where the store cannot tell. Not `durable`, a local file is
        on the disk only once `flush` was called.
        """
        if self._local:
            with atomic.create(Path(self._full(name)), exclusive=exclusive, durable=durable) as local:
                output = Output(local)
                yield output
                output.measure()
            return
        # Its suffix tells the store what it is, and that tells browsers.
        with atomic.spool(PurePosixPath(name).suffix) as remote:
            output = Output(remote)
            yield output
            output.measure()
            with self._answering(name):
                try:
                    self._fs.put_file(remote.name, self._full(name), **({"mode": "create"} if exclusive else {}))
                except Exception as error:
                    if not exclusive or "not implemented" not in str(error).lower():
                        raise
                    self._fs.put_file(remote.name, self._full(name))

    def write(self, name: str, data: bytes, *, exclusive: bool = False, durable: bool = True) -> None:
        """Write a whole file atomically, replacing what was there; FileExistsError if that must not be."""
        with self.create(name, exclusive=exclusive, durable=durable) as output:
            output.file.write(data)

    def flush(self, names: Iterable[str]) -> None:
        """Have the files that were written not `durable` on the disk."""
        if self._local:
            atomic.flush(Path(self._full(name)) for name in names)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError), self._answering(name):
            self._fs.rm_file(self._full(name))

    def remove_orphans(self) -> int:
        """Remove temporary files that killed runs left behind, not those of runs at work; their number.

        Object stores never have any.
        """
        if not self._local:
            return 0
        walk = os.walk(self._root)
        temporary = [Path(folder, name) for folder, _, files in walk for name in files if atomic.is_temporary(name)]
        return sum(map(atomic.remove_orphan, temporary))

    def sizes(self, name: str) -> dict[str, int]:
        """The sizes in bytes of the file `name`, or of all files in the folder `name`, in the order of names."""
        with self._answering(name):
            self._fs.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._fs.find(self._full(name), detail=True)
        start = len(self._root) + 1
        return {
            path[start:]: int(found[path]["size"])
            for path in sorted(found)
            if not atomic.is_temporary(path.rpartition("/")[2])
        }

    def remove_folder(self, name: str) -> None:
        """Remove the folder `name` and all that is in it."""
        full = self._full(name)
        with self._answering(name):
            if self._local or not glob.has_magic(full):
                self._fs.rm(full, recursive=True)
            else:  # a remote file system would take it for a pattern, of other folders
                for path in self._fs.find(full):
                    self._fs.rm_file(path)

    def measure(self, names: Iterable[str]) -> tuple[int, str]:
        """The number of bytes and the SHA-256 of files, joined in the order given. OSError if one is not there."""
        return measured(map(self.open, names))


def measured(files: Iterable[BinaryIO]) -> tuple[int, str]:
    """The number of bytes and the SHA-256 of open files, joined in the order given; each is closed."""
    digest, total = hashlib.sha256(), 0
    for opened in files:
        with opened as file:
            while block := file.read(1 << 20):
                digest.update(block)
                total += len(block)
    return total, digest.hexdigest()


@contextlib.contextmanager
def using(store: Store) -> Iterator[None]:
    """Within the block an OSError becomes a UserError: the place cannot be used, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot use {store.url}: {error.strerror or error}") from None


def occupied(store: Store, names: Sequence[str], lack: str) -> UserError:
    """What to raise where a store holds files of these names and `lack`, like " but no plan.json"."""
    shown = ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
    return UserError(f"{store.url} holds {shown}{lack}: give a new or empty place as --out")
