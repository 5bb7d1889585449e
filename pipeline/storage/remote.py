"""What object stores fail to answer, as one kind of error, never to be taken for the contents of a file."""

from __future__ import annotations

import contextlib
import errno
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, BinaryIO, cast

from fsspec.archive import AbstractArchiveFileSystem
from fsspec.implementations.local import LocalFileSystem

from models.errors import UserError, one_line

_ERRNO = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST, PermissionError: errno.EACCES}
# What a file system that unpacks an archive raises for a damaged, encrypted or unknown member: contents, not a store.
_UNPACKING = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def is_local(fs: Any) -> bool:
    """Whether an fsspec file system is that of this machine, whose errors are an operating system's already."""
    return isinstance(fs, LocalFileSystem)


@contextlib.contextmanager
def answering(fs: Any, where: str) -> Iterator[None]:
    """Raise what the clients of object stores raise, which has many types, as one: OSError(errno, reason, where)."""
    try:
        yield
    except Exception as error:
        if is_local(fs) or (isinstance(fs, AbstractArchiveFileSystem) and isinstance(error, _UNPACKING)):
            raise
        number = next((n for kind, n in _ERRNO.items() if isinstance(error, kind)), errno.EIO)
        reason = one_line(getattr(error, "strerror", None) or error)
        raise OSError(number, reason, where) from None


@contextlib.contextmanager
def reading(fs: Any, where: str) -> Iterator[None]:
    """As `answering`, but a UserError, for code that takes an OSError for damage: zipfile does, and so do decoders.

    What is not there stays a FileNotFoundError.
    """
    try:
        with answering(fs, where):
            yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_local(fs):
            raise
        raise UserError(f"{where} cannot be read: {error.strerror}") from None


def open_within(
    within: Callable[[Any, str], AbstractContextManager[None]], fs: Any, path: str, where: str, **options: Any
) -> BinaryIO:
    """Open the file at `path` of `fs` for reading at random positions, every access `within(fs, where)`."""
    with within(fs, where):
        file = fs.open(path, "rb", **options)
    return file if is_local(fs) else cast(BinaryIO, _RemoteFile(file, partial(within, fs, where)))


class _RemoteFile(io.RawIOBase):
    def __init__(self, file: Any, within: Callable[[], AbstractContextManager[None]]) -> None:
        self._file, self._within = file, within

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._within():
            return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
