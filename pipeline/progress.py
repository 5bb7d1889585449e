"""How far a run is, as one line of plain text."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


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
        eta = _duration(left / rate) if rate else "-" if left else "0s"
        return (
            f"shards {self.done:,}/{self.shards:,}  {self.pictures:,} pictures  "
            f"{rate:,.{0 if rate >= 100 else 1}f}/s  eta {eta}  retried {self.retried}  failed {len(self.failures)}"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 5400 else f"{seconds / 3600:.1f}h"
