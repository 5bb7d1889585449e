"""What the benchmark measures from end to end: noise to Parquet, and Parquet to encoded pictures."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from models import checkpoint
from models.rasterize import rasterize, to_uint8
from pipeline.benchmark.baseline import eager_draw
from pipeline.benchmark.bench import ROLLOUT, Bench, Row
from pipeline.datasets import plan_file
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, RenderPlan
from pipeline.datasets.splat_dataset import SplatDataset, write_table
from pipeline.execution.threads import ordered
from pipeline.generation.sampling import HANDS, generate_shard, plan_for
from pipeline.rendering.encoders import ENCODINGS, Picture, encode_jpeg
from pipeline.storage.store import Store

SIDE = 512


def generate(bench: Bench) -> None:
    """Noise to committed Parquet files, by as many threads as an actor of bulk generation has hands."""
    batch, steps = ROLLOUT[bench.device]
    size, shards = (4096, 24) if bench.cuda else (4, 3)
    weights = checkpoint.read(checkpoint.PRETRAINED)
    plan = bulk_plan(weights, count=size * (shards + 1), size=size, batch=batch, steps=steps)
    denoiser, turn = checkpoint.load(checkpoint.PRETRAINED).to(bench.device), threading.Lock()
    with folder() as place:
        store = Store(place)

        def work(number: int) -> None:
            shard = plan.shard(number)
            table = generate_shard(denoiser, plan, shard, turn)
            with store.create(plan.data(shard)) as output:
                write_table(table, output.file)

        work(shards)  # warms up
        begun = time.perf_counter()
        with ThreadPoolExecutor(HANDS[bench.device], initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, range(shards)):
                pass
        seconds = time.perf_counter() - begun
    rate = shards * size / seconds
    bare = next((row for row in bench.rows if row.name.startswith("rollout deis")), None)
    note = f"{rate / bare.rate:.0%} of the bare rollout" if bare else ""
    name = f"generate deis, {plan.steps} calls, {shards} shards of {size}"
    bench.add(Row(name, "pictures", rate, seconds, 0.0, 1, None, None, None, note))


def read(bench: Bench) -> None:
    """Stored splats to JPEG pictures: read, drawn as bytes, encoded on every core."""
    count = 512 if bench.cuda else 4
    weights = checkpoint.read(checkpoint.PRETRAINED)
    plan = bulk_plan(weights, count=count, size=count, batch=count if bench.cuda else 4, steps=4)
    with folder() as place:
        store = Store(place)
        plan_file.claim(store, plan)
        table = generate_shard(bench.denoiser, plan, plan.shard(0))
        with store.create(plan.data(plan.shard(0))) as output:
            write_table(table, output.file)
        source = SplatDataset.open(place)

        def pictures(some: Indices) -> Iterator[np.ndarray]:
            for _, fields in source.read(some):
                for part in fields.to(bench.device).split(8):
                    yield from to_uint8(rasterize(part, SIDE, SIDE, dtype=torch.uint8)).cpu().numpy()

        def eagerly() -> None:
            for _, fields in source.read(Indices.first(2)):
                for field in fields.to(bench.device).split(1):
                    _jpeg(to_uint8(eager_draw(field, SIDE, SIDE))[0].cpu().numpy())

        with torch.inference_mode():
            bench.measure(
                f"Parquet to JPEG of {SIDE} px",
                "pictures",
                count,
                lambda: [None for _ in ordered(_jpeg, pictures(Indices.first(count)))],
                baseline=(2, eagerly),
            )


def _jpeg(picture: np.ndarray) -> bytes:
    return encode_jpeg(Picture({}, [picture]), 90)


def bulk_plan(weights: bytes, *, count: int, size: int, batch: int, steps: int) -> GenerationPlan:
    """The plan of bulk generation with some weights, in shards of `size`."""
    return plan_for(
        weights,
        "to measure with",
        count=count,
        shard_size=size,
        seed=0,
        solver="deis",
        schedule="early",
        steps=steps,
        batch_size=batch,
        threads=1,
    )


def drawn_plan(source: SplatDataset, *, count: int, size: int, side: int, output: str, encoding: str) -> RenderPlan:
    """The plan of drawing the first pictures of a dataset at `side` by `side`, in shards of `size`."""
    return RenderPlan(
        source=source.plan.fingerprint(),
        seed=source.plan.seed,
        indices=str(Indices.first(count)),
        shard_size=size,
        width=side,
        height=side,
        kernel=source.plan.kernel,
        neighbourhood=source.plan.neighbourhood,
        view="colour",
        output=output,
        encoding=encoding,
        quality=90 if ENCODINGS[encoding].qualities else 0,
        threads=1,
    )


@contextmanager
def folder() -> Iterator[str]:
    """A temporary folder; what is in it is gone when the block ends."""
    path = tempfile.mkdtemp(prefix="splatcats-benchmark-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
