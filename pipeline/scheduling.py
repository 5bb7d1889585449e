"""The one scheduler: shards over Ray tasks or actors in a bounded window, with retries, progress and a stall guard.

The work on a shard must be repeatable: a shard may run more than once (a worker dies after its commit, say), and the
second run writes the same bytes to the same names.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.exceptions
from ray import ObjectRef

from models.errors import UserError
from pipeline.plan import Shard
from pipeline.progress import Progress
from pipeline.store import Record


class Workers(Protocol):
    """Where shards are worked on: submits at most `limit` at once; every reference resolves to a Record."""

    limit: int

    def submit(self, shard: Shard) -> ObjectRef:
        """Start work on a shard."""

    def release(self, ref: ObjectRef, healthy: bool) -> None:
        """Take note that a submitted reference is finished; not `healthy`: its process is not to be used again."""

    def rest(self) -> None:
        """Nothing is left to submit for now: give back what is held for it."""

    def close(self) -> None:
        """Give back what is held; work in flight is dropped."""


class TaskWorkers:
    """Ray tasks: `start(shard)` submits one. They must be made with max_retries=0, the scheduler retries."""

    def __init__(self, start: Callable[[Shard], ObjectRef], limit: int) -> None:
        self.limit = limit
        self._start = start
        self._running: set[ObjectRef] = set()

    def submit(self, shard: Shard) -> ObjectRef:
        """Start work on a shard."""
        ref = self._start(shard)
        self._running.add(ref)
        return ref

    def release(self, ref: ObjectRef, healthy: bool) -> None:
        """Forget a finished task."""
        self._running.discard(ref)

    def rest(self) -> None:
        """Tasks hold nothing while idle."""

    def close(self) -> None:
        """Cancel what still runs."""
        for ref in self._running:
            ray.cancel(ref, force=True)


class ActorWorkers:
    """Ray actors with a method `work(shard)`, one shard at a time each; started when needed, replaced when lost."""

    def __init__(self, start: Callable[[], Any], limit: int) -> None:
        self.limit = limit
        self._start = start
        self._idle: list[Any] = []
        self._busy: dict[ObjectRef, Any] = {}

    def submit(self, shard: Shard) -> ObjectRef:
        """Give a shard to an idle actor, or to a new one."""
        actor = self._idle.pop() if self._idle else self._start()
        ref = actor.work.remote(shard)
        self._busy[ref] = actor
        return ref

    def release(self, ref: ObjectRef, healthy: bool) -> None:
        """Keep a healthy actor for the next shard. An unhealthy one may hold a broken GPU context: end it."""
        actor = self._busy.pop(ref)
        if healthy:
            self._idle.append(actor)
        else:
            ray.kill(actor)

    def rest(self) -> None:
        """End the idle actors; another shard would start a new one."""
        while self._idle:
            ray.kill(self._idle.pop())

    def close(self) -> None:
        """End all actors."""
        for actor in [*self._idle, *self._busy.values()]:
            ray.kill(actor)


@dataclass
class _Attempt:
    shard: Shard
    number: int
    started: float


def run_shards(
    shards: Iterable[Shard],
    workers: Workers,
    progress: Progress,
    *,
    max_attempts: int = 3,
    stall_seconds: float = 3600.0,
    report: Callable[[Progress], None] = print,
    report_seconds: float = 10.0,
) -> None:
    """Work on every shard; `progress` is kept up to date and given to `report` every `report_seconds` and at the end.

    A shard that fails is tried again, up to `max_attempts` times; one that fails with a UserError is not, since it
    would fail again. What can be finished is finished; then a UserError lists the shards that failed and why. If no
    shard ends for `stall_seconds`, a UserError names the shards that are stuck.
    """
    waiting: Iterator[Shard] = iter(shards)
    again: deque[tuple[Shard, int]] = deque()
    running: dict[ObjectRef, _Attempt] = {}
    last_end = last_report = time.monotonic()
    try:
        while True:
            while len(running) < workers.limit:
                shard, number = again.popleft() if again else (next(waiting, None), 1)
                if shard is None:
                    # What is idle holds CPUs or a GPU that a worker still waiting to start may need.
                    workers.rest()
                    break
                running[workers.submit(shard)] = _Attempt(shard, number, time.monotonic())
            if not running:
                break
            timeout = min(report_seconds, stall_seconds) / 2
            ended, _ = ray.wait(list(running), num_returns=1, timeout=timeout, fetch_local=False)
            now = time.monotonic()
            for ref in ended:
                last_end = now
                attempt = running.pop(ref)
                reason, final = _outcome(ref, workers, progress)
                if reason and not final and attempt.number < max_attempts:
                    progress.retried += 1
                    again.append((attempt.shard, attempt.number + 1))
                elif reason:
                    tried = "" if final else f" ({attempt.number} attempts)"
                    progress.failures[attempt.shard.name] = reason + tried
            if running and now - last_end > stall_seconds:
                raise UserError(_stalled(running.values(), now, stall_seconds))
            if running and now - last_report >= report_seconds:
                report(progress)
                last_report = now
    finally:
        workers.close()
        report(progress)
    if progress.failures:
        raise UserError(_failed(progress))


def _outcome(ref: ObjectRef, workers: Workers, progress: Progress) -> tuple[str, bool]:
    """Count an ended attempt: ("", _) if it succeeded, else the reason and whether trying again is pointless."""
    try:
        record: Record = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        wrong_input = isinstance(cause, UserError)
        workers.release(ref, healthy=wrong_input)
        return _one_line(str(cause) if wrong_input else f"{type(cause).__name__}: {cause}"), wrong_input
    except ray.exceptions.RayError as error:  # the process, its actor or its node is gone
        workers.release(ref, healthy=False)
        return _one_line(f"{type(error).__name__}: {error}"), False
    workers.release(ref, healthy=True)
    progress.done += 1
    progress.pictures += record.rows
    progress.new_pictures += record.rows
    return "", False


def _failed(progress: Progress) -> str:
    names = list(progress.failures)
    shown = "; ".join(f"{name}: {progress.failures[name]}" for name in names[:5])
    more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{len(names)} of {progress.shards} shards failed, {progress.done} are done ({shown}{more});"
        " the same command tries the rest again"
    )


def _stalled(attempts: Iterable[_Attempt], now: float, seconds: float) -> str:
    stuck = ", ".join(f"{a.shard.name} (attempt {a.number}, for {now - a.started:.0f} s)" for a in attempts)
    return (
        f"no shard ended for {seconds:.0f} s; stuck: {stuck}; see that the cluster has free CPUs or GPUs,"
        " or allow more time with --stall-minutes; the same command continues"
    )


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."
