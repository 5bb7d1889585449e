"""Pictures to be measured: from folders, zips and Parquet files at any fsspec URL to one uint8 array."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np

from models.errors import UserError
from pipeline.parallel import ordered
from pipeline.photos import decode, reason, reduce_area
from pipeline.sources import Record, records, survey


def load_pictures(urls: Sequence[str], side: int = 64) -> np.ndarray:
    """Read every picture at `urls` as uint8 [n, side, side, 3]: the centred square, reduced by area where larger.

    The order is that of `urls`, then of names, then of rows. Raises UserError, naming the file, where there are no
    pictures, or one cannot be decoded or is smaller than `side`: a measurement that leaves some out would mislead.
    """
    places = [survey(url) for url in urls]
    # Read as they are decoded: all of them encoded may be more than memory holds.
    found = chain.from_iterable(map(records, places))
    return np.stack(list(ordered(partial(_pixels, side=side), found)))


def _pixels(record: Record, side: int) -> np.ndarray:
    try:
        picture = decode(record.read())
    except Exception as error:  # whatever Pillow raises for bytes it cannot decode
        raise UserError(f"{record.name} cannot be read as a picture: {reason(error)}") from error
    if picture.width < side:
        raise UserError(f"{record.name} is {picture.width} pixels wide; pictures of at least {side} are needed")
    return np.asarray(reduce_area(picture, side))
