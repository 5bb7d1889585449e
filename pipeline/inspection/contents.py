"""Whether the files of a shard hold what the plan promises: splats within their bounds, pictures that decode."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import tarfile
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, UnidentifiedImageError

from models.errors import UserError, check_name, one_line
from models.splats import LIMITS, PARAMETERS
from pipeline.datasets.plan import GenerationPlan, RenderPlan, Shard, file_name
from pipeline.datasets.splat_dataset import SplatDataset, lacking_columns, schema
from pipeline.rendering.encoders import ENCODINGS
from pipeline.rendering.pyramids import TILE, dzi_tiles, level_sizes, require_tiff
from pipeline.rendering.sinks import FORMATS
from pipeline.storage.image_column import PICTURE
from pipeline.storage.store import Store

ROUNDING = 2.0**-10  # of float16, relative: what is stored may lie so far beyond a bound
_INFINITE = (-np.inf, np.inf)


def check_splats(store: Store, plan: GenerationPlan, shard: Shard) -> None:
    """UserError that says what is wrong with the contents of a shard of splats."""
    _check_table(store, plan.data(shard), schema(plan), len(shard.indices))
    low, high = torch.tensor([LIMITS.get(name, _INFINITE) for name in PARAMETERS]).T
    slack = ROUNDING * torch.maximum(low.abs(), high.abs()).nan_to_num(posinf=0.0)
    for indices, fields in SplatDataset(store, plan).read(shard.indices):
        if not torch.isfinite(fields).all():
            raise UserError(f"a number that is not finite among pictures {indices[0]}-{indices[-1]}")
        beyond = ((fields < low - slack) | (fields > high + slack)).flatten(end_dim=-2).any(dim=0)
        if beyond.any():
            name = PARAMETERS[int(beyond.nonzero()[0])]
            raise UserError(f"{name} out of its bounds {LIMITS[name]} among pictures {indices[0]}-{indices[-1]}")


def check_pictures(store: Store, plan: RenderPlan, shard: Shard) -> None:
    """UserError that says what is wrong with the contents of a shard of pictures."""
    check_name("format", plan.output, FORMATS)
    check_name("encoding", plan.encoding, ENCODINGS)  # Pillow knows more, and some of that starts other programs
    if plan.output in _PYRAMIDS:
        _PYRAMIDS[plan.output](store, plan, shard)
        return
    # An animation of many pictures is one, with the number of the first.
    expected = iter(shard.indices.between(0, 1) if plan.motion == "pictures" else shard.indices)
    for number, name, encoded in _STORED[plan.output](store, plan, shard):
        index = next(expected, None)
        if index is None or (number, name) != (index, file_name(index, plan.extension)):
            raise UserError(f"picture {number} ({name}) where {index} should be")
        if reason := picture_fault(encoded, plan.encoding, (plan.width, plan.height)):
            raise UserError(f"{name}: {reason}")
    if (index := next(expected, None)) is not None:
        raise UserError(f"{file_name(index, plan.extension)} is not there")


def _files(store: Store, plan: RenderPlan, shard: Shard) -> Iterator[tuple[int, str, bytes]]:
    """Index, file name and contents of each picture, one after another."""
    for path in plan.files(shard, store.sizes(plan.data(shard))):
        name = path.rpartition("/")[2]
        yield int(name.partition(".")[0]), name, store.read(path)


def _members(store: Store, plan: RenderPlan, shard: Shard) -> Iterator[tuple[int, str, bytes]]:
    """The same of a tar file, in which each picture is followed by what is known of it."""
    with store.open(plan.data(shard)) as file, _reading("tar"), tarfile.open(fileobj=file, mode="r:") as tar:
        names: list[str] = []
        for member in tar:
            # Links name other members; what is sparse may unpack to more than memory holds.
            if not member.isreg() or member.issparse():
                raise UserError(f"{member.name} is not a plain file")
            contents = tar.extractfile(member)
            data = contents.read() if contents else b""
            names.append(member.name)
            if len(names) % 2:
                yield int(member.name.partition(".")[0]), member.name, data
            elif member.name != f"{names[-2].partition('.')[0]}.json" or not _tells_index(data):
                raise UserError(f"{member.name} where {names[-2]}'s .json should be")
        if len(names) % 2:
            raise UserError(f"{names[-1]}'s .json is not there")


def _tells_index(text: bytes) -> bool:
    """Whether a text is a JSON object that has an `index`."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and "index" in facts


