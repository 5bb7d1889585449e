"""Bulk generation: shards of noise to shards of splats, on Ray actors that load the model once."""

from __future__ import annotations

import contextlib
import io
import time
from functools import partial

import ray
import torch
from PIL import Image

from models import checkpoint
from pipeline.datasets import rollout_file
from pipeline.datasets.cards import splats_card
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, Shard
from pipeline.datasets.records import Record
from pipeline.datasets.splat_dataset import write_table
from pipeline.datasets.summary import Summary
from pipeline.execution.cluster import Cluster, connect
from pipeline.execution.memory import keep_freed
from pipeline.execution.production import commit, produce
from pipeline.execution.tasks import MAX_RETRIES, abandon, first_ended, result
from pipeline.execution.workers import ActorWorkers
from pipeline.generation.rollouts import kept_rollouts, rollout_sheet
from pipeline.generation.sampling import HANDS, ShardSampler
from pipeline.storage.store import Store

ROLLOUT_FILE = "rollout.png"


class Generator:
    """What runs in a Ray actor: the loaded model, and as many shards at once as it has HANDS."""

    def __init__(self, weights: bytes, plan: GenerationPlan, store: Store, use_gpu: bool) -> None:
        if not use_gpu:
            keep_freed()
        torch.set_num_threads(plan.threads)
        self._device = "cuda" if use_gpu else "cpu"
        self._denoiser = checkpoint.parse(weights, "of the plan").to(self._device)
        self._plan, self._store = plan, store
        self._sampler = ShardSampler(self._denoiser, plan)

    def work(self, shard: Shard) -> Record:
        """Generate, write and commit a shard."""
        started = time.monotonic()
        table = self._sampler(shard)
        name = self._plan.data(shard)
        with self._store.create(name) as output:
            write_table(table, output.file)
        return commit(self._store, shard, name, output.bytes, output.sha256, started=started, device=self._device)

    def draw_rollout(self, indices: Indices) -> None:
        """Write the rollout sheet as a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(rollout_sheet(self._denoiser, self._plan, indices)).save(buffer, "PNG")
        self._store.write(ROLLOUT_FILE, buffer.getvalue())

    def keep_rollouts(self, indices: Indices) -> None:
        """Write every step of some pictures, to draw them from later."""
        rollout_file.write(self._store, self._plan, list(kept_rollouts(self._denoiser, self._plan, indices)))


GeneratorActor = ray.remote(max_restarts=0)(Generator)


@ray.remote(max_retries=MAX_RETRIES)
def show_rollouts(
    sheet: Indices | None, keep: Indices | None, weights: bytes, plan: GenerationPlan, store: Store, use_gpu: bool
) -> None:
    """Write the sheet of some rollouts and the steps of some, as a Ray task."""
    generator = Generator(weights, plan, store, use_gpu)
    if sheet:
        generator.draw_rollout(sheet)
    if keep:
        generator.keep_rollouts(keep)


def generate(
    plan: GenerationPlan,
    weights: bytes,
    store: Store,
    *,
    workers: int | None = None,
    device: str = "auto",
    gpus_per_worker: float = 1.0,
    rollout: Indices | None = None,
    keep_rollout: Indices | None = None,
    stall_seconds: float = 3600.0,
) -> Summary:
    """Make the dataset of `plan` in `store`, or complete it.

    With `rollout`, also the sheet of noise becoming cats; with `keep_rollout`, the splats of every step of these.
    `workers`: how many actors, each with `gpus_per_worker` of a GPU or on CPUs; None for as many as the cluster has
    room for at any time. Uses the Ray cluster this process is connected to, or connects for the while. Raises UserError
    as `produce` does.
    """

    def start_workers(cluster: Cluster) -> ActorWorkers:
        use_gpu = cluster.has_gpu(device)
        options = cluster.demand(use_gpu, workers, gpus=gpus_per_worker, threads=plan.threads)
        arguments = (ray.put(weights), plan, store, use_gpu)  # weights travel by the object store, once a node
        hands = HANDS["cuda" if use_gpu else "cpu"]
        start = GeneratorActor.options(**options, max_concurrency=hands).remote
        return ActorWorkers(lambda: start(*arguments), cluster.capacity(workers, **options), hands)

    with connect() if rollout or keep_rollout else contextlib.nullcontext():
        summary = produce(plan, store, start_workers, partial(splats_card, plan), stall_seconds=stall_seconds)
        if rollout or keep_rollout:
            with connect() as cluster:
                use_gpu = cluster.has_gpu(device)
                task = show_rollouts.options(num_gpus=gpus_per_worker) if use_gpu else show_rollouts
                shown = task.remote(rollout, keep_rollout, weights, plan, store, use_gpu)
                try:
                    result(first_ended([shown], stall_seconds))
                finally:
                    abandon([shown])
    return summary
