"""Re-rendering: stored splats to pictures of any size, on Ray tasks. Never needs, nor imports, the model."""

from __future__ import annotations

from functools import partial

import ray

from pipeline.datasets import rollout_file
from pipeline.datasets.cards import pictures_card
from pipeline.datasets.plan import RenderPlan, Shard
from pipeline.datasets.records import Record
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.datasets.summary import Summary
from pipeline.execution.cluster import Cluster
from pipeline.execution.production import commit, produce
from pipeline.execution.workers import TaskWorkers
from pipeline.rendering.press import GPUS_PER_WORKER, Press, encoders_on
from pipeline.rendering.sinks import FORMATS
from pipeline.storage.store import Store


def render_shard(
    source: SplatDataset, plan: RenderPlan, shard: Shard, store: Store, device: str, encoders: int
) -> Record:
    """Draw, encode, write and commit one shard of pictures. Repeatable: writes the same bytes to the same names."""
    press = Press(source, plan, shard, store, device, encoders)
    written = FORMATS[plan.output].write(press)
    return commit(
        store,
        shard,
        written.data,
        written.bytes,
        written.sha256,
        started=press.started,
        device=device,
        timings=press.timings(),
    )


render_task = ray.remote(max_retries=0)(render_shard)


def render(
    source: SplatDataset,
    plan: RenderPlan,
    store: Store,
    *,
    workers: int | None = None,
    device: str = "auto",
    gpus_per_worker: float = GPUS_PER_WORKER,
    stall_seconds: float = 3600.0,
) -> Summary:
    """Draw the pictures of `plan` from `source` into `store`, or complete them.

    `workers`: how many tasks at once, each with `gpus_per_worker` of a GPU or on CPUs; as many as the cluster has room
    for if None. Uses the Ray cluster this process is connected to, or connects for the while. Raises UserError if
    splats are missing, and as `produce` does.
    """
    assert plan.source == source.plan.fingerprint()
    source.require(plan.pictures)
    if plan.motion == "rollout":
        rollout_file.require(source, plan.pictures)

    def start_workers(cluster: Cluster) -> TaskWorkers:
        use_gpu = cluster.has_gpu(device)
        cpus = cluster.cpus_per_gpu() * gpus_per_worker
        encoders = encoders_on(cpus) if use_gpu else 1  # on a CPU, drawing and encoding share it
        options = cluster.demand(use_gpu, workers, gpus=gpus_per_worker, cpus=max(1, int(cpus)), threads=plan.threads)
        task = render_task.options(**options)
        where = "cuda" if use_gpu else "cpu"
        capacity = cluster.capacity(workers, **options)
        return TaskWorkers(lambda shard: task.remote(source, plan, shard, store, where, encoders), capacity)

    format = FORMATS[plan.output]
    card = partial(pictures_card, plan, contents=format.contents, data_files=format.data_files)
    return produce(plan, store, start_workers, card, stall_seconds=stall_seconds)
