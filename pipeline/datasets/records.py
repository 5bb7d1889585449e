"""Commit records: what makes a shard count.

A shard counts once its record ROOT/_stats/shard-00042.json is there, says what the plan says, and names the size of
the data that are there. The record is written last, so a run that is killed anywhere leaves a dataset that the next
run completes. The names of data files come from the plan, never from a record, which may be anybody's.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.datasets import plan_file
from pipeline.datasets.plan import DATA, Plan, shard_name, shard_number
from pipeline.datasets.plan_file import PLAN_FILE
from pipeline.storage.store import Store

RECORDS = "_stats"
# Read in one go: an object store answers them concurrently.
AT_ONCE = 1000
_TYPES: dict[str, type] = {"int": int, "str": str, "float": float}


@dataclass(frozen=True)
class Record:
    """The commit record of one shard; `data` is the path of its file, or of its folder of files, below the root."""

    shard: int
    data: str
    rows: int
    first: int
    last: int
    bytes: int
    sha256: str
    seconds: float = 0.0
    finished: float = 0.0  # seconds since 1970
    host: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)  # seconds of the parts of the work

    @classmethod
    def parse(cls, text: builtins.bytes) -> Record | None:
        """Read a record; None if it is not one, which means the same as no record: the shard is to be done."""
        try:
            record = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        types = {f.name: _TYPES.get(str(f.type), dict) for f in dataclasses.fields(cls)}
        if any(type(getattr(record, name)) is not types[name] for name in types):
            return None
        return record if all(type(seconds) in (int, float) for seconds in record.timings.values()) else None


def record_name(shard: int) -> str:
    """The name of the record of a shard."""
    return f"{RECORDS}/{shard_name(shard)}.json"


def shard_of_record(name: str) -> int | None:
    """The shard whose record has that name; None if it is no record's name."""
    shard = shard_number(name.removeprefix(f"{RECORDS}/").removesuffix(".json"))
    return shard if shard is not None and record_name(shard) == name else None


def disagreement(record: Record, plan: Plan) -> str:
    """What in a record is not as the plan says; empty if nothing is."""
    if not 0 <= record.shard < plan.num_shards:
        return f"the plan has {plan.num_shards} shards"
    shard = plan.shard(record.shard)
    expected = {
        "data": plan.data(shard),
        "rows": len(shard.indices),
        "first": shard.indices.ranges[0].start,
        "last": shard.indices.stop - 1,
    }
    wrong = [name for name, value in expected.items() if getattr(record, name) != value]
    return ", ".join(f"{n} is {getattr(record, n)!r} there, {expected[n]!r} by the plan" for n in wrong)


def write(store: Store, record: Record) -> None:
    """Declare a shard done. Its data must be complete; this is the last write of a shard."""
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    store.write(record_name(record.shard), text.encode())


def read(store: Store) -> Iterator[Record]:
    """The records that are there, in the order of shards; unreadable and misnamed ones count as absent."""
    names = [name for name in store.sizes(RECORDS) if shard_of_record(name) is not None]
    names.sort(key=lambda name: (len(name), name))
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        texts = store.read_many(some)  # one may go in between
        for name in some:
            record = Record.parse(texts.get(name, b""))
            if record is not None and record_name(record.shard) == name:
                yield record


def committed(store: Store) -> Iterator[Record]:
    """The records that agree with the plan and whose data are there with the recorded size.

    Cheap: lists names, reads no data. What else lies about counts for nothing.
    """
    if not store.exists(PLAN_FILE):
        return
    plan = plan_file.load(store, Plan)
    listed = store.sizes(DATA)
    for record in read(store):
        if not disagreement(record, plan):
            sizes = listed if record.data in listed else store.sizes(record.data)
            if sum(sizes[name] for name in plan.files(plan.shard(record.shard), sizes)) == record.bytes:
                yield record
