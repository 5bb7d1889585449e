"""One shard of noise to one table of splats; noise, the device's work and what follows it overlap. Knows no Ray."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
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

# Shards that a process has in hand: on a GPU it computes one, has the noise of the next ones, and encodes, hashes and
# writes what it has computed of others. 4,096 pictures as float16 have up to 0.13 GB of the host's memory pinned.
HANDS = {"cuda": 10, "cpu": 1}
# Pictures whose noise a GPU makes at once, in the time of a single one: 0.8 GB; twice as many may wait to be computed.
NOISE_AT_ONCE = 1 << 14


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
        self._room = threading.Semaphore(max(2, 2 * NOISE_AT_ONCE // plan.shard_size))  # on the GPU
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
        batches = _parts(shard.indices, self._plan.batch_size)
        for batch, field in zip(batches, self._fields(shard), strict=True):
            with np.errstate(over="ignore"):
                within = np.isfinite(field.astype(np.float16, copy=False))  # no precision is for what float16 is not
            if not within.all():
                raise UserError(
                    f"the weights give splats that are not finite numbers, in {shard.name}: use other weights"
                )
            tables.append(to_table(self._plan, batch, field))
        return pa.concat_tables(tables)

    def _fields(self, shard: Shard) -> Iterator[np.ndarray]:
        """The fields of each batch of a shard, on the host."""
        size = self._plan.batch_size
        if not self._on_gpu:
            for batch in _parts(shard.indices, size):
                noise = noise_of(self._denoiser, self._plan, batch)
                yield sampler.sample(self._denoiser, noise, **asdict(self._sampling)).to(self._takes).numpy()
            return
        for batches in _parts(shard.indices, max(1, NOISE_AT_ONCE // size) * size):
            with self._room:
                fields = deque(ready() for ready in self._begin(self.noise(batches)))
            while fields:
                yield fields.popleft()

    def _begin(self, noise: Tensor) -> list[Callable[[], np.ndarray]]:
        """Give the GPU batches to compute, after those before them; each is waited for by a call."""
        with self._turn:
            return [download(self._sample(batch).to(self._takes)) for batch in noise.split(self._plan.batch_size)]

    def noise(self, indices: Indices) -> Tensor:
        """The noise [B, 3, Y, X] of pictures, made on the GPU beside what else it does."""
        with torch.cuda.stream(self._noise_stream):
            noise = noise_of(self._denoiser, self._plan, indices)
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


def _parts(indices: Indices, size: int) -> list[Indices]:
    return [indices.between(start, start + size) for start in range(0, len(indices), size)]


def noise_of(denoiser: Denoiser, plan: GenerationPlan, indices: Indices) -> Tensor:
    """The noise of some pictures [B, 3, Y, X], where the denoiser is."""
    ends = [int(index) for index in plan.between.split(",")] if plan.between else []
    noise = white_noise(plan.seed, ends or list(indices), *denoiser.size, next(denoiser.parameters()).device)
    return slerp(noise[0], noise[1], torch.tensor(list(indices)) / (plan.count - 1)) if ends else noise