def _rows(store: Store, plan: RenderPlan, shard: Shard) -> Iterator[tuple[int, str, bytes]]:
    """The same of a Parquet file."""
    name = plan.data(shard)
    rows = 1 if plan.motion == "pictures" else len(shard.indices)
    _check_table(store, name, pa.schema([("index", pa.int64()), ("image", PICTURE)]), rows)
    with store.open(name) as file, _reading("Parquet"):
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        for group in range(parquet.num_row_groups):
            for row in parquet.read_row_group(group, columns=["index", "image"]).to_pylist():
                image = row["image"] or {}
                yield row["index"], image.get("path") or "", image.get("bytes") or b""


def _check_tiff(store: Store, plan: RenderPlan, shard: Shard) -> None:
    """The pages have the planned sizes, every tile of every page decodes."""
    tifffile = require_tiff()
    planned = [(height, width, 3) for width, height in level_sizes(plan, smallest=TILE)]
    for name in plan.files(shard, store.sizes(plan.data(shard))):
        with store.open(name) as file, _reading("TIFF"), tifffile.TiffFile(file) as tiff:
            found = [page.shape for page in tiff.pages]
            if found != planned:
                raise UserError(f"{name}: its pages are {found}, not {planned}")
            for page in tiff.pages:
                for _ in page.segments(maxworkers=1, buffersize=1 << 24):  # few are held at once
                    pass


def _check_dzi(store: Store, plan: RenderPlan, shard: Shard) -> None:
    """The description names the planned size; every tile is there, has its size and decodes."""
    there = set(plan.files(shard, store.sizes(plan.data(shard))))
    for index in shard.indices:
        for name, size in dzi_tiles(plan, shard.name, index):
            if name not in there:
                raise UserError(f"{name} is not there")
            if reason := picture_fault(store.read(name), plan.encoding, size):
                raise UserError(f"{name}: {reason}")
            there.remove(name)
        description = f"{shard.name}/{index:08d}.dzi"
        if description not in there:
            raise UserError(f"{description} is not there")
        if f'<Size Width="{plan.width}" Height="{plan.height}"/>'.encode() not in store.read(description):
            raise UserError(f"{description}: does not name the size {plan.width}x{plan.height}")
        there.remove(description)
    if there:
        raise UserError(f"{min(there)} is no tile of such a picture")


_STORED = {"files": _files, "webdataset": _members, "parquet": _rows}
_PYRAMIDS = {"tiff": _check_tiff, "dzi": _check_dzi}


def _check_table(store: Store, name: str, expected: pa.Schema, rows: int) -> None:
    """UserError unless a file is Parquet with these columns and so many rows."""
    with store.open(name) as file, _reading("Parquet"):
        parquet = pq.ParquetFile(file)
    if lacking := lacking_columns(parquet.schema_arrow, expected):
        raise UserError(f"has no column {lacking}")
    if parquet.metadata.num_rows != rows:
        raise UserError(f"has {parquet.metadata.num_rows} rows, not {rows}")


@contextlib.contextmanager
def _reading(format: str) -> Iterator[None]:
    """Raise what decoders say of a file's contents as a UserError; an OSError of the disk or the network stays one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders meet damaged bytes with every kind of exception
        # A damaged offset may lead to a place that no file has, EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(f"cannot be read as {format} ({one_line(error)})") from None


def picture_fault(encoded: bytes, encoding: str, size: tuple[int, int] | None) -> str:
    """Why an encoded picture does not decode, or is not of `size` (width, height); empty if all is well."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        # Pillow's guard against bombs stays on; it lets pass what the plan says.
        Image.MAX_IMAGE_PIXELS = max(limit or 0, math.prod(size or ()))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(encoded), formats=["ppm" if encoding == "raw" else encoding])
            if size and picture.size != size:
                return f"is {picture.width}x{picture.height}, not {size[0]}x{size[1]}"
            for frame in range(getattr(picture, "n_frames", 1)):
                picture.seek(frame)
                picture.load()
    except UnidentifiedImageError:
        return f"is no {encoding} picture"
    except Exception as error:  # decoders meet damaged bytes with every kind of exception
        return f"does not decode ({type(error).__name__}: {one_line(error)})"
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return ""
