"""Work on many cores of one machine: an ordered map over threads, and a source in a thread, in bounded memory."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

# Pillow releases Python's lock, so threads do; beyond this many, one reader cannot feed them.
THREADS = min(16, os.cpu_count() or 1)
WINDOW = 4 * THREADS
_END = object()


def cores() -> int:
    """The CPUs that this process may use at once: those it is bound to, or fewer where its container has a quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(bound, int(quota) // int(period)))  # "max" is no number: there is no quota
    return bound


Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = THREADS, window: int = WINDOW
) -> Iterator[Result]:
    """Map `function` over `items` in threads, results in order, with at most `window` items in memory."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # nothing is waited for once the consumer, or one item, has failed


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """Iterate in one thread of its own, at most `depth` items ahead of the consumer."""
    source = iter(items)
    pool = ThreadPoolExecutor(1)
    try:
        coming = deque(pool.submit(next, source, _END) for _ in range(depth))
        while (item := coming.popleft().result()) is not _END:
            coming.append(pool.submit(next, source, _END))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
