"""Rollouts kept beside a dataset: what the network saw and answered at every step, for a few pictures.

ROOT/rollout.parquet has one row a network call: `index` of the picture, `step` from 0, `t` from 0 (noise) to 1 (clean),
`noisy`, the picture [3, Y, X] that the network saw, and `splats`, those it answered, laid out as in the dataset's
shards, both as float16 flattened in C order. The last step's splats are the dataset's, but for the last bits where
other pictures were in the batch. The file explains itself in its schema metadata, as the shards do.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.errors import UserError, one_line
from pipeline.datasets.codec import Shape, flat_values, lists
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan
from pipeline.datasets.splat_dataset import (
    METADATA_KEY,
    SplatDataset,
    column_with_gaps,
    lacking_columns,
    schema,
)
from pipeline.storage.store import Store

ROLLOUTS = "rollout.parquet"
COLUMNS = {"index": pa.int64(), "step": pa.int32(), "t": pa.float32()}


@dataclass(frozen=True)
class Rollout:
    """One picture: its steps: times [S], what the network saw [S, 3, Y, X], splat fields [S, H, W, K, P], float32."""

    index: int
    times: list[float]
    noisy: Tensor
    fields: Tensor


def write(store: Store, plan: GenerationPlan, rollouts: list[Rollout]) -> None:
    """Write the file, replacing an earlier one. The same rollouts give the same bytes."""
    columns = _columns(plan, *rollouts[0].noisy.shape[-2:])
    explained = schema(dataclasses.replace(plan, precision="float16")).metadata[METADATA_KEY]
    about = {METADATA_KEY: explained, b"noisy_shape": str(list(rollouts[0].noisy.shape[1:])).encode()}
    table = pa.Table.from_batches([_batch(r, columns) for r in rollouts]).replace_schema_metadata(about)
    with store.create(ROLLOUTS) as output:
        pq.write_table(
            table,
            output.file,
            row_group_size=max(len(r.times) for r in rollouts),
            compression="zstd",
            use_dictionary=False,
            write_statistics=["index"],
            write_page_checksum=True,
        )


def _batch(rollout: Rollout, columns: dict[str, pa.DataType]) -> pa.RecordBatch:
    steps = len(rollout.times)
    plain = {"index": [rollout.index] * steps, "step": range(steps), "t": rollout.times}
    arrays = [pa.array(plain[name], type) for name, type in COLUMNS.items()]
    arrays += [lists(values.half().cpu().numpy()) for values in (rollout.noisy, rollout.fields)]
    return pa.record_batch(arrays, schema=pa.schema(list(columns.items())))


def read(source: SplatDataset, indices: Indices) -> Iterator[Rollout]:
    """The kept rollouts of the chosen pictures, in order, one in memory; they must be there, see `require`."""
    plan = source.plan
    for index in indices:
        table, sides = _read(source, index)
        fields = flat_values(table, "splats").astype(np.float32).reshape(table.num_rows, *Shape.of(plan).field)
        noisy = flat_values(table, "noisy").astype(np.float32).reshape(table.num_rows, 3, *sides)
        yield Rollout(index, table["t"].to_pylist(), torch.from_numpy(noisy), torch.from_numpy(fields))


def kept(source: SplatDataset) -> Indices:
    """The pictures whose rollouts were kept; UserError that says how to keep some if there are none."""
    table, _ = _read(source)
    return Indices.of(table["index"].to_pylist())


def require(source: SplatDataset, indices: Indices) -> None:
    """Check that the rollouts of these pictures were kept; UserError names those that were."""
    there = kept(source)
    lacking = next((index for index in indices if index not in there), None)
    if lacking is not None:
        raise UserError(
            f"{source.store.path(ROLLOUTS)} has the pictures {there}, not {lacking}: choose other --indices, or"
            " generate again with --keep-rollout"
        )


def _columns(plan: GenerationPlan, height: int, width: int) -> dict[str, pa.DataType]:
    """The types of the columns, for pictures of that size."""
    splats = pa.list_(pa.float16(), math.prod(Shape.of(plan).field))
    return {**COLUMNS, "noisy": pa.list_(pa.float16(), 3 * height * width), "splats": splats}


def _read(source: SplatDataset, index: int | None = None) -> tuple[pa.Table, tuple[int, int]]:
    """The indices of all rows, or the steps of one picture in order; and the size of what the network saw.

    UserError if the file is not there or damaged.
    """
    try:
        with source.store.open(ROLLOUTS) as file:
            found = pq.read_schema(file)
            height, width = _sides(found)
            if lacking := lacking_columns(found, pa.schema(list(_columns(source.plan, height, width).items()))):
                raise ValueError(f"it has no column {lacking}")
            file.seek(0)
            if index is None:
                table = pq.read_table(file, columns=["index"], page_checksum_verification=True)
            else:
                columns, chosen = [*COLUMNS, "noisy", "splats"], pc.field("index") == index
                table = pq.read_table(file, columns=columns, filters=chosen, page_checksum_verification=True)
                table = table.sort_by("step")
        if gap := column_with_gaps(table):
            raise ValueError(f"its column {gap!r} has empty places")
        if not table.num_rows or (index is not None and table["step"].to_pylist() != list(range(table.num_rows))):
            raise ValueError("it lacks steps")
    except FileNotFoundError:
        raise UserError(f"{source.store.url} has no {ROLLOUTS}: run its generation again with --keep-rollout") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk or the network, not of the contents
        raise UserError(
            f"{source.store.path(ROLLOUTS)} is damaged ({one_line(error)}): run its generation again with"
            " --keep-rollout"
        ) from None
    return table, (height, width)


def _sides(schema: pa.Schema) -> tuple[int, int]:
    """Height and width of the pictures that the network saw, from the file's metadata; ValueError if not there."""
    shape = re.fullmatch(rb"\[3, ([0-9]{1,5}), ([0-9]{1,5})\]", (schema.metadata or {}).get(b"noisy_shape", b""))
    if shape is None:
        raise ValueError("its metadata do not give the shape of `noisy`")
    return int(shape[1]), int(shape[2])
