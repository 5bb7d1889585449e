"""The prepared set as arrays: every picture decoded once, in memory or in memory-mapped files."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models.errors import UserError
from pipeline.execution.progress import Ticker
from pipeline.execution.threads import ordered
from pipeline.photographs import prepared
from pipeline.photographs.photo import SIDE_MIN, reason, reduce_area
from pipeline.photographs.sources import locate
from pipeline.storage.remote import open_within, reading

REMEDY = "delete the set and run python -m jobs.prepare again"


@dataclass(frozen=True)
class TrainingSet:
    """Decoded photographs, RGB, uint8."""

    # [N, 64, 64, 3]
    small: np.ndarray
    # [M, detail, detail, 3]: those that are kept at `detail` pixels or more, reduced by area
    large: np.ndarray
    # int64 [M]: the rows of `small` that `large` shows
    large_rows: np.ndarray


@dataclass(frozen=True)
class _Job:
    """One photograph to decode: `image64` into `small[row]` and, unless None, `image` into `large[large_row]`."""

    where: str
    row: int
    large_row: int
    image64: bytes
    image: bytes | None


def load(
    url: str,
    *,
    heldout: bool,
    detail: int | None,
    stripe: tuple[int, int] = (0, 1),
    memory_bytes: int | None = None,
) -> TrainingSet:
    """Decode the training or the held-out photographs of the prepared set at `url`.

    `stripe` = (r, w) takes the rows r, r + w, r + 2w, ... of the split: w workers share it without overlap, in an
    order that depends on the set alone. `detail` None leaves `large` empty. Arrays of more than `memory_bytes` live
    in memory-mapped files without a name, which vanish with the process however it ends (POSIX).

    Raises UserError where there is no prepared set, one of a later format, a damaged file, or no photograph, and where
    the store fails to answer.
    """
    fs, root, record = check(url)
    rank, workers = stripe
    assert 0 <= rank < workers
    split = "held-out" if heldout else "training"

    sides = [_sides(fs, root, url, file, heldout) for file in record["files"]]
    chosen = _stripe(sides, rank, workers)
    kept = np.concatenate([side[side > 0] for side in chosen])
    large_rows = np.flatnonzero(kept >= detail) if detail else np.empty(0, np.int64)
    if not len(kept):
        share = f" for worker {rank + 1} of {workers}" if workers > 1 else ""
        raise UserError(f"{url} has no {split} photographs{share}; prepare more of them")

    shapes: dict[str, tuple[int, ...]] = {
        "small": (len(kept), SIDE_MIN, SIDE_MIN, 3),
        "large": (len(large_rows), detail or 0, detail or 0, 3),
    }
    if memory_bytes is None or sum(int(np.prod(shape)) for shape in shapes.values()) <= memory_bytes:
        arrays = {name: np.empty(shape, np.uint8) for name, shape in shapes.items()}
    else:
        arrays = _mapped(shapes)
    training_set = TrainingSet(**arrays, large_rows=large_rows)

    ticker = Ticker(f"{split} photographs decoded", len(kept))
    jobs = _jobs(fs, root, url, record["files"], chosen, detail)
    for done, _ in enumerate(ordered(partial(_decode, training_set), jobs), 1):
        ticker.step(done)
    return training_set


def check(url: str) -> tuple[Any, str, dict[str, Any]]:
    """Find the prepared set at `url`: its file system, path there, and record. Raises UserError where there is none."""
    fs, root = locate(url)
    record = prepared.read_record(fs, root, url)
    if record is None:
        raise UserError(f"{url} holds no prepared set; make one: python -m jobs.prepare --photos ... --out {url}")
    return fs, root, record


@contextmanager
def _opened(fs: Any, root: str, url: str, file: dict[str, Any]) -> Iterator[pq.ParquetFile]:
    """A Parquet file of the set; whatever is wrong with it, or with its store, is a UserError that names it."""
    try:
        with open_within(reading, fs, f"{root}/{file['name']}", f"{url}/{file['name']}") as handle:
            parquet = pq.ParquetFile(handle)
            if parquet.metadata.num_rows != file["rows"]:
                raise OSError(f"{parquet.metadata.num_rows} rows instead of {file['rows']}")
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{url}/{file['name']} is damaged ({reason(error)}); {REMEDY}") from error


def _sides(fs: Any, root: str, url: str, file: dict[str, Any], heldout: bool) -> np.ndarray:
    """The kept side of every row of a file, 0 for those of the other split."""
    with _opened(fs, root, url, file) as parquet:
        table = parquet.read(columns=["heldout", "side"])
    return np.where(table["heldout"].to_numpy() == heldout, table["side"].to_numpy(), 0)


def _stripe(sides: list[np.ndarray], rank: int, workers: int) -> list[np.ndarray]:
    """The same sides with 0 also for the rows of the split that belong to other workers."""
    chosen, before = [], 0
    for side in sides:
        place = before + np.cumsum(side > 0) - 1
        chosen.append(np.where(place % workers == rank, side, 0))
        before += int((side > 0).sum())
    return chosen


def _mapped(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    # The files lose their names at once; the mapping keeps the bytes until the process ends, so that even a killed one
    # leaves nothing behind.
    with tempfile.TemporaryDirectory(prefix="splatcats-") as folder:
        return {
            # An empty array cannot be mapped.
            kind: np.lib.format.open_memmap(Path(folder, f"{kind}.npy"), "w+", np.uint8, shape)
            if all(shape)
            else np.empty(shape, np.uint8)
            for kind, shape in shapes.items()
        }


def _jobs(
    fs: Any, root: str, url: str, files: list[dict[str, Any]], chosen: list[np.ndarray], detail: int | None
) -> Iterator[_Job]:
    row = large_row = 0
    for file, side in zip(files, chosen, strict=True):
        if not side.any():
            continue
        with _opened(fs, root, url, file) as parquet:
            first = 0
            for group in range(parquet.num_row_groups):
                num_rows = parquet.metadata.row_group(group).num_rows
                rows = np.flatnonzero(side[first : first + num_rows])
                if len(rows):
                    has_large = detail is not None and side[first : first + num_rows].max() >= detail
                    columns = ["image64", "image"] if has_large else ["image64"]
                    table = parquet.read_row_group(group, columns=columns).take(rows)
                    for index, pictures in zip(rows + first, table.to_pylist(), strict=True):
                        is_large = detail is not None and side[index] >= detail
                        image = pictures["image"]["bytes"] if is_large else None
                        where = f"{url}/{file['name']} row {index}"
                        yield _Job(where, row, large_row, pictures["image64"]["bytes"], image)
                        row, large_row = row + 1, large_row + is_large
                first += num_rows


def _decode(training_set: TrainingSet, job: _Job) -> None:
    try:
        training_set.small[job.row] = _pixels(job.image64, SIDE_MIN)
        if job.image is not None:
            training_set.large[job.large_row] = _pixels(job.image, training_set.large.shape[1])
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{job.where} is damaged ({reason(error)}); {REMEDY}") from error


def _pixels(png: bytes, side: int) -> np.ndarray:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        return np.asarray(reduce_area(picture, side))
