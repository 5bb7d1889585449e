"""Splats in Parquet: the schema with its explanation, splat fields to tables, and reading any of them back.

Columns: `index`, and `splats`, one fixed-size list of float16 a picture. A row group is small, so that one picture is
a small read; pages carry checksums, so that a flipped bit is an error and not a strange cat.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.errors import UserError
from models.splats import LIMITS, MEANINGS, PARAMETERS
from pipeline import plan as plans
from pipeline.indices import Indices
from pipeline.plan import GenerationPlan, shard_name
from pipeline.store import DATA, Store, damaged

ROW_GROUP = 64
METADATA_KEY = b"splatcats"
LAYOUT = (
    "A picture is a grid of square patches; every patch is home to some splats, every splat has 9 numbers. `splats` is"
    " the array [rows, columns, splats_per_patch, 9] flattened in C order: the last axis changes fastest. Rows run"
    " downwards, columns to the right. Positions are in patches, relative to the top-left corner of the home patch."
)
FORMULAS = {
    "offset": "at a picture position x, y in patches: dx = x - column - u, dy = y - row - v",
    "distance": "q = (kx dx)^2 + 2 rho kx ky dx dy + (ky dy)^2",
    "colour": "sum of w kernel(q) (r, g, b) over sum of w, over the splats of the 3x3 patches around the position"
    " (its own patch only if neighbourhood is 1); -1 is black, 1 is full, clamp at the end",
    "weight": "w = exp(d - 4 q) window(x - column) window(y - row), with the home column and row of the splat;"
    " without windows if neighbourhood is 1",
    "window": "1 from 0 to 1, and (1 + cos(pi s)) / 2 at a distance s < 1 outside of that, 0 beyond",
    "kernel wavelet": "exp(-0.9 q) cos(6 q)",
    "kernel sharp": "with s = 2 q: 1 - min(s, 1)^16 - 4 exp(-s) sin(max(s, 1) - 1)",
    "kernel gaussian": "exp(-2 q)",
    "pixels": "sample at pixel centres: pixel (i, j) of a width x height picture is at x = (i + 0.5) / width columns,"
    " y = (j + 0.5) / height rows; average over finer samples below 8 pixels a patch",
}


def values_per_picture(plan: GenerationPlan) -> int:
    """How many numbers describe one picture."""
    return plan.rows * plan.columns * plan.splats_per_patch * len(PARAMETERS)


def schema(plan: GenerationPlan) -> pa.Schema:
    """The Parquet schema of a plan's shards; its metadata explain the numbers to whoever has only the file."""
    about = {
        "layout": LAYOUT,
        "parameters": [
            {"name": name, "meaning": MEANINGS[name], "range": LIMITS.get(name, "unbounded")} for name in PARAMETERS
        ],
        "formulas": FORMULAS,
        "plan": plan.to_dict(),
    }
    columns = [("index", pa.int64()), ("splats", pa.list_(pa.float16(), values_per_picture(plan)))]
    return pa.schema(columns, metadata={METADATA_KEY: json.dumps(about).encode()})


def to_table(plan: GenerationPlan, indices: Indices, field: np.ndarray) -> pa.Table:
    """A shard's table from its pictures' splat fields, float16 [B, H, W, K, P]."""
    assert field.dtype == np.float16
    assert field.shape == (len(indices), plan.rows, plan.columns, plan.splats_per_patch, len(PARAMETERS))
    splats = pa.FixedSizeListArray.from_arrays(pa.array(field.reshape(-1)), values_per_picture(plan))
    return pa.table([pa.array(list(indices), pa.int64()), splats], schema=schema(plan))


def write_table(table: pa.Table, file: BinaryIO) -> None:
    """Write a shard. The same table gives the same bytes with the same version of pyarrow."""
    pq.write_table(
        table,
        file,
        row_group_size=ROW_GROUP,
        compression="zstd",
        use_dictionary=False,  # nearly every number is a new one
        write_statistics=["index"],
        write_page_checksum=True,
    )


