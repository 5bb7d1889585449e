"""Read a whole dataset, splats or pictures, and say what is wrong with it.

    python -m jobs.verify out/splats
    python -m jobs.verify s3://bucket/splats --repair

Prints one line per finding, and ends with 0 only for a whole and sound dataset. Do not repair while a run is at work.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.cli import check_numbers, counted, run
from models.errors import UserError
from pipeline.inspection.verification import Finding, repair, verify
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Options:
    """Which dataset to verify."""

    url: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")]
    """Folder or fsspec URL of a dataset made by jobs.generate or jobs.render."""

    repair: bool = False
    """Remove bad shards and their records, so that the command that made the dataset makes them again."""

    stall_minutes: float = 60.0
    """Give up, and name the stuck shards, when none ends for so many minutes."""

    def __post_init__(self) -> None:
        check_numbers(self, "stall_minutes")


def main(options: Options) -> None:
    """Verify; UserError unless everything is there and sound."""
    store = Store(options.url)

    def found(finding: Finding) -> None:
        print(finding, flush=True)

    report = verify(store, found=found, stall_seconds=options.stall_minutes * 60)
    plan = report.plan
    if not report.findings:
        shards, pictures = counted(plan.num_shards, "shard"), counted(len(plan.pictures), "picture")
        print(f"{store.url} is whole and sound: {shards}, {pictures}")
        return
    remedy = "run the command that made it again"
    if not report.bad and not report.missing:
        remedy = "see to what is named above"
    elif options.repair:
        repair(store, plan, report.bad)
        remedy = f"removed {len(report.bad)} bad shards; {remedy}, which makes what is missing"
    elif report.bad:
        remedy = f"--repair removes the {len(report.bad)} bad shards; then {remedy}"
    raise UserError(f"{store.url} is not sound: {counted(report.findings, 'finding')}; {remedy}")


if __name__ == "__main__":
    sys.exit(run(Options, main))
