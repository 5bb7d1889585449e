"""What the benchmark measures of rendering: encoders alone, drawing alone, and both side by side as jobs.render has it.

Plain processes stand for Ray's tasks and run what these run, but the commit of a shard.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from models import checkpoint
from models.sampler import Sampling
from pipeline.benchmark.bench import Bench, Row
from pipeline.benchmark.storage import bulk_plan, drawn_plan, folder
from pipeline.datasets import plan_file
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import RenderPlan
from pipeline.datasets.splat_dataset import SplatDataset, to_table, write_table
from pipeline.execution.threads import cores
from pipeline.rendering.drawing import facts_of, standing
from pipeline.rendering.encoders import ENCODINGS, Picture
from pipeline.rendering.press import GPUS_PER_WORKER, Press, balance, encoders_on
from pipeline.rendering.sinks import FORMATS
from pipeline.storage.store import Store

SIDE = 1024
# Encoding, format, shards of a process beyond the one that warms it up (on a CPU, one).
RUNS = (("jpeg", "webdataset", 8), ("jpeg", "files", 4), ("png", "webdataset", 3), ("png", "files", 2))
START_SECONDS = 300
# How each of them starts together with the others; set in every process.
_gate: Barrier


@dataclass(frozen=True)
class Extent:
    """How much is drawn on a kind of device."""

    pictures_per_shard: int  # on a GPU what jobs.render chooses for many pictures of this size
    most_shards: int  # of a process, beyond the first
    seconds: float  # of encoding and of drawing alone


EXTENTS = {
    "cuda": Extent(256, 8, 5.0),
    "cpu": Extent(2, 1, 2.0),
}


@dataclass
class Done:
    """What a process did: when each piece began and ended, by time.monotonic, and how many pictures it was."""

    pieces: list[tuple[float, float, int]] = field(default_factory=list)
    timings: Counter[str] = field(default_factory=Counter)


def rate(done: Sequence[Done]) -> tuple[float, float]:
    """Pictures a second while all processes were at work, and how many seconds that was.

    Of a piece that began before or ended after, the part counts which falls into this time.
    """
    begin = max(one.pieces[0][0] for one in done)
    end = min(one.pieces[-1][1] for one in done)
    pictures = sum(
        count * max(0.0, min(last, end) - max(first, begin)) / (last - first)
        for one in done
        for first, last, count in one.pieces
    )
    return pictures / (end - begin), end - begin


def press(bench: Bench) -> None:
    """Stored splats to JPEG and PNG files, beside what all cores encode when they do nothing else."""
    extent = EXTENTS[bench.device]
    processes, encoders = _processes(bench)
    most = processes * (1 + extent.most_shards) * extent.pictures_per_shard
    with folder() as place, ExitStack() as stack:
        crews: dict[int, ProcessPoolExecutor] = {}

        def measure(
            name: str, workers: int, work: Callable[[int], Done], limit: float | None = None
        ) -> tuple[Row, Counter[str]]:
            if workers not in crews:
                crews[workers] = stack.enter_context(_crew(workers))
            row, timings = _measure(crews[workers], name, workers, work, limit)
            return bench.add(row), timings

        source = _stored(bench, place, most)
        plans = {encoding: _plan(source, extent, encoding, "files", most) for encoding, _, _ in RUNS}
        alone = {}
        for encoding, plan in plans.items():
            pictures = Path(place, f"{encoding}.safetensors")
            some = standing(source, plan, Indices.first(len(bench.cats)), bench.device)
            save_file({"frames": np.stack([picture.frames[0] for picture in some])}, pictures)
            work = partial(_encode, plan, pictures, extent.seconds)
            alone[encoding] = measure(f"encode {encoding} {SIDE} px", cores(), work)[0].rate
        work = partial(_draw, source, next(iter(plans.values())), bench.device, extent.seconds)
        drawing = measure(f"draw {SIDE} px, to the host", processes, work)[0].rate
        for encoding, output, shards in RUNS:
            count = processes * (1 + min(shards, extent.most_shards)) * extent.pictures_per_shard
            plan = _plan(source, extent, encoding, output, count)
            store = Store(f"{place}/{encoding}-{output}-{processes}-{encoders}")
            work = partial(_press, source, plan, store, bench.device, encoders, processes)
            name = f"press {encoding} {SIDE} px, {output}, {encoders} encoders each"
            row, timings = measure(name, processes, work, alone[encoding])
            bench.report(
                f"{encoding.upper()} {SIDE} px: pipeline {row.rate:,.1f} pictures/s, encoders alone"
                f" {alone[encoding]:,.1f}, share {row.rate / alone[encoding]:.0%}; drawing alone {drawing:,.1f},"
                f" share {row.rate / drawing:.0%}; {balance(timings)}"
            )
            store.remove_folder("")


def _processes(bench: Bench) -> tuple[int, int]:
    """How many processes there are and the encoders of each, as jobs.render would have them on this machine."""
    if not bench.cuda:
        return cores(), 1
    return round(1 / GPUS_PER_WORKER), encoders_on(cores() * GPUS_PER_WORKER)


def _crew(processes: int) -> ProcessPoolExecutor:
    start = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, start, _remember, (start.Barrier(processes),))


def _measure(
    crew: ProcessPoolExecutor, name: str, processes: int, work: Callable[[int], Done], limit: float | None
) -> tuple[Row, Counter[str]]:
    """Run `work`, given its number, once in each of a crew's processes: none is done before all have begun."""
    done = [one.result() for one in [crew.submit(work, number) for number in range(processes)]]
    found, seconds = rate(done)
    timings: Counter[str] = Counter()
    for one in done:
        timings.update(one.timings)
    note = f"{processes} processes"
    return Row(name, "pictures", found, seconds, 0.0, 1, None, None, limit, note), timings


