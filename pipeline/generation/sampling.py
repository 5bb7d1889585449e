"""One shard of noise to one table of splats; noise, the device's work and what follows it overlap. Knows no Ray."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models import checkpoint, sampler
from models.denoiser import Denoiser
from models.errors import UserError
from models.recorded import RecordedSample
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, Shard
from pipeline.datasets.splat_dataset import to_table
from pipeline.execution.threads import ordered
from pipeline.execution.transfer import download

# Shards that a process has in hand: on a GPU it computes one, makes the noise of others, and encodes, hashes and writes
# what it has computed of the rest. Six were faster than three, by 57 %, and than ten.
HANDS = {"cuda": 6, "cpu": 1}
NOISE_PIECE = 64  # pictures whose noise one thread makes at a time


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
        self._turn = threading.Lock()  # of the thread that gives the GPU its next work
        self._recorded: RecordedSample | None = None

    def __call__(self, shard: Shard) -> pa.Table:
        """The splats of a shard: its table, see `splat_dataset.schema`.

        On one kind of device a pure function of weights, plan and shard, and of torch's number of threads on a CPU: the
        noise of a picture comes from its index, and the batches begin at the shard's first picture.
        """
        size = self._plan.batch_size
        batches = [shard.indices.between(start, start + size) for start in range(0, len(shard.indices), size)]
        on_gpu = next(self._denoiser.parameters()).is_cuda
        fields = self._on_gpu(batches) if on_gpu else self._on_cpu(batches)
        tables = []
        for batch, field in zip(batches, fields, strict=True):
            if not (np.abs(field) <= np.finfo(np.float16).max).all():
                raise UserError(
                    f"the weights give splats that are not finite numbers, in {shard.name}: use other weights"
                )
            tables.append(to_table(self._plan, batch, field))
        return pa.concat_tables(tables)

    def _on_cpu(self, batches: Iterable[Indices]) -> Iterator[np.ndarray]:
        for batch in batches:
            noise = noise_of(self._denoiser, self._plan, batch)
            yield sampler.sample(self._denoiser, noise, **asdict(self._sampling)).numpy()

    def _on_gpu(self, batches: Sequence[Indices]) -> list[np.ndarray]:
        """Fields, on the host, of batches whose noise there is before it is their turn."""
        noises = self._pinned_noises(batches)
        with self._turn:
            begun = [download(self._sample(noise)) for noise in noises]
        return [there() for there in begun]

    def _pinned_noises(self, batches: Sequence[Indices]) -> list[Tensor]:
        """The noise of each batch, made piecewise in many threads, in memory that a GPU copies from by itself."""
        noises = [torch.empty(len(batch), 3, *self._denoiser.size, pin_memory=True) for batch in batches]
        pieces = (
            (batch.between(start, start + NOISE_PIECE), noise[start : start + NOISE_PIECE])
            for batch, noise in zip(batches, noises, strict=True)
            for start in range(0, len(batch), NOISE_PIECE)
        )
        deque(ordered(lambda piece: noise_of(self._denoiser, self._plan, *piece), pieces), maxlen=0)
        return noises

    def _sample(self, noise: Tensor) -> Tensor:
        """Fields on the GPU, of whole batches by a recording."""
        if len(noise) < self._plan.batch_size:
            return sampler.sample(self._denoiser, noise.to("cuda", non_blocking=True), **asdict(self._sampling))
        if self._recorded is None:
            self._recorded = RecordedSample(self._denoiser, self._sampling, len(noise))
        return self._recorded(noise)


def noise_of(denoiser: Denoiser, plan: GenerationPlan, indices: Indices, out: Tensor | None = None) -> Tensor:
    """The noise of some pictures [B, 3, Y, X], on the CPU, in `out` if given."""
    if not plan.between:
        return sampler.noise(plan.seed, list(indices), *denoiser.size, out=out)
    first, last = sampler.noise(plan.seed, [int(i) for i in plan.between.split(",")], *denoiser.size)
    noise = sampler.slerp(first, last, torch.tensor(list(indices)) / (plan.count - 1))
    return noise if out is None else out.copy_(noise)
