"""Memory that a process keeps for its next large tensors."""

from __future__ import annotations

import ctypes

# Of malloc.h. Both at most what an int holds.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, HEAP_BYTES = (1 << 31) - 1, 1 << 30


def keep_freed() -> None:
    """Let the C library keep what is freed, up to 2 GB, for what is allocated next. Nothing where it is not glibc.

    Else glibc asks the system for every tensor above 32 MB anew and gives it back, and the system clears each page that
    is touched: of a convolutional network over a batch that is most of the time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, HEAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