def _remember(gate: Barrier) -> None:
    global _gate
    _gate = gate
    torch.set_num_threads(1)


def _encode(plan: RenderPlan, pictures: Path, seconds: float, number: int) -> Done:
    encode = ENCODINGS[plan.encoding].encode
    frames = load_file(pictures)["frames"]

    def one(index: int) -> None:
        encode(Picture(facts_of(plan, index), [frames[index % len(frames)]]), plan.quality)

    one(0)
    _gate.wait(START_SECONDS)
    begun, count = time.monotonic(), 0
    while time.monotonic() < begun + seconds:
        one(count)
        count += 1
    return Done([(begun, time.monotonic(), count)])


def _draw(source: SplatDataset, plan: RenderPlan, device: str, seconds: float, number: int) -> Done:
    for _ in standing(source, plan, plan.shard(0).indices, device):  # warm
        pass
    _gate.wait(START_SECONDS)
    begun, count = time.monotonic(), 0
    while time.monotonic() < begun + seconds:
        count += sum(1 for _ in standing(source, plan, plan.shard(0).indices, device))
    return Done([(begun, time.monotonic(), count)])


def _press(
    source: SplatDataset, plan: RenderPlan, store: Store, device: str, encoders: int, processes: int, number: int
) -> Done:
    """Every `processes`-th shard, from number `number` on, of which the first warms up."""
    done = Done()
    for id in range(number, plan.num_shards, processes):
        shard = plan.shard(id)
        if id == number + processes:
            _gate.wait(START_SECONDS)
        begun = time.monotonic()
        one = Press(source, plan, shard, store, device, encoders)
        FORMATS[plan.output].write(one)
        if id != number:
            done.pieces.append((begun, time.monotonic(), len(shard.indices)))
            done.timings.update(one.timings())
    return done


def _stored(bench: Bench, place: str, count: int) -> SplatDataset:
    """A dataset of so many splat fields: a few cats, again and again."""
    size = min(count, 1024)
    weights = checkpoint.read(checkpoint.PRETRAINED)
    plan = bulk_plan(weights, Sampling(steps=4), count=-(-count // size) * size, size=size, batch=size)
    store = Store(f"{place}/splats")
    plan_file.claim(store, plan)
    fields = bench.fields(size).cpu().numpy()
    for shard in plan.shards():
        with store.create(plan.data(shard)) as output:
            write_table(to_table(plan, shard.indices, fields), output.file)
    return SplatDataset(store, plan)


def _plan(source: SplatDataset, extent: Extent, encoding: str, output: str, count: int) -> RenderPlan:
    size = extent.pictures_per_shard
    return drawn_plan(source, count=count, size=size, side=SIDE, output=output, encoding=encoding)
