"""From a plan to a complete dataset: what generation and rendering share around the work on one shard."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import socket
import time
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from pipeline.datasets import plan_file, records
from pipeline.datasets.plan import CODE_VERSION, Plan, Shard
from pipeline.datasets.records import RECORDS, Record
from pipeline.datasets.summary import Summary, summarise
from pipeline.execution.cluster import Cluster, connect
from pipeline.execution.metrics import Metrics
from pipeline.execution.progress import Console, Progress
from pipeline.execution.scheduling import Workers, run_shards
from pipeline.storage.store import Store

FAILURES_FILE = f"{RECORDS}/failures.json"


def produce(
    plan: Plan,
    store: Store,
    start_workers: Callable[[Cluster], Workers],
    card: Callable[[Summary], str],
    *,
    stall_seconds: float,
) -> Summary:
    """Do all shards of `plan` that are not committed in `store` yet, on Ray, then write the summary and the card.

    Resumable: the same call after any interruption does what is left. Raises UserError for another plan in the same
    place, and for shards that cannot be done, after everything else is done.
    """
    plan_file.check(store, plan)
    store.remove_orphans()
    done = {record.shard: record.rows for record in records.committed(store)}
    progress = Progress(plan.num_shards, len(done), sum(done.values()), total_pictures=len(plan.pictures))
    console = Console()
    if len(done) < plan.num_shards:
        with connect() as cluster:
            workers = start_workers(cluster)
            # Only now: without a cluster, or a GPU that is asked for, nothing is left behind.
            plan_file.claim(store, plan)
            metrics = Metrics(plan.kind, store.url)

            def report(progress: Progress, last: bool) -> None:
                console.show(progress, last)
                metrics.show(progress, last)

            missing = (shard for shard in plan.shards() if shard.id not in done)
            try:
                run_shards(missing, workers, progress, stall_seconds=stall_seconds, report=report)
            finally:
                _keep_failures(store, progress.failures)
        # Of workers that were killed while they wrote: by now, or just before this run, when the last thread of such a
        # process may not have ended yet, nor its lock.
        store.remove_orphans()
    else:
        console.show(progress, last=True)
    summary = summarise(plan, store)
    store.write("summary.json", (json.dumps(dataclasses.asdict(summary), indent=2) + "\n").encode())
    store.write("README.md", card(summary).encode())
    return summary


def commit(
    store: Store,
    shard: Shard,
    data: str,
    size: int,
    sha256: str,
    *,
    started: float,
    device: str,
    timings: Mapping[str, float] | None = None,
) -> Record:
    """Write the record of a shard whose data are complete.

    `started` is when the work began, by time.monotonic; `device`, cuda or cpu, where it was done; `timings`, seconds of
    the parts of the work, which the summary adds up.
    """
    indices = shard.indices
    record = Record(
        shard=shard.id,
        data=data,
        rows=len(indices),
        first=indices.ranges[0].start,
        last=indices.stop - 1,
        bytes=size,
        sha256=sha256,
        seconds=round(time.monotonic() - started, 3),
        finished=round(time.time(), 3),
        host=socket.gethostname(),
        device=torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} cpu",
        versions=_versions(device),
        timings={name: round(seconds, 3) for name, seconds in (timings or {}).items()},
    )
    records.write(store, record)
    return record


def _versions(device: str) -> dict[str, str]:
    """Of what the bytes of a shard depend on."""
    found = {"splatcats": CODE_VERSION, "python": platform.python_version(), "zlib": zlib.ZLIB_RUNTIME_VERSION}
    for name in ("torch", "pyarrow", "numpy", "pillow", *(["triton"] if device == "cuda" else [])):
        with contextlib.suppress(PackageNotFoundError):  # Triton may be none, or another's
            found[name] = version(name)
    return found


def _keep_failures(store: Store, failures: dict[str, str]) -> None:
    """Leave the reasons of shards that failed where jobs.status finds them; remove those of an earlier run."""
    with contextlib.suppress(OSError):  # what the shards failed of, most likely; it is being reported already
        if failures:
            store.write(FAILURES_FILE, (json.dumps(failures, indent=2) + "\n").encode())
        else:
            store.remove(FAILURES_FILE)
