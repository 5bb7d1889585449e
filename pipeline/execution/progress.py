"""How far work is: of a run over shards, as a bar or a line of plain text; of a loop, as a line."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field

TICK_SECONDS = 10.0
BAR_SECONDS = 0.2
BAR_WIDTH = 24


@dataclass
class Progress:
    """How far a run is; `done` and `pictures` include what earlier runs committed."""

    shards: int
    done: int = 0
    pictures: int = 0
    new_shards: int = 0
    new_pictures: int = 0
    total_pictures: int = 0
    retried: int = 0
    running: int = 0
    workers: int = 0
    started: float = field(default_factory=time.monotonic)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, pictures: int) -> None:
        """Count a shard that this run has done."""
        self.done += 1
        self.new_shards += 1
        self.pictures += pictures
        self.new_pictures += pictures

    @property
    def rate(self) -> float:
        """Pictures a second of this run, on average."""
        return self.new_pictures / max(time.monotonic() - self.started, 1e-9)

    def __str__(self) -> str:
        rate, left = self.rate, self.total_pictures - self.pictures
        eta = duration(left / rate) if rate else "-" if left else "0s"
        return (
            f"shards {self.done:,}/{self.shards:,}  {self.pictures:,} pictures  "
            f"{rate:,.{0 if rate >= 100 else 1}f}/s  eta {eta}  retried {self.retried}  failed {len(self.failures)}"
        )


class Console:
    """Shows progress: a bar on stderr where that is a terminal; otherwise a line on stdout every TICK_SECONDS."""

    def __init__(self) -> None:
        self._bar = sys.stderr.isatty()
        self._shown = time.monotonic()

    def show(self, progress: Progress, last: bool) -> None:
        """Show how far things are, if it is time to; the `last` time always, and as a line."""
        now = time.monotonic()
        if not last and now - self._shown < (BAR_SECONDS if self._bar else TICK_SECONDS):
            return
        self._shown = now
        waiting = "" if last or progress.workers else "  waiting for workers to start"
        if self._bar:
            # Carriage return, erase the line: the bar is drawn over itself and leaves nothing behind.
            sys.stderr.write("\r\x1b[K" + ("" if last else bar(progress, waiting)))
            sys.stderr.flush()
        if last or not self._bar:
            print(f"{progress}{waiting}", flush=True)


def bar(progress: Progress, note: str = "") -> str:
    """One line that fits the terminal: a bar, and behind it the numbers."""
    full = BAR_WIDTH * progress.done // max(progress.shards, 1)
    line = f"[{'#' * full}{'.' * (BAR_WIDTH - full)}] {progress}{note}"
    return line[: shutil.get_terminal_size().columns - 1]


class Ticker:
    """Prints a line about every TICK_SECONDS: how many of how many, how fast, how long still."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.begun = self.said = time.monotonic()

    def step(self, done: int, note: str = "") -> None:
        """Say how far things are, if it was not said within the last TICK_SECONDS."""
        now = time.monotonic()
        if done and now - self.said >= TICK_SECONDS:
            self.said = now
            rate = done / (now - self.begun)
            left = duration(max(0, self.total - done) / rate)
            print(f"{self.what}: {done:,} of {self.total:,}, {rate:,.0f}/s, {left} left{note}", flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42s, 14m, 2.5h."""
    if seconds < 90:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 5400 else f"{seconds / 3600:.1f}h"
