"""The one scheduler: shards over workers in a bounded window, with retries, progress and a stall guard.

The work on a shard must be repeatable: a shard may run more than once (a worker dies after its commit, say), and the
second run writes the same bytes to the same names. Nothing here knows Ray: `workers` does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from models.errors import UserError
from pipeline.datasets.plan import Shard
from pipeline.execution.progress import Progress

WAIT_SECONDS = 0.2  # signals are answered between waits
SHOWN = 5  # shards that a message names


class Result(Protocol):
    """What work on a shard gives: a commit record, say."""

    @property
    def rows(self) -> int:
        """How many pictures it is about."""


@dataclass(frozen=True)
class Ended:
    """How one attempt ended: with a result, or with a reason. `shard` is None for a worker that could not start."""

    shard: Shard | None
    result: Result | None = None
    reason: str = ""
    lost: bool = False  # the process is gone, with its machine perhaps: it may have been none of the shard's doing
    final: bool = False  # the reason is the user's to mend: trying again is pointless


class Workers(Protocol):
    """Where shards are worked on."""

    def room(self, wanted: int) -> int:
        """How many shards may be submitted now, where `wanted` more are to be done; grows and shrinks what is held."""

    def submit(self, shard: Shard) -> None:
        """Start work on a shard. Only where there is room."""

    def wait(self, seconds: float) -> list[Ended]:
        """Wait, at most so long, until an attempt ends; all that have ended."""

    def count(self) -> int:
        """How many workers are up."""

    def close(self) -> None:
        """Give back what is held; work in flight is dropped."""


@dataclass
class _Attempt:
    shard: Shard
    raised: int = 0
    lost: int = 0
    started: float = 0.0


def run_shards(
    shards: Iterable[Shard],
    workers: Workers,
    progress: Progress,
    *,
    max_attempts: int = 3,
    max_losses: int = 10,
    stall_seconds: float = 3600.0,
    report: Callable[[Progress, bool], None],
) -> None:
    """Work on every one of the `progress.shards - progress.done` shards; `report(progress, last)` sees every turn.

    A shard that fails is tried again: up to `max_attempts` times if its work raises, up to `max_losses` times if its
    process is lost (machines leave; but a shard may also be what kills its process). One that fails with a UserError
    is not, since it would fail again. What can be finished is finished; then a UserError lists the shards that failed
    and why. A UserError also ends the run if workers cannot start, and, naming the shards that are stuck, if no shard
    ends for `stall_seconds`. Holds the shards in flight and those that failed, whatever the number of shards.
    """
    fresh = (_Attempt(shard) for shard in shards)
    again: deque[_Attempt] = deque()
    running: dict[int, _Attempt] = {}
    starts = 0  # that failed since the last shard ended
    last_end = time.monotonic()
    try:
        while True:
            wanted = progress.shards - progress.done - len(progress.failures) - len(running)
            room = workers.room(wanted)
            for _ in range(min(room, wanted)):
                attempt = again.popleft() if again else next(fresh)
                attempt.started = time.monotonic()
                running[attempt.shard.id] = attempt
                workers.submit(attempt.shard)
            if not wanted and not running:
                break
            ended = workers.wait(min(WAIT_SECONDS, stall_seconds / 2))
            now = time.monotonic()
            for end in ended:
                if end.shard is None:
                    starts += 1
                    if end.final or starts >= max_losses:
                        raise UserError(_no_workers(end.reason, progress))
                    continue
                last_end, starts = now, 0
                _settle(running.pop(end.shard.id), end, progress, again, max_attempts, max_losses)
            progress.running, progress.workers = len(running), workers.count()
            if now - last_end > stall_seconds:
                raise UserError(_stalled(running.values(), now, stall_seconds))
            report(progress, False)
    finally:
        workers.close()
        progress.running = progress.workers = 0
        report(progress, True)
    if progress.failures:
        raise UserError(_failed(progress))


def _settle(
    attempt: _Attempt,
    end: Ended,
    progress: Progress,
    again: deque[_Attempt],
    max_attempts: int,
    max_losses: int,
) -> None:
    """Count an ended attempt, and put its shard where it belongs."""
    if end.result is not None:
        progress.add(end.result.rows)
        return
    attempt.lost += end.lost
    attempt.raised += not end.lost
    if not end.final and attempt.raised < max_attempts and attempt.lost < max_losses:
        progress.retried += 1
        again.append(attempt)
    else:
        tried = "" if end.final else f" ({attempt.raised + attempt.lost} attempts)"
        progress.failures[attempt.shard.name] = end.reason + tried


def _failed(progress: Progress) -> str:
    names = list(progress.failures)
    shown = "; ".join(f"{name}: {progress.failures[name]}" for name in names[:SHOWN])
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"{len(names)} of {progress.shards} shards failed, {progress.done} are done ({shown}{more});"
        " the same command tries the rest again"
    )


def _no_workers(reason: str, progress: Progress) -> str:
    return f"no worker can start ({reason}); {progress.done} of {progress.shards} shards are done"


def _stalled(attempts: Iterable[_Attempt], now: float, seconds: float) -> str:
    names = [f"{a.shard.name} (attempt {a.raised + a.lost + 1}, for {now - a.started:.0f} s)" for a in attempts]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    stuck = f"stuck: {', '.join(names[:SHOWN])}{more}" if names else "no worker has started"
    return (
        f"no shard ended for {seconds:.0f} s; {stuck}; see that the cluster has free CPUs or GPUs,"
        " or allow more time with --stall-minutes; the same command continues"
    )
