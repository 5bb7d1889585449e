"""The summary of a complete dataset: its records, added up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from models.errors import UserError
from pipeline.datasets import records
from pipeline.datasets.plan import Plan
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Summary:
    """What a complete dataset holds, as in summary.json."""

    plan: str  # the plan's fingerprint
    shards: int
    pictures: int
    bytes: int
    work_seconds: float
    devices: list[str]
    timings: dict[str, float] = field(default_factory=dict)  # sums of the records'


def summarise(plan: Plan, store: Store) -> Summary:
    """Count what is committed, from the store and not from memory; UserError if that is not all of `plan`."""
    shards = pictures = size = 0
    seconds, devices = 0.0, set()
    timings: Counter[str] = Counter()
    for record in records.committed(store):
        shards, pictures, size = shards + 1, pictures + record.rows, size + record.bytes
        seconds += record.seconds
        devices.add(record.device)
        timings.update(record.timings)
    if (shards, pictures) != (plan.num_shards, len(plan.pictures)):
        raise UserError(
            f"{store.url} has {shards} of {plan.num_shards} shards: something else changes it; run the command again"
        )
    return Summary(
        plan.fingerprint(),
        shards,
        pictures,
        size,
        round(seconds, 3),
        sorted(devices),
        {name: round(sum, 3) for name, sum in timings.items()},
    )
