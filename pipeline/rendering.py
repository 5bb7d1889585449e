"""Re-rendering: stored splats to pictures of any size, on Ray tasks. Never needs, nor imports, the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import ray
import torch

from models.rasterize import rasterize, to_uint8
from pipeline.cards import pictures_card
from pipeline.cluster import Cluster
from pipeline.dataset import SplatDataset
from pipeline.indices import Indices
from pipeline.plan import RenderPlan, Shard
from pipeline.production import Summary, commit, produce
from pipeline.sinks import ENCODINGS, OUTPUTS, encode
from pipeline.store import Record, Store
from pipeline.workers import TaskWorkers

# At most so many pixels are floating point numbers at once; larger pictures are drawn in bands.
PIXELS_AT_ONCE = 1 << 22
TASKS_PER_GPU = 4


def draw(field: torch.Tensor, plan: RenderPlan) -> np.ndarray:
    """Draw one picture's splats [1, H, W, K, P] as uint8 [height, width, 3]; a pure function of its arguments."""
    picture = np.empty((plan.height, plan.width, 3), dtype=np.uint8)
    rows = max(1, PIXELS_AT_ONCE // plan.width)
    for top in range(0, plan.height, rows):
        bottom = min(top + rows, plan.height)
        band = rasterize(
            field,
            bottom - top,
            plan.width,
            region=(0.0, top / plan.height, 1.0, bottom / plan.height),
            kernel=plan.kernel,
            neighbourhood=plan.neighbourhood,
            view=plan.view,
        )
        picture[top:bottom] = to_uint8(band)[0].cpu().numpy()
    return picture


def draw_encoded(source: SplatDataset, plan: RenderPlan, indices: Indices, device: str) -> Iterator[tuple[int, bytes]]:
    """Yield (index, encoded picture) for the chosen pictures in order, holding one picture at a time."""
    for numbers, fields in source.read(indices):
        for index, field in zip(numbers, fields.to(device).split(1), strict=True):
            about = {
                "Software": f"splatcats {plan.code_version}",
                "Description": f"picture {index} of seed {plan.seed}, kernel {plan.kernel}, view {plan.view},"
                f" {plan.width}x{plan.height}, plan of the splats {plan.source}",
            }
            yield index, encode(draw(field, plan), plan.encoding, plan.quality, about)


def render_shard(source: SplatDataset, plan: RenderPlan, shard: Shard, store: Store, device: str) -> Record:
    """Draw, encode, write and commit one shard of pictures. Repeatable: writes the same bytes to the same names."""
    started = time.monotonic()
    torch.set_num_threads(plan.threads)
    extension = ENCODINGS[plan.encoding].extension
    with torch.inference_mode():
        pictures = draw_encoded(source, plan, shard.indices, device)
        written = OUTPUTS[plan.output](store, shard, extension, pictures)
    return commit(store, shard, written.data, written.bytes, written.sha256, started=started, device=device)


render_task = ray.remote(max_retries=0)(render_shard)


def render(
    source: SplatDataset,
    plan: RenderPlan,
    store: Store,
    *,
    workers: int | None = None,
    device: str = "auto",
    stall_seconds: float = 3600.0,
) -> Summary:
    """Draw the pictures of `plan` from `source` into `store`, or complete them.

    `workers`: how many tasks at once; as many as the cluster has room for if None. Uses the Ray cluster this process
    is connected to, or connects for the while. Raises UserError if splats are missing, and as `produce` does.
    """
    assert plan.source == source.plan.fingerprint()
    source.require(plan.pictures)

    def start_workers(cluster: Cluster) -> TaskWorkers:
        use_gpu = cluster.has_gpu(device)
        options = {"num_cpus": cluster.cpu_share(workers or 1, plan.threads)}
        if use_gpu:
            options["num_gpus"] = 1 / TASKS_PER_GPU
        task = render_task.options(**options)
        where = "cuda" if use_gpu else "cpu"
        capacity = cluster.capacity(workers, **options)
        return TaskWorkers(lambda shard: task.remote(source, plan, shard, store, where), capacity)

    return produce(plan, store, start_workers, partial(pictures_card, plan), stall_seconds=stall_seconds)