class SplatDataset:
    """A generated dataset opened for reading. Raises UserError if there is none at `url`. Can be pickled."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.plan = plans.load(self.store, GenerationPlan)

    def require(self, indices: Indices) -> None:
        """Check that these pictures exist and their shards are committed; UserError says what is wrong otherwise."""
        if indices.stop > self.plan.count:
            raise UserError(
                f"{self.store.url} has the pictures 0-{self.plan.count - 1}; there is no picture {indices.stop - 1}"
            )
        needed = {s for r in indices.ranges for s in self._shards_of(r)}
        missing = needed - {record.shard for record in self.store.committed()}
        for record in self.store.records() if missing else ():
            if record.shard in missing and self.store.exists(record.data):
                size = sum(self.store.sizes(record.data).values())
                raise UserError(
                    damaged(self.store, record.data, f"it has {size} bytes, its record says {record.bytes}")
                )
        if missing:
            raise UserError(
                f"{self.store.url} is not complete: {len(missing)} of {len(needed)} shards needed are missing,"
                f" the first is {shard_name(min(missing))}; run its generation again, or choose other --indices"
            )

    def read(self, indices: Indices) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the chosen pictures in order, some at a time: (indices, splat fields float32 [B, H, W, K, P]).

        Reads only the row groups they lie in and holds one of them. UserError names a shard that is damaged.
        """
        size = self.plan.shard_size
        for part in indices.ranges:
            for shard in self._shards_of(part):
                first = shard * size
                rows = range(max(part.start, first) - first, min(part.stop, first + size) - first)
                yield from self._read_shard(shard, rows)

    def _shards_of(self, part: range) -> range:
        return range(part[0] // self.plan.shard_size, part[-1] // self.plan.shard_size + 1)

    def _read_shard(self, shard: int, rows: range) -> Iterator[tuple[list[int], Tensor]]:
        name = f"{DATA}/{shard_name(shard)}.parquet"
        try:
            with self.store.open(name) as file:
                yield from self._read_rows(name, file, shard, rows)
        except FileNotFoundError:
            raise UserError(damaged(self.store, name, "it is not there")) from None
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk or the network, not of the contents
            raise UserError(damaged(self.store, name, " ".join(str(error).split()))) from None

    def _read_rows(self, name: str, file: BinaryIO, shard: int, rows: range) -> Iterator[tuple[list[int], Tensor]]:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        expected = schema(self.plan)
        lacking = [
            f.name
            for f in expected
            if f.name not in parquet.schema_arrow.names or parquet.schema_arrow.field(f.name).type != f.type
        ]
        if lacking:
            columns = " and ".join(f"{n!r} ({expected.field(n).type})" for n in lacking)
            raise UserError(f"{self.store.path(name)} is not a shard of splats: it has no column {columns}")
        groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        starts = [0, *itertools.accumulate(groups)]
        if starts[-1] < rows.stop:
            raise UserError(damaged(self.store, name, f"it has {starts[-1]} rows, not {rows.stop}"))
        for group in range(bisect.bisect_right(starts, rows.start) - 1, bisect.bisect_left(starts, rows.stop)):
            first, last = max(rows.start, starts[group]), min(rows.stop, starts[group + 1])
            table = parquet.read_row_group(group, columns=expected.names).slice(first - starts[group], last - first)
            indices = table.column("index").to_pylist()
            if indices != list(range(shard * self.plan.shard_size + first, shard * self.plan.shard_size + last)):
                raise UserError(damaged(self.store, name, "its column 'index' is not what the plan says"))
            flat = table.column("splats").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            shape = (self.plan.rows, self.plan.columns, self.plan.splats_per_patch, len(PARAMETERS))
            yield indices, torch.from_numpy(flat.astype(np.float32)).view(len(indices), *shape)
