"""How far a dataset is, and whether a run seems to be at work: from names, sizes and records, never from data."""

from __future__ import annotations

import heapq
import itertools
import json
import time
from dataclasses import dataclass, field

from pipeline.datasets import plan_file, records
from pipeline.datasets.plan import Plan
from pipeline.datasets.plan_file import PLAN_FILE
from pipeline.execution.production import FAILURES_FILE
from pipeline.execution.progress import duration
from pipeline.storage.store import Store

# The rate is that of the newest so many shards.
RECENT = 4096
# No pause is shorter, in seconds; else one is as long as three of the longest recent shards.
PATIENCE = 60.0


@dataclass(frozen=True)
class Status:
    """What is committed of a dataset, how fast that goes, and the last sign of a run."""

    shards: int
    done: int
    total_pictures: int
    pictures: int
    bytes: int
    rate: float  # pictures a second while the newest shards were made, 0 if unknown
    idle_seconds: float  # since the last commit, or the beginning
    at_work: bool
    failures: dict[str, str] = field(default_factory=dict)  # of shards still missing, as the last run left them

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return self.done == self.shards

    def __str__(self) -> str:
        share = f"shards {self.done:,}/{self.shards:,}  {self.pictures:,} of {self.total_pictures:,} pictures"
        if self.complete:
            return f"{share}  {self.bytes / 1e6:,.1f} MB  complete"
        eta = duration((self.total_pictures - self.pictures) / self.rate) if self.rate and self.at_work else "-"
        run = "a run seems to be at work" if self.at_work else "no run seems to be at work"
        return (
            f"{share}  {self.bytes / 1e6:,.1f} MB  {self.rate:,.{0 if self.rate >= 100 else 1}f}/s  eta {eta}"
            f"  missing {self.shards - self.done:,}  failed {len(self.failures):,}\n"
            f"{run}: the last sign of one is {duration(self.idle_seconds)} old"
        )


def survey(store: Store) -> Status:
    """Look at the dataset at `store`; UserError if there is none."""
    plan = plan_file.load(store, Plan)
    done = pictures = size = 0
    newest: list[tuple[float, int, float]] = []  # a heap of (when finished, pictures, seconds)
    committed = set()
    failures = _failures(store)
    for record in records.committed(store):
        done, pictures, size = done + 1, pictures + record.rows, size + record.bytes
        heapq.heappush(newest, (record.finished, record.rows, record.seconds))
        if len(newest) > RECENT:
            heapq.heappop(newest)
        if failures:
            committed.add(plan.shard(record.shard).name)
    newest.sort(reverse=True)
    pause = max([PATIENCE, *(3 * seconds for _, _, seconds in newest)])
    last = max([store.modified(PLAN_FILE), *(finished for finished, _, _ in newest[:1])])
    idle = max(0.0, time.time() - last)
    return Status(
        shards=plan.num_shards,
        done=done,
        total_pictures=len(plan.pictures),
        pictures=pictures,
        bytes=size,
        rate=_rate(newest, pause),
        idle_seconds=idle,
        at_work=done < plan.num_shards and idle < pause,
        failures={name: reason for name, reason in failures.items() if name not in committed},
    )


def _rate(newest: list[tuple[float, int, float]], pause: float) -> float:
    """Pictures a second from the newest commit back to the first pause: while nothing ran is no time of work."""
    run = newest[:1]
    for before, record in itertools.pairwise(newest):
        if before[0] - record[0] > pause:
            break
        run.append(record)
    if not run:
        return 0.0
    # From commit to commit, all but the first are counted; as long as that is no longer than a shard takes, from where
    # the first was begun, since of several workers all end their first shards at about the same time.
    rows, span = sum(count for _, count, _ in run[:-1]), run[0][0] - run[-1][0]
    if span <= max(seconds for _, _, seconds in run):
        rows, span = rows + run[-1][1], run[0][0] - min(finished - seconds for finished, _, seconds in run)
    return rows / span if span > 0.0 else 0.0


def _failures(store: Store) -> dict[str, str]:
    try:
        found = json.loads(store.read(FAILURES_FILE))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return {str(name): str(reason) for name, reason in found.items()} if isinstance(found, dict) else {}
