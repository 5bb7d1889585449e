"""One shard of noise to one table of splats; noise, the device's work and what follows it overlap. Knows no Ray."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models import checkpoint, sampler
from models.denoiser import Denoiser
from models.errors import UserError
from models.noise import slerp, white_noise
from models.recorded import RecordedSample
from pipeline.datasets.codec import CODECS
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, Shard
from pipeline.datasets.splat_dataset import to_table
from pipeline.execution.transfer import download

# Shards that a process has in hand: on a GPU it computes one, makes the noise of the next, and encodes, hashes and
# writes what it has computed of others. For one of 4,096 pictures 0.2 GB of the GPU are noise, and 0.08 GB of the
# host's memory are pinned.
HANDS = {"cuda": 6, "cpu": 1}


def plan_for(weights: bytes, name: str, **chosen: Any) -> GenerationPlan:
    """The plan with the fields `chosen` for serialised weights, which give the others.

    UserError, which calls them `name`, if they cannot be used.
    """
    config = checkpoint.parse(weights, name).config
    shape = {key: getattr(config, key) for key in ("rows", "columns", "splats_per_patch", "kernel", "neighbourhood")}
    return GenerationPlan(model=checkpoint.fingerprint(weights), **shape, **chosen)


class ShardSampler:
    """Makes the splats of a plan's shards with a denoiser, on the device that it is on, one shard or several at once.

    Threads that make shards with it overlap on a GPU: noise, the device's work, and what follows. A process on CPUs has
    the cores that its plan gives it, and nothing to overlap with.
    """

    def __init__(self, denoiser: Denoiser, plan: GenerationPlan) -> None:
        self._denoiser, self._plan = denoiser, plan
        self._sampling = sampler.Sampling(plan.solver, plan.schedule, plan.steps)
        self._takes = CODECS[plan.precision].takes
        self._on_gpu = next(denoiser.parameters()).is_cuda
        self._turn = threading.Lock()  # of the thread that gives the GPU its next work
        self._noise_stream = torch.cuda.Stream() if self._on_gpu else None
        # By their size, the batches that came so far; of those that came again a recording.
        self._recorded: dict[int, RecordedSample | None] = {}

    def __call__(self, shard: Shard) -> pa.Table:
        """The splats of a shard: its table, see `splat_dataset.schema`.

        On one kind of device a pure function of weights, plan and shard, and of torch's number of threads on a CPU: the
        noise of a picture comes from its index, and the batches begin at the shard's first picture.
        """
        tables = []
        for batch, field in zip(self._batches(shard), self._fields(shard), strict=True):
            with np.errstate(over="ignore"):
                within = np.isfinite(field.astype(np.float16, copy=False))  # no precision is for what float16 is not
            if not within.all():
                raise UserError(
                    f"the weights give splats that are not finite numbers, in {shard.name}: use other weights"
                )
            tables.append(to_table(self._plan, batch, field))
        return pa.concat_tables(tables)

    def _batches(self, shard: Shard) -> list[Indices]:
        size = self._plan.batch_size
        return [shard.indices.between(start, start + size) for start in range(0, len(shard.indices), size)]

    def _fields(self, shard: Shard) -> Iterator[np.ndarray]:
        """The fields of each batch of a shard, on the host; a GPU has all of their noise before it is their turn."""
        if not self._on_gpu:
            for batch in self._batches(shard):
                noise = noise_of(self._denoiser, self._plan, batch)
                yield sampler.sample(self._denoiser, noise, **asdict(self._sampling)).to(self._takes).numpy()
            return
        noise = self.noise(shard)
        with self._turn:
            parts = noise.split(self._plan.batch_size)
            begun = deque(download(self._sample(part).to(self._takes)) for part in parts)
        del noise
        while begun:
            yield begun.popleft()()

    def noise(self, shard: Shard) -> Tensor:
        """The noise [B, 3, Y, X] of a shard, made on the GPU beside what else it does.

        Of all pictures at once: of many it takes no longer than of one.
        """
        with torch.cuda.stream(self._noise_stream):
            noise = noise_of(self._denoiser, self._plan, shard.indices)
            made = torch.cuda.Event(blocking=True)
            made.record()
        made.synchronize()  # here, so that no work of other shards comes to wait for it
        noise.record_stream(torch.cuda.current_stream())  # its memory stays its own until the GPU has begun with it
        return noise

    def _sample(self, noise: Tensor) -> Tensor:
        """Fields on the GPU; from the second batch of a size on, of which more will come, by a recording."""
        size = len(noise)
        recorded = self._recorded.get(size)
        if recorded is None:
            if size not in self._recorded:
                self._recorded[size] = None
                return sampler.sample(self._denoiser, noise, **asdict(self._sampling))
            recorded = self._recorded[size] = RecordedSample(self._denoiser, self._sampling, size)
        return recorded(noise)


def noise_of(denoiser: Denoiser, plan: GenerationPlan, indices: Indices) -> Tensor:
    """The noise of some pictures [B, 3, Y, X], where the denoiser is."""
    ends = [int(index) for index in plan.between.split(",")] if plan.between else []
    noise = white_noise(plan.seed, ends or list(indices), *denoiser.size, next(denoiser.parameters()).device)
    return slerp(noise[0], noise[1], torch.tensor(list(indices)) / (plan.count - 1)) if ends else noise
