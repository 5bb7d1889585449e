"""What the benchmark measures from end to end: noise to Parquet, and Parquet to encoded pictures."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict

import pyarrow as pa
import torch

from models import checkpoint
from models.rasterize import to_uint8
from models.sampler import Sampling
from pipeline.benchmark.baseline import eager_draw
from pipeline.benchmark.bench import ROLLOUT, Bench, Row
from pipeline.datasets import plan_file
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, RenderPlan, Shard
from pipeline.datasets.splat_dataset import SplatDataset, write_table
from pipeline.execution.threads import ordered
from pipeline.generation.sampling import HANDS, ShardSampler, plan_for
from pipeline.rendering.drawing import standing
from pipeline.rendering.encoders import ENCODINGS, Picture, encode_jpeg
from pipeline.storage.store import Store

SIDE = 512


def generate(bench: Bench) -> None:
    """Noise to committed Parquet files, by as many threads as an actor of bulk generation has hands.

    Beside it what these do at both ends, alone: the noise for a GPU, and the files of tables that are there.
    """
    batch, steps = ROLLOUT[bench.device]
    sampling = next(iter(bench.learned), Sampling(steps=steps))
    # Long enough on a GPU that the ends, where it waits for the host or the host for it, hardly count.
    size, shards = (4096, 64) if bench.cuda else (4, 3)
    hands = HANDS[bench.device]
    weights = checkpoint.read(checkpoint.PRETRAINED)
    plan = bulk_plan(weights, sampling, count=size * (shards + hands), size=size, batch=batch)
    sampler = ShardSampler(checkpoint.load(checkpoint.PRETRAINED).to(bench.device), plan)
    with (
        folder() as place,
        folder() as other,
        ThreadPoolExecutor(hands, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        whole, alone = Store(place), Store(other)

        def keep(store: Store, shard: Shard, table: pa.Table) -> None:
            with store.create(plan.data(shard)) as output:
                write_table(table, output.file)
            store.remove(plan.data(shard))  # all of them are 5 GB

        def timed(name: str, work: Callable[[Shard], object]) -> Row:
            deque(pool.map(work, map(plan.shard, range(shards, shards + hands))), maxlen=0)  # warms up
            begun = time.perf_counter()
            deque(pool.map(work, map(plan.shard, range(shards))), maxlen=0)
            seconds = time.perf_counter() - begun
            return Row(name, "pictures", shards * size / seconds, seconds, 0.0, 1, None, None, None)

        extent = f"{shards} shards of {size}"
        if bench.cuda:
            bench.add(timed(f"noise of {extent}", lambda shard: sampler.noise(shard.indices)))
        table = sampler(plan.shard(0))
        bench.add(timed(f"files of {extent}", lambda shard: keep(alone, shard, table)))
        what = f"{sampling.solver}, {sampling.steps} calls"
        row = timed(f"generate {what}, {extent}", lambda shard: keep(whole, shard, sampler(shard)))
    bare = [row for row in bench.rows if row.name.startswith(f"rollout {what}, batch {batch}")]
    bench.add(dataclasses.replace(row, note=f"{row.rate / bare[-1].rate:.0%} of the bare rollout" if bare else ""))


def read(bench: Bench) -> None:
    """Stored splats to JPEG pictures: read, drawn as bytes, encoded on every core."""
    count = 512 if bench.cuda else 4
    weights = checkpoint.read(checkpoint.PRETRAINED)
    plan = bulk_plan(weights, Sampling(steps=4), count=count, size=count, batch=count if bench.cuda else 4)
    with folder() as place:
        store = Store(place)
        plan_file.claim(store, plan)
        table = ShardSampler(bench.denoiser, plan)(plan.shard(0))
        with store.create(plan.data(plan.shard(0))) as output:
            write_table(table, output.file)
        source = SplatDataset.open(place)
        drawn = drawn_plan(source, count=count, size=count, side=SIDE, output="files", encoding="jpeg")

        def jpeg(picture: Picture) -> bytes:
            return encode_jpeg(picture, drawn.quality)

        def eagerly() -> None:
            for _, fields in source.read(Indices.first(2)):
                for field in fields.to(bench.device).split(1):
                    jpeg(Picture({}, [to_uint8(eager_draw(field, SIDE, SIDE))[0].cpu().numpy()]))

        with torch.inference_mode():
            bench.measure(
                f"Parquet to JPEG of {SIDE} px",
                "pictures",
                count,
                lambda: deque(ordered(jpeg, standing(source, drawn, Indices.first(count), bench.device)), maxlen=0),
                baseline=(2, eagerly),
            )


def bulk_plan(weights: bytes, sampling: Sampling, *, count: int, size: int, batch: int) -> GenerationPlan:
    """The plan of bulk generation with some weights, in shards of `size`."""
    return plan_for(
        weights,
        "to measure with",
        count=count,
        shard_size=size,
        seed=0,
        **asdict(sampling),
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
