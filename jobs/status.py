"""Say how far a dataset is: what is done, missing and failed, how fast, for how long still.

    python -m jobs.status out/splats
    python -m jobs.status s3://bucket/splats

Lists names and reads the commit records, no data; needs no cluster. Ends with 0 only if every shard is committed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.cli import run
from models.errors import UserError
from pipeline.inspection.status import survey
from pipeline.storage.store import Store

SHOWN = 10


@dataclass(frozen=True)
class Options:
    """Which dataset to look at."""

    url: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")]
    """Folder or fsspec URL of a dataset made by jobs.generate or jobs.render."""


def main(options: Options) -> None:
    """Print the status; UserError unless the dataset is complete."""
    store = Store(options.url)
    status = survey(store)
    print(status)
    for name, reason in list(status.failures.items())[:SHOWN]:
        print(f"{name} failed: {reason}")
    if not status.complete:
        missing = status.shards - status.done
        remedy = "wait for it, or run the command again" if status.at_work else "run the command that made it again"
        raise UserError(f"{store.url} is not complete: {missing:,} of {status.shards:,} shards are missing; {remedy}")


if __name__ == "__main__":
    sys.exit(run(Options, main))
