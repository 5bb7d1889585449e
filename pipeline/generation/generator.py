"""Bulk generation: shards of noise to shards of splats, on Ray actors that load the model once."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import ray
import torch
from PIL import Image

from models import checkpoint, sampler
from models.denoiser import Denoiser
from models.rasterize import to_uint8
from pipeline.datasets import rollout_file
from pipeline.datasets.cards import splats_card
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, Shard
from pipeline.datasets.records import Record
from pipeline.datasets.rollout_file import Rollout
from pipeline.datasets.splat_dataset import write_table
from pipeline.execution.cluster import Cluster, connect
from pipeline.execution.production import Summary, commit, produce
from pipeline.execution.workers import ActorWorkers
from pipeline.generation.sampling import generate_shard, noise_of, prepare
from pipeline.storage.store import Store

ROLLOUT_FILE = "rollout.png"
ROLLOUT_ROWS = 17
ROLLOUT_COLUMNS = 64
# Two processes share a GPU: one computes while the other encodes, hashes and writes what it has computed.
GPUS_PER_WORKER = 0.5


def rollout_sheet(denoiser: Denoiser, plan: GenerationPlan, indices: Indices) -> np.ndarray:
    """Noise becoming cats, uint8 [rows * Y, pictures * X, 3]: noise on top, below it what the model makes of it.

    One column a picture; the rows between are evenly spaced network calls, the last row is the result.
    """
    columns = []
    for _, steps in _rollouts(denoiser, plan, indices):
        rows = [to_uint8(steps[0].noisy), *(to_uint8(denoiser.draw(step.field, *denoiser.size)) for step in steps)]
        rows = [row.cpu() for row in rows]
        chosen = np.linspace(1, len(rows) - 1, min(ROLLOUT_ROWS, len(rows)) - 1).round().astype(int)
        columns.append(torch.stack([rows[0], *(rows[i] for i in chosen)]).numpy())
    sheet = np.concatenate(columns, axis=1)  # [rows, pictures, Y, X, 3]
    return sheet.swapaxes(1, 2).reshape(sheet.shape[0] * sheet.shape[2], -1, 3)


def kept_rollouts(denoiser: Denoiser, plan: GenerationPlan, indices: Indices) -> Iterator[Rollout]:
    """Every step of the chosen pictures, in order: what the network saw, and the splats it answered."""
    for numbers, steps in _rollouts(denoiser, plan, indices):
        noisy = torch.stack([step.noisy for step in steps], dim=1).cpu()
        fields = torch.stack([step.field for step in steps], dim=1).cpu()
        for row, index in enumerate(numbers):
            yield Rollout(index, [step.t for step in steps], noisy[row], fields[row])


def _rollouts(
    denoiser: Denoiser, plan: GenerationPlan, indices: Indices
) -> Iterator[tuple[Indices, list[sampler.Step]]]:
    """All steps of the chosen pictures, a batch of pictures at a time."""
    for start in range(0, len(indices), plan.batch_size):
        batch = indices.between(start, start + plan.batch_size)
        noise = noise_of(denoiser, plan, batch).to(next(denoiser.parameters()).device)
        rollout = sampler.rollout(denoiser, noise, steps=plan.steps, solver=plan.solver, schedule=plan.schedule)
        yield batch, list(rollout)


class Generator:
    """What runs in a Ray actor: the loaded model, and one shard after another."""

    def __init__(self, weights: bytes, plan: GenerationPlan, store: Store, use_gpu: bool) -> None:
        torch.set_num_threads(plan.threads)
        self._device = "cuda" if use_gpu else "cpu"
        self._denoiser = prepare(checkpoint.parse(weights, "of the plan"), plan, self._device)
        self._plan, self._store = plan, store

    def work(self, shard: Shard) -> Record:
        """Generate, write and commit a shard."""
        started = time.monotonic()
        table = generate_shard(self._denoiser, self._plan, shard)
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


@ray.remote(max_retries=0)
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
    gpus_per_worker: float = GPUS_PER_WORKER,
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
        if use_gpu:
            cluster.require_gpus(workers or 1, gpus_per_worker)
            # Ray would take a CPU for each anyway, and of a machine with fewer CPUs use but some of the GPUs.
            share = cluster.cpu_share(workers or cluster.gpu_room(gpus_per_worker), 1)
            options = {"num_cpus": share, "num_gpus": gpus_per_worker}
        else:
            options = {"num_cpus": cluster.cpu_share(workers or 1, plan.threads)}
        arguments = (ray.put(weights), plan, store, use_gpu)  # weights travel by the object store, once a node
        start = GeneratorActor.options(**options).remote
        return ActorWorkers(lambda: start(*arguments), cluster.capacity(workers, **options))

    with connect() if rollout or keep_rollout else contextlib.nullcontext():
        summary = produce(plan, store, start_workers, partial(splats_card, plan), stall_seconds=stall_seconds)
        if rollout or keep_rollout:
            with connect() as cluster:
                use_gpu = cluster.has_gpu(device)
                task = show_rollouts.options(num_gpus=1) if use_gpu else show_rollouts
                ray.get(task.remote(rollout, keep_rollout, weights, plan, store, use_gpu))
    return summary
