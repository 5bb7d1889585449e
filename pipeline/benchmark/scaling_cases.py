"""What --scaling measures: training, generation and rendering on some units, as the jobs run them.

A unit is one GPU with its part of the CPUs, or one CPU.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from models import checkpoint
from models.denoiser import DenoiserConfig
from models.perceptual import random_weights
from models.sampler import Sampling
from pipeline.benchmark.storage import bulk_plan, drawn_plan
from pipeline.datasets.records import Record, committed
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.cluster import Cluster
from pipeline.generation import generator, sampling
from pipeline.photographs.preparation import prepare
from pipeline.rendering import renderer
from pipeline.rendering.press import balance
from pipeline.storage.store import Store
from pipeline.training import distributed
from pipeline.training.recipe import Budget, Recipe
from pipeline.training.recipe import Run as TrainingRun

# How often all workers together end what they have in hand: in the first round they warm up, in the last they run out
# of work one by one.
ROUNDS = 4


@dataclass(frozen=True)
class Extent:
    """The work of one unit, at least; see `enough`."""

    weights: Path
    calls: int  # network calls a generated picture
    generated: int  # pictures
    generated_shard: int
    batch: int  # pictures through the network at once, when generating
    drawn: int  # pictures
    drawn_shard: int
    side: int  # pixels of a drawn picture
    trained: int  # pictures a step
    steps: int
    report_every: int
    photographs: int
    model: DenoiserConfig = field(default_factory=DenoiserConfig)
    lpips: bool = True
    detail: int = 256


GPU = Extent(checkpoint.PRETRAINED, 16, 51_200, 1024, 512, 8192, 128, 512, 512, 200, 20, 1024)
CPU = Extent(
    checkpoint.PRETRAINED, 2, 16, 2, 2, 8, 1, 256, 8, 6, 1, 64, DenoiserConfig(blocks=2), lpips=False, detail=0
)


@dataclass(frozen=True)
class Run:
    """What a run found. `rate` counts from when all workers have warmed up, `seconds` is all of it but Ray's start."""

    pictures: int
    rate: float  # pictures a second
    seconds: float
    note: str = ""


