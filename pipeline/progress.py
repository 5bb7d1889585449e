"""How far work is, as one line of plain text: of a run over shards, and of a loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

TICK_SECONDS = 10.0


@dataclass
class Progress:
    """How far a run is; `done` and `pictures` include what earlier runs committed."""

    shards: int
    done: int = 0
    pictures: int = 0
    new_pictures: int = 0
    total_pictures: int = 0
    retried: int = 0
    started: float = field(default_factory=time.monotonic)
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rate = self.new_pictures / max(time.monotonic() - self.started, 1e-9)
        left = self.total_pictures - self.pictures
        eta = duration(left / rate) if rate else "-" if left else "0s"
        return (
            f"shards {self.done:,}/{self.shards:,}  {self.pictures:,} pictures  "
            f"{rate:,.{0 if rate >= 100 else 1}f}/s  eta {eta}  retried {self.retried}  failed {len(self.failures)}"
        )


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
