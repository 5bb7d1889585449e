"""Local files that appear whole or not at all: a locked temporary file, flushed to the disk, then renamed.

A writer holds a lock (flock) on its temporary file from beginning to end, and the system drops the lock when the
process dies, however it dies. So a temporary file that somebody else can lock is what a killed run left behind, and
one that cannot be locked belongs to a run at work, which nobody disturbs. An age limit would have to be longer than
the slowest write, and would leave the remains of a killed run for as long.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

# Tar archives are written in pieces of 16 KiB, and less.
BUFFER_BYTES = 1 << 20
_SPOOL_PREFIX = "splatcats-spool-"
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file of that name, without its folder, is one that `create` has not finished."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


@contextlib.contextmanager
def create(target: Path, *, exclusive: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which is at `target`, whole and on the disk, once the block has ended; not if it raises.

    `exclusive`: FileExistsError if something is at `target` by then, which otherwise is replaced. On file systems
    without hard links exclusive is not atomic. Not `durable`, it is on the disk only once `flush` was called.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, file = _open_temporary(target.parent, f".{target.name}.", ".tmp")
    try:
        with file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            # Renamed while the lock is held, so that nobody takes it for an orphan in between.
            _place(temporary, target, exclusive)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(target)  # a full disk does not say which
        raise
    if durable:
        _flush_one(target.parent)


@contextlib.contextmanager
def spool(suffix: str) -> Iterator[BinaryIO]:
    """A file in this machine's temporary folder on its way elsewhere, gone with the block; its name ends with `suffix`.

    What killed processes left there goes when the next one begins.
    """
    folder = Path(tempfile.gettempdir())
    for path in folder.glob(f"{_SPOOL_PREFIX}*"):
        remove_orphan(path)
    path, file = _open_temporary(folder, _SPOOL_PREFIX, suffix, mode=0o600)
    try:
        with file:
            yield file
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
            error.filename = str(path)
        raise
    finally:
        path.unlink(missing_ok=True)


def flush(targets: Iterable[Path]) -> None:
    """Have files, and their names in their folders, on the disk: for many at once far faster than one by one."""
    folders = set()
    for target in targets:
        _flush_one(target)
        folders.add(target.parent)
    for folder in folders:
        _flush_one(folder)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_orphan(path: Path) -> bool:
    """Remove a temporary file unless its writer lives; whether it was removed."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:  # locked, gone, another user's, or on a file system without locks: not known to be an orphan
        return False
    return True


def _open_temporary(folder: Path, prefix: str, suffix: str, mode: int = 0o666) -> tuple[Path, BinaryIO]:
    while True:
        temporary = folder / f"{prefix}{secrets.token_hex(4)}{suffix}"
        opener = partial(os.open, mode=mode)
        file = open(temporary, "xb", buffering=BUFFER_BYTES, opener=opener)  # noqa: SIM115, the caller closes it
        with contextlib.suppress(OSError):  # on a file system without locks orphans stay
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # taken for an orphan in the instant before it was locked


def _place(temporary: Path, target: Path, exclusive: bool) -> None:
    if exclusive:
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise
        except OSError:  # no hard links here
            if target.exists():
                raise FileExistsError(f"{target} is there already") from None
        else:
            temporary.unlink()
            return
    os.replace(temporary, target)
