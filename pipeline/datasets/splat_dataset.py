"""Splats in Parquet: the schema with its explanation, splat fields to tables, and reading any of them back.

Columns: `index`, and those of the plan's precision (see `codec`). A row group is small, so that one picture
is a small read; pages carry checksums, so that a flipped bit is an error and not a strange cat.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from models.errors import UserError, check_name, one_line
from models.splats import LIMITS, MEANINGS, PARAMETERS
from pipeline.datasets import plan_file, records
from pipeline.datasets.codec import CODECS, Shape
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import GenerationPlan, shard_name
from pipeline.datasets.records import disagreement
from pipeline.storage.store import Store

ROW_GROUP = 64
# About 10 KB each; and 1 MB each or less.
FOOTERS_KEPT, ROW_GROUPS_KEPT = 256, 8
METADATA_KEY = b"splatcats"
LAYOUT = (
    "A picture is a grid of square patches; every patch is home to some splats, every splat has 9 numbers. Rows run"
    " downwards, columns to the right. Positions are in patches, relative to the top-left corner of the home patch."
)
FORMULAS = {
    "offset": "at a picture position x, y in patches: dx = x - column - u, dy = y - row - v",
    "distance": "q = (kx dx)^2 + 2 rho kx ky dx dy + (ky dy)^2",
    "colour": "sum of w kernel(q) (r, g, b) over sum of w, over the splats of the 3x3 patches around the position"
    " (its own patch only if neighbourhood is 1); -1 is black, 1 is full, clamp at the end",
    "weight": "w = exp(d - 4 q) window(x - column) window(y - row), with the home column and row of the splat;"
    " without windows if neighbourhood is 1",
    "window": "1 from 0 to 1, and ((1 + cos(pi s)) / 2)^2 at a distance s < 1 outside of that, 0 beyond",
    "kernel wavelet": "exp(-0.9 q) cos(6 q)",
    "kernel sharp": "with s = 2 q: 1 - min(s, 1)^16 - 4 exp(-s) sin(max(s, 1) - 1)",
    "kernel gaussian": "exp(-2 q)",
    "pixels": "sample at pixel centres: pixel (i, j) of a width x height picture is at x = (i + 0.5) / width columns,"
    " y = (j + 0.5) / height rows; average over finer samples below 8 pixels a patch",
}


def layout(plan: GenerationPlan) -> str:
    """Where the numbers of a picture stand in the columns of its row, in words."""
    return f"{LAYOUT} {CODECS[plan.precision].explain()['layout']}"


def schema(plan: GenerationPlan) -> pa.Schema:
    """The Parquet schema of a plan's shards; its metadata explain the numbers to whoever has only the file."""
    codec = CODECS[plan.precision]
    about = {
        **codec.explain(),
        "layout": layout(plan),
        "parameters": [
            {"name": name, "meaning": MEANINGS[name], "range": LIMITS.get(name, "unbounded")} for name in PARAMETERS
        ],
        "formulas": FORMULAS,
        "plan": plan.to_dict(),
    }
    columns = [pa.field("index", pa.int64()), *codec.columns(Shape.of(plan))]
    return pa.schema(columns, metadata={METADATA_KEY: json.dumps(about).encode()})


def to_table(plan: GenerationPlan, indices: Indices, field: np.ndarray) -> pa.Table:
    """A table of pictures from their splat fields [B, H, W, K, P], of finite numbers."""
    assert field.shape == (len(indices), *Shape.of(plan).field)
    columns = CODECS[plan.precision].encode(field)
    return pa.table([pa.array(list(indices), pa.int64()), *columns], schema=schema(plan))


def write_table(table: pa.Table, file: BinaryIO) -> None:
    """Write a shard. The same table gives the same bytes with the same version of pyarrow."""
    # Of a small integer's bytes all but one are the same in all: apart from that one they cost nothing.
    integers = [
        f.name for f in table.schema if pa.types.is_fixed_size_list(f.type) and pa.types.is_integer(f.type.value_type)
    ]
    pq.write_table(
        table,
        file,
        row_group_size=ROW_GROUP,
        compression="zstd",
        use_dictionary=False,  # nearly every number is a new one
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in integers},
        write_statistics=["index"],
        write_page_checksum=True,
    )


def lacking_columns(found: pa.Schema, expected: pa.Schema) -> str:
    """The columns, and their types, of which `found` does not have exactly one; empty if it has all."""
    places = {field.name: found.get_field_index(field.name) for field in expected}  # -1 for none and for several
    lacking = [f for f in expected if places[f.name] < 0 or found.field(places[f.name]).type != f.type]
    return " and ".join(f"{field.name!r} ({field.type})" for field in lacking)


