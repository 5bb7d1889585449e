"""Whether the files of a shard hold what the plan promises: splats within their bounds, pictures that decode."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from models.errors import UserError
from models.splats import LIMITS, PARAMETERS
from pipeline.dataset import SplatDataset, schema
from pipeline.plan import GenerationPlan, RenderPlan, Shard, file_name
from pipeline.store import Store

ROUNDING = 2.0**-10  # of float16, relative: what is stored may lie so far beyond a bound
_INFINITE = (-np.inf, np.inf)


def check_splats(store: Store, plan: GenerationPlan, shard: Shard) -> None:
    """UserError that says what is wrong with the contents of a shard of splats."""
    _check_table(store, plan.data(shard), schema(plan), len(shard.indices))
    low, high = torch.tensor([LIMITS.get(name, _INFINITE) for name in PARAMETERS]).T
    slack = ROUNDING * torch.maximum(low.abs(), high.abs()).nan_to_num(posinf=0.0)
    for indices, fields in SplatDataset(store.url).read(shard.indices):
        if not torch.isfinite(fields).all():
            raise UserError(f"a number that is not finite among pictures {indices[0]}-{indices[-1]}")
        beyond = ((fields < low - slack) | (fields > high + slack)).flatten(end_dim=-2).any(dim=0)
        if beyond.any():
            name = PARAMETERS[int(beyond.nonzero()[0])]
            raise UserError(f"{name} out of its bounds {LIMITS[name]} among pictures {indices[0]}-{indices[-1]}")


def check_pictures(store: Store, plan: RenderPlan, shard: Shard) -> None:
    """UserError that says what is wrong with the contents of a shard of pictures."""
    pictures = _stored_pictures(store, plan, shard)
    for index, (number, name, encoded) in zip(shard.indices, pictures, strict=True):
        if (number, name) != (index, file_name(index, plan.extension)):
            raise UserError(f"picture {number} ({name}) where {index} should be")
        if reason := _picture_fault(encoded, plan):
            raise UserError(f"{name}: {reason}")


def _stored_pictures(store: Store, plan: RenderPlan, shard: Shard) -> Iterator[tuple[int, str, bytes]]:
    """Index, file name and contents of each picture, one after another."""
    if plan.output == "files":
        for index in shard.indices:
            name = file_name(index, plan.extension)
            try:
                yield index, name, store.read(f"{shard.name}/{name}")
            except FileNotFoundError:
                raise UserError(f"{name} is not there") from None
        return
    name = plan.data(shard)
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    _check_table(store, name, pa.schema([("index", pa.int64()), ("image", picture)]), len(shard.indices))
    with store.open(name) as file, _parquet_errors():
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        for group in range(parquet.num_row_groups):
            for row in parquet.read_row_group(group, columns=["index", "image"]).to_pylist():
                image = row["image"] or {}
                yield row["index"], image.get("path") or "", image.get("bytes") or b""


def _check_table(store: Store, name: str, expected: pa.Schema, rows: int) -> None:
    """UserError unless a file is Parquet with these columns and so many rows."""
    with store.open(name) as file, _parquet_errors():
        parquet = pq.ParquetFile(file)
    found = parquet.schema_arrow
    lacking = [f for f in expected if f.name not in found.names or found.field(f.name).type != f.type]
    if lacking:
        raise UserError(f"has no column {' and '.join(f'{f.name} ({f.type})' for f in lacking)}")
    if parquet.metadata.num_rows != rows:
        raise UserError(f"has {parquet.metadata.num_rows} rows, not {rows}")


@contextlib.contextmanager
def _parquet_errors() -> Iterator[None]:
    """Raise what pyarrow says of a file's contents as a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk or the network
        raise UserError(f"cannot be read as Parquet ({' '.join(str(error).split())})") from None


def _picture_fault(encoded: bytes, plan: RenderPlan) -> str:
    """Why an encoded picture is not what the plan says; empty if it is."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        # Pillow's guard against bombs stays on; it lets pass what the plan says.
        Image.MAX_IMAGE_PIXELS = max(limit or 0, plan.width * plan.height)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(encoded), formats=[plan.encoding])
            if picture.size != (plan.width, plan.height):
                return f"is {picture.width}x{picture.height}, not {plan.width}x{plan.height}"
            picture.load()
    except Exception as error:  # decoders meet damaged bytes with every kind of exception
        return f"does not decode ({type(error).__name__}: {' '.join(str(error).split())})"
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return ""
