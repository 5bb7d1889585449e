"""Where the workers of a training run post what the user is to see; an actor of its own, which loads no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray


class Board:
    """Lines that workers post and the driver shows: Ray Train's own log is too loud to read progress in.

    Also the mistake that ended training, since Ray Train's result keeps only what was reported with a checkpoint.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.closed = False
        self.stopped_by: str | None = None
        self.failed_by: str | None = None

    def post(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    def stop(self, mistake: str) -> None:
        """Training ended because of a mistake of the user's."""
        self.stopped_by = mistake

    def mistake(self) -> str | None:
        """What `stop` said, if it was called."""
        return self.stopped_by

    def fail(self, reason: str) -> None:
        """A worker failed, and Ray Train may start it again."""
        self.failed_by = reason
        self.lines.append(f"a worker failed: {reason}")

    def fault(self) -> str | None:
        """What `fail` said last, if it was called."""
        return self.failed_by

    def close(self) -> None:
        """No more lines will come."""
        self.closed = True

    def take(self) -> tuple[list[str], bool]:
        """The lines since the last call, and whether they are the last."""
        lines, self.lines = self.lines, []
        return lines, self.closed


def show(board: Any) -> None:
    """Print the lines of a Board actor as they come, until it is closed."""
    closed = False
    while not closed:
        time.sleep(1.0)
        lines, closed = ray.get(board.take.remote())
        for line in lines:
            print(line, flush=True)


def progress_line(metrics: Mapping[str, float]) -> str:
    """One plain line: where training is, how well and how fast it goes, and how long it will take."""
    terms = "  ".join(
        f"{name} {metrics[name]:.4f}"
        for name in ("loss", "velocity", "perceptual", "detail", "photographs", "detail_photographs", "heldout", "seen")
        if name in metrics
    )
    return (
        f"step {metrics['step']:,.0f}  {terms}  {metrics['pictures_per_second']:,.0f} pictures/s  "
        f"{metrics['minutes']:.1f} min  eta {metrics['eta_minutes']:.1f} min"
    )
