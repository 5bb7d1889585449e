"""A run's counters and gauges on the metrics port of its driver's Ray node, for Prometheus.

They appear there with the prefix `ray_`, counters with the suffix `_total`, tagged with the dataset's kind and URL.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge

from pipeline.execution.progress import Progress

UPDATE_SECONDS = 0.5
TAGS = ("kind", "dataset")
Read = Callable[[Progress], float]
COUNTERS: dict[str, tuple[str, Read]] = {
    "splatcats_shards": ("shards committed by this run", lambda p: p.new_shards),
    "splatcats_pictures": ("pictures in shards committed by this run", lambda p: p.new_pictures),
    "splatcats_retries": ("attempts at shards that failed and were made again", lambda p: p.retried),
}
GAUGES: dict[str, tuple[str, Read]] = {
    "splatcats_shards_planned": ("shards of the plan", lambda p: p.shards),
    "splatcats_shards_committed": ("shards committed by this run and those before it", lambda p: p.done),
    "splatcats_shards_failed": ("shards given up by this run", lambda p: len(p.failures)),
    "splatcats_shards_running": ("shards in flight", lambda p: p.running),
    "splatcats_workers": ("workers that are up", lambda p: p.workers),
    "splatcats_pictures_per_second": ("rate of this run, on average", lambda p: p.rate),
}


class Metrics:
    """The metrics of one run, in a process that is connected to Ray. Counters start at 0 with every run."""

    def __init__(self, kind: str, dataset: str) -> None:
        self._tags = {"kind": kind, "dataset": dataset}
        self._counters = {name: Counter(name, text, TAGS) for name, (text, _) in COUNTERS.items()}
        self._gauges = {name: Gauge(name, text, TAGS) for name, (text, _) in GAUGES.items()}
        self._counted = dict.fromkeys(COUNTERS, 0.0)
        self._updated = 0.0

    def show(self, progress: Progress, last: bool) -> None:
        """Hand the numbers to Ray, if it is time to; the `last` time always."""
        now = time.monotonic()
        if not last and now - self._updated < UPDATE_SECONDS:
            return
        self._updated = now
        for name, (_, read) in COUNTERS.items():
            count = read(progress)
            if count > self._counted[name]:
                self._counters[name].inc(count - self._counted[name], self._tags)
                self._counted[name] = count
        for name, (_, read) in GAUGES.items():
            self._gauges[name].set(read(progress), self._tags)
