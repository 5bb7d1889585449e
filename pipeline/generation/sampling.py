"""One shard of noise to one table of splats; noise, the device's work and what follows it overlap. Knows no Ray."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models import checkpoint, sampler
from models.denoiser import Denoiser
from models.errors import UserError
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, Shard
from pipeline.datasets.splat_dataset import to_table
from pipeline.execution.threads import ordered
from pipeline.execution.transfer import download

# Shards that a process has in hand: on a GPU it computes one, makes the noise of another, and encodes, hashes and
# writes what it has computed of a third.
HANDS = {"cuda": 3, "cpu": 1}
NOISE_PIECE = 64  # pictures whose noise one thread makes at a time


def plan_for(weights: bytes, name: str, **chosen: Any) -> GenerationPlan:
    """The plan with the fields `chosen` for serialised weights, which give the others.

    UserError, which calls them `name`, if they cannot be used.
    """
    config = checkpoint.parse(weights, name).config
    shape = {key: getattr(config, key) for key in ("rows", "columns", "splats_per_patch", "kernel", "neighbourhood")}
    return GenerationPlan(model=checkpoint.fingerprint(weights), **shape, **chosen)


def generate_shard(
    denoiser: Denoiser, plan: GenerationPlan, shard: Shard, turn: AbstractContextManager[Any] | None = None
) -> pa.Table:
    """The splats of one shard, from the device the denoiser is on: its table, see `splat_dataset.schema`.

    Where several threads do so, `turn` is a lock that the one that uses a GPU holds; on a CPU there is no need.

    On one kind of device a pure function of the arguments, and of torch's number of threads on a CPU: the noise of
    a picture comes from its index, and the batches begin at the shard's first picture.
    """
    batches = [
        shard.indices.between(start, start + plan.batch_size) for start in range(0, len(shard.indices), plan.batch_size)
    ]
    fields: Iterable[np.ndarray]
    if next(denoiser.parameters()).device.type == "cpu":
        # A process has the cores that its plan gives it: nothing to overlap with.
        fields = (_sample(denoiser, plan, noise_of(denoiser, plan, batch)).numpy() for batch in batches)
    else:
        fields = _in_turn(denoiser, plan, _noises(denoiser, plan, batches), turn or nullcontext())
    tables = []
    for batch, field in zip(batches, fields, strict=True):
        if not (np.abs(field) <= np.finfo(np.float16).max).all():
            raise UserError(f"the weights give splats that are not finite numbers, in {shard.name}: use other weights")
        tables.append(to_table(plan, batch, field))
    return pa.concat_tables(tables)


def noise_of(denoiser: Denoiser, plan: GenerationPlan, indices: Indices) -> Tensor:
    """The noise of some pictures [B, 3, Y, X], on the CPU."""
    if not plan.between:
        return sampler.noise(plan.seed, list(indices), *denoiser.size)
    first, last = sampler.noise(plan.seed, [int(i) for i in plan.between.split(",")], *denoiser.size)
    return sampler.slerp(first, last, torch.tensor(list(indices)) / (plan.count - 1))


def _noises(denoiser: Denoiser, plan: GenerationPlan, batches: Sequence[Indices]) -> Iterator[Tensor]:
    """The noise of each batch, made piecewise in many threads: the device waits for that of the first."""
    pieces = [[b.between(start, start + NOISE_PIECE) for start in range(0, len(b), NOISE_PIECE)] for b in batches]
    made = ordered(partial(noise_of, denoiser, plan), itertools.chain.from_iterable(pieces))
    for parts in pieces:
        yield torch.cat(list(itertools.islice(made, len(parts))))


def _sample(denoiser: Denoiser, plan: GenerationPlan, noise: Tensor) -> Tensor:
    return sampler.sample(denoiser, noise, steps=plan.steps, solver=plan.solver, schedule=plan.schedule)


def _in_turn(
    denoiser: Denoiser, plan: GenerationPlan, noises: Iterator[Tensor], turn: AbstractContextManager[Any]
) -> list[np.ndarray]:
    """Fields, on the host, of batches of noise, all of which there is before it is the GPU's turn."""
    ready = [noise.pin_memory() for noise in noises]
    with turn:
        begun = [download(_sample(denoiser, plan, noise.to("cuda", non_blocking=True))) for noise in ready]
    return [there() for there in begun]