def column_with_gaps(table: pa.Table) -> str:
    """The first column that lacks a value, or a number within a list; empty if none does."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count or (pa.types.is_fixed_size_list(column.type) and pc.list_flatten(column).null_count):
            return str(name)
    return ""


class SplatDataset:
    """A generated dataset opened for reading. Can be pickled.

    Keeps the footers of the files it has read and a few row groups, so that neighbours are read once.
    """

    def __init__(self, store: Store, plan: GenerationPlan) -> None:
        check_name(f"precision of {store.url}:", plan.precision, CODECS)
        self.store, self.plan = store, plan
        self._footer = functools.lru_cache(FOOTERS_KEPT)(self._read_footer)
        self._row_group = functools.lru_cache(ROW_GROUPS_KEPT)(self._read_row_group)

    @classmethod
    def open(cls, url: str) -> SplatDataset:
        """The dataset at an fsspec URL. Raises UserError if there is none."""
        store = Store(url)
        return cls(store, plan_file.load(store, GenerationPlan))

    def __reduce__(self) -> tuple[type, tuple[Store, GenerationPlan]]:
        return SplatDataset, (self.store, self.plan)

    def require(self, indices: Indices) -> None:
        """Check that these pictures exist and their shards are committed; UserError says what is wrong otherwise."""
        if indices.stop > self.plan.count:
            raise UserError(
                f"{self.store.url} has the pictures 0-{self.plan.count - 1}; there is no picture {indices.stop - 1}"
            )
        # Ranges, never single numbers: a plan may speak of more shards than memory holds.
        needed = Indices.joining(self._shards_of(part) for part in indices.ranges)
        there = {record.shard for record in records.committed(self.store) if record.shard in needed}
        if len(there) == len(needed):
            return
        for record in records.read(self.store):
            if record.shard not in needed or record.shard in there:
                continue
            name = self.plan.data(self.plan.shard(record.shard))
            if self.store.exists(name):
                size = sum(self.store.sizes(name).values())
                reason = disagreement(record, self.plan) or f"it has {size} bytes, its record says {record.bytes}"
                raise UserError(damaged(self.store, name, reason))
        first = next(shard for shard in needed if shard not in there)
        raise UserError(
            f"{self.store.url} is not complete: {len(needed) - len(there)} of {len(needed)} shards needed are missing,"
            f" the first is {shard_name(first)}; run its generation again, or choose other --indices"
        )

    def read(self, indices: Indices) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the chosen pictures in order, some at a time: (indices, splat fields float32 [B, H, W, K, P]).

        Reads only the row groups they lie in and holds few of them. UserError names a shard that is missing or damaged.
        """
        codec, shape = CODECS[self.plan.precision], Shape.of(self.plan)
        for part in indices.ranges:
            place = part.start
            while place < part.stop:
                held, table = self._holding(place)
                stop = min(part.stop, held.stop)
                field = codec.decode(table.slice(place - held.start, stop - place), shape)
                yield list(range(place, stop)), torch.from_numpy(field)
                place = stop

    def _shards_of(self, part: range) -> range:
        return range(part[0] // self.plan.shard_size, part[-1] // self.plan.shard_size + 1)

    def _holding(self, index: int) -> tuple[range, pa.Table]:
        """The row group that picture `index` is in: the pictures it has, and its table."""
        shard, row = divmod(index, self.plan.shard_size)
        _, starts = self._footer(shard)
        return self._row_group(shard, bisect.bisect_right(starts, row) - 1)

    def _read_footer(self, shard: int) -> tuple[pq.FileMetaData, list[int]]:
        """The footer of a shard's file, and the rows at which its row groups start, and end."""
        with self._opened(shard) as (name, file):
            footer = pq.ParquetFile(file).metadata
            if lacking := lacking_columns(footer.schema.to_arrow_schema(), schema(self.plan)):
                raise UserError(f"{self.store.path(name)} is not a shard of splats: it has no column {lacking}")
            groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
            starts = [0, *itertools.accumulate(groups)]
            rows = len(self.plan.shard(shard).indices)
            if starts[-1] != rows:
                raise UserError(damaged(self.store, name, f"it has {starts[-1]} rows, not {rows}"))
        return footer, starts

    def _read_row_group(self, shard: int, group: int) -> tuple[range, pa.Table]:
        footer, starts = self._footer(shard)
        first = shard * self.plan.shard_size
        held = range(first + starts[group], first + starts[group + 1])
        with self._opened(shard) as (name, file):
            parquet = pq.ParquetFile(file, metadata=footer, page_checksum_verification=True, pre_buffer=True)
            table = parquet.read_row_group(group, columns=schema(self.plan).names)
            if table.column("index").to_pylist() != list(held):
                raise UserError(damaged(self.store, name, "its column 'index' is not what the plan says"))
            if gap := column_with_gaps(table):
                raise UserError(damaged(self.store, name, f"its column {gap!r} has empty places"))
        return held, table

    @contextlib.contextmanager
    def _opened(self, shard: int) -> Iterator[tuple[str, BinaryIO]]:
        """A shard's name and file; a UserError names it where it is missing, or its contents cannot be read."""
        name = self.plan.data(self.plan.shard(shard))
        try:
            with self.store.open(name, buffered=False) as file:
                yield name, file
        except FileNotFoundError:
            raise UserError(
                f"{self.store.path(name)} is missing: run its generation again, which makes what is missing"
            ) from None
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk or the network, not of the contents
            raise UserError(damaged(self.store, name, one_line(error))) from None


def damaged(store: Store, name: str, reason: str) -> str:
    """The one sentence about a damaged file and what to do about it."""
    return (
        f"{store.path(name)} is damaged ({reason}): python -m jobs.verify {store.url} --repair removes it,"
        " then run the command that made it again"
    )