@dataclass
class Bench:
    """Where to measure, and what several runs share."""

    extent: Extent
    folder: Path
    largest: int
    cuda: bool
    runs: int = 0

    @property
    def device(self) -> str:
        """As the jobs call it."""
        return "gpu" if self.cuda else "cpu"

    def workers(self, units: int, share: float) -> int:
        """Processes that fill the units, each with `share` of a GPU, or a CPU."""
        return units * round(1 / share) if self.cuda else units

    def generating(self, units: int) -> int:
        """Shards that generation on some units has in hand."""
        return self.workers(units, 1.0) * sampling.HANDS["cuda" if self.cuda else "cpu"]

    def drawing(self, units: int) -> int:
        """Shards that rendering on some units has in hand."""
        return self.workers(units, renderer.GPUS_PER_WORKER)

    @property
    def generated(self) -> int:
        """Pictures that a unit generates."""
        return enough(self.extent.generated, self.extent.generated_shard, self.generating(self.largest))

    @property
    def drawn(self) -> int:
        """Pictures that a unit draws."""
        return enough(self.extent.drawn, self.extent.drawn_shard, self.drawing(self.largest))

    def new_folder(self) -> str:
        """A place for the next run."""
        self.runs += 1
        return str(self.folder / f"run-{self.runs}")

    @functools.cached_property
    def splats(self) -> SplatDataset:
        """Cats enough for the largest rendering."""
        out = str(self.folder / "splats")
        weights = self.extent.weights.read_bytes()
        count = self.drawn * self.largest
        plan = bulk_plan(weights, Sampling(steps=4), count=count, size=max(1, count // 64), batch=self.extent.batch)
        generator.generate(plan, weights, Store(out), device=self.device)
        return SplatDataset.open(out)

    @functools.cached_property
    def photographs(self) -> str:
        """A prepared set of coloured clouds, three in eight of them large."""
        out = str(self.folder / "prepared")
        chance = np.random.default_rng(0)
        source = self.folder / "photographs"
        source.mkdir()
        for number in range(self.extent.photographs):
            cloud = Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            side = 256 if number % 8 < 3 else 64
            cloud.resize((side, side), Image.Resampling.BICUBIC).save(source / f"{number:05d}.png")
        prepare([str(source)], out)
        return out

    @functools.cached_property
    def lpips(self) -> str | None:
        """A file of LPIPS with random weights, which are as slow as trained ones."""
        if not self.extent.lpips:
            return None
        path = self.folder / "lpips.safetensors"
        save_file(random_weights(torch.Generator().manual_seed(0)), path)
        return str(path)


def generate(bench: Bench, cluster: Cluster, units: int, times: int) -> Run:
    """As jobs.generate; the rate is that of shards written."""
    extent = bench.extent
    weights, store = extent.weights.read_bytes(), Store(bench.new_folder())
    count = bench.generated * times
    plan = bulk_plan(
        weights, Sampling(steps=extent.calls), count=count, size=extent.generated_shard, batch=extent.batch
    )
    begun = time.monotonic()
    generator.generate(plan, weights, store, workers=bench.workers(units, 1.0), device=bench.device)
    return Run(count, steady_rate(committed(store), bench.generating(units)), time.monotonic() - begun)


def render(bench: Bench, cluster: Cluster, units: int, times: int) -> Run:
    """As jobs.render, to JPEG in Parquet."""
    source = bench.splats
    extent, store = bench.extent, Store(bench.new_folder())
    count = bench.drawn * times
    plan = drawn_plan(source, count=count, size=extent.drawn_shard, side=extent.side, output="parquet", encoding="jpeg")
    workers = bench.drawing(units)
    begun = time.monotonic()
    summary = renderer.render(source, plan, store, workers=workers, device=bench.device)
    seconds = time.monotonic() - begun
    return Run(count, steady_rate(committed(store), workers), seconds, balance(summary.timings))


def train(bench: Bench, cluster: Cluster, units: int, times: int) -> Run:
    """As jobs.train, data-parallel; the rate is that of all reports but the first, which holds the compilation."""
    photos, lpips = bench.photographs, bench.lpips
    extent, out = bench.extent, bench.new_folder()
    distributed.claim(out)
    settings = TrainingRun(
        photos=photos,
        out=out,
        recipe=Recipe(model=extent.model, batch=extent.trained * times, detail=extent.detail, lpips=lpips is not None),
        budget=Budget(steps=extent.steps, report_every=extent.report_every, save_every=extent.steps),
        workers=units,
        lpips=lpips,
    )
    begun = time.monotonic()
    distributed.run(settings, gpus=cluster.gpus, cpus_per_worker=cluster.cpu_share(units, 1))
    seconds = time.monotonic() - begun
    warm = json.loads(Path(out, "history.json").read_text())[1:]
    rate = len(warm) / sum(1 / entry["pictures_per_second"] for entry in warm)
    return Run(extent.steps * settings.recipe.batch, rate, seconds)


WORKS: dict[str, Callable[[Bench, Cluster, int, int], Run]] = {"train": train, "generate": generate, "render": render}


def enough(pictures: int, shard: int, in_hand: int) -> int:
    """Pictures, at least as many as given, in shards of which ROUNDS times as many as are in hand are to be done."""
    return max(pictures, ROUNDS * in_hand * shard)


def steady_rate(records: Iterator[Record], in_hand: int) -> float:
    """Pictures a second from when as many shards have ended as all workers have in hand, and have warmed up by.

    Of a shard that was begun before, that part counts which falls into this time.
    """
    ended = sorted(records, key=lambda record: record.finished)
    assert len(ended) > in_hand
    begin, end = ended[in_hand - 1].finished, ended[-1].finished
    pictures = sum(r.rows * min(1.0, (r.finished - begin) / max(r.seconds, 1e-3)) for r in ended[in_hand:])
    return pictures / max(end - begin, 1e-3)
