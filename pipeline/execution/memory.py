"""Memory that a process keeps for its next large tensors."""

from __future__ import annotations

import ctypes

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = (1 << 31) - 1


def keep_freed() -> None:
    """Let the C library keep what this process frees for what it allocates next. Nothing where it is not glibc.

    Else glibc asks the system for every tensor above 32 MB anew and gives it back, and the system clears each page that
    is touched: of a convolutional network over a batch that is most of the time. It is for the main thread (others
    have heaps of 64 MB), and for processes that do one kind of work: they keep as much as they ever held at once.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _MOST)
