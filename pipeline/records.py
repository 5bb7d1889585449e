"""Commit records: what makes a shard count, ROOT/_stats/shard-00042.json, and what of it the plan decides."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
from dataclasses import dataclass, field

from pipeline.plan import Plan, shard_name

RECORDS = "_stats"
_RECORD_NAME = re.compile(rf"{RECORDS}/shard-(\d{{5,18}})\.json")
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
        return record if all(type(getattr(record, name)) is types[name] for name in types) else None


def record_name(shard: int) -> str:
    """The name of the record of a shard."""
    return f"{RECORDS}/{shard_name(shard)}.json"


def shard_of_record(name: str) -> int | None:
    """The shard whose record has that name; None if it is no record's name."""
    match = _RECORD_NAME.fullmatch(name)
    return int(match[1]) if match and record_name(int(match[1])) == name else None


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
