"""Decoding on every core of one machine: an ordered map over threads in bounded memory, and its progress line."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# Pillow releases Python's lock, so threads do; beyond this many, one reader cannot feed them.
THREADS = min(16, os.cpu_count() or 1)
WINDOW = 4 * THREADS
PROGRESS_SECONDS = 10.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map `function` over `items` in threads, results in order, with at most WINDOW items in memory."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= WINDOW:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Progress:
    """A line about every ten seconds: how many of how many, how fast, how long still."""

    def __init__(self, what: str, total: int):
        self.what, self.total = what, total
        self.begun = self.said = time.monotonic()

    def step(self, done: int, note: str = "") -> None:
        """Say how far things are, if it was not said within the last ten seconds."""
        now = time.monotonic()
        if done and now - self.said >= PROGRESS_SECONDS:
            self.said = now
            rate = done / (now - self.begun)
            left = max(0, self.total - done) / rate
            print(
                f"{self.what}: {done:,} of {self.total:,}, {rate:,.0f}/s, {left:,.0f} s left{note}",
                flush=True,
            )
