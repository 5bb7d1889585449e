"""Pictures to be measured: from folders, zips, Parquet files and prepared sets at any fsspec URL to uint8 arrays."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.errors import UserError
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.threads import ordered
from pipeline.photographs import prepared
from pipeline.photographs.photo import decode, reason, reduce_area
from pipeline.photographs.preparation import prepare
from pipeline.photographs.sources import Record, locate, records, survey
from pipeline.training import training_set

# Beyond this, decoded photographs lie in memory-mapped files.
MEMORY_BYTES = 1 << 30

# Part of a set of generated pictures: the pictures, or where their splats are.
Chunk = np.ndarray | tuple[SplatDataset, Indices]


@dataclass(frozen=True)
class Photographs:
    """Photographs as uint8 RGB: those trained on and those held out at 64 px, and some of both at larger sizes."""

    # [n, 64, 64, 3] and [h, 64, 64, 3]
    training: np.ndarray
    heldout: np.ndarray
    # By side: [m, side, side, 3], in a shuffled order
    large: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Source:
    """A set of generated pictures to weigh: uint8 [n, 64, 64, 3], or the first `count` of stored splats."""

    label: str
    url: str
    count: int
    contents: np.ndarray | SplatDataset

    @property
    def dataset(self) -> SplatDataset | None:
        """The splats, if that is what it is."""
        return self.contents if isinstance(self.contents, SplatDataset) else None

    def chunks(self, size: int, count: int | None = None) -> Iterator[Chunk]:
        """The first `count` pictures, or all, in parts of `size`."""
        stop = self.count if count is None else count
        for start in range(0, stop, size):
            part = slice(start, min(start + size, stop))
            if isinstance(self.contents, SplatDataset):
                yield self.contents, self.contents.plan.pictures.between(part.start, part.stop)
            else:
                yield self.contents[part]


def count_photographs(urls: Sequence[str]) -> int:
    """How many photographs `load_photographs` finds at these URLs, or more where some are equal; reads none of them."""
    record = _prepared(urls)
    return record["kept"] if record else sum(survey(url).num_records for url in urls)


def load_photographs(urls: Sequence[str], *, large: Mapping[int, int], seed: int) -> Photographs:
    """Read a prepared set, or photographs at any URLs, which are then prepared as for training in a temporary folder.

    So the crop, exact duplicates and the 5 % held out are the same whichever way, for sets prepared without a `--box`
    and by the same decoders. `large` says how many pictures of which side to keep beside the small ones, at most:
    reduced by area from those kept at that side or more, chosen by `seed`. UserError where there is no photograph,
    and, naming the file, where one cannot be decoded or is smaller than 64 px: a measurement that leaves some out would
    mislead. A prepared set told of such files when it was made.
    """
    with contextlib.ExitStack() as stack:
        url = urls[0]
        if not _prepared(urls):
            print("preparing the photographs; jobs.prepare does that once for many evaluations", flush=True)
            url = stack.enter_context(tempfile.TemporaryDirectory(prefix="splatcats-"))
            with contextlib.redirect_stdout(io.StringIO()):
                record = prepare(list(urls), url)
            if record["unreadable"]:
                first = Path(url, prepared.UNREADABLE).read_text().splitlines()[0]
                raise UserError(f"{record['unreadable']:,} photographs cannot be used; the first: {first}")
        _, _, record = training_set.check(url)
        kept = max(map(int, record["sides"]))
        chosen: dict[int, np.ndarray] = {}
        for side, count in sorted(large.items()):
            if side <= kept or not chosen:
                known, unknown = (
                    training_set.load(url, heldout=heldout, detail=side, memory_bytes=MEMORY_BYTES)
                    for heldout in (False, True)
                )
                chosen[side] = _choose(known.large, unknown.large, count, seed)
            else:
                chosen[side] = np.empty((0, side, side, 3), np.uint8)
    return Photographs(known.small, unknown.small, chosen)


def _choose(training: np.ndarray, heldout: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` pictures of both together; only these are read, should the arrays be mapped files."""
    order = torch.randperm(len(training) + len(heldout), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = np.empty((len(order), *training.shape[1:]), np.uint8)
    for place, row in enumerate(order.tolist()):
        chosen[place] = training[row] if row < len(training) else heldout[row - len(training)]
    return chosen


def _prepared(urls: Sequence[str]) -> dict[str, Any] | None:
    """The record of the prepared set, if that is what is there."""
    if len(urls) > 1:
        return None
    fs, root = locate(urls[0])
    return prepared.read_record(fs, root, urls[0])


def load_pictures(url: str, side: int = 64, count: int | None = None) -> np.ndarray:
    """Read the pictures at `url` as uint8 [n, side, side, 3]: the centred square, reduced by area where larger.

    In the order of names, then of rows; the first `count` if given. Raises UserError, naming the file, where there are
    no pictures or too few, or one cannot be decoded or is smaller than `side`.
    """
    place = survey(url)
    if count is not None and place.num_records < count:
        raise UserError(f"{url} has {place.num_records:,} pictures, not {count:,}")
    # Read as they are decoded: all of them encoded may be more than memory holds.
    return np.stack(list(ordered(partial(_pixels, side=side), islice(records(place), count))))


def _pixels(record: Record, side: int) -> np.ndarray:
    try:
        picture = decode(record.read())
    except UserError:  # the store fails to answer
        raise
    except Exception as error:  # whatever Pillow raises for bytes it cannot decode
        raise UserError(f"{record.name} cannot be read as a picture: {reason(error)}") from error
    if picture.width < side:
        raise UserError(f"{record.name} is {picture.width} pixels wide; pictures of at least {side} are needed")
    return np.asarray(reduce_area(picture, side))
