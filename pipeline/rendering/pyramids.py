"""Pictures too large to be held: pyramids of tiles, drawn band by band, as tiled BigTIFF or as Deep Zoom.

Every level is drawn from the splats at its own size, which costs a third more drawing than the largest alone and
needs neither a second pass over the pixels nor room for them: a row of tiles is what is held.

TIFF goes through tifffile: it takes tiles already encoded, one at a time, so that they are compressed by our threads;
it is pure Python on numpy. pyvips would need a system library, and wants to pull pixels where this pushes them. Tiles
of JPEG would need imagecodecs as well, and Deep Zoom has them, so TIFF is without loss.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from models.errors import UserError
from pipeline.datasets.plan import RenderPlan
from pipeline.execution.threads import ordered
from pipeline.rendering.drawing import bands, facts_of, fields_of, frame_of, look_of
from pipeline.rendering.encoders import ENCODINGS, SOFTWARE, Facts, Picture, describe
from pipeline.rendering.framing import Frame
from pipeline.rendering.press import Press, Written
from pipeline.storage.store import measured

TILE = 512
# A row of tiles of that width is 200 MB, of JPEG 270, and a few of them are in flight.
LARGEST_SIDE = 1 << 17


@dataclass(frozen=True)
class Tile:
    """A piece of a level: its place, counted in tiles, and pixels uint8 [Y, X, channels]."""

    row: int
    column: int
    pixels: np.ndarray


def require_tiff() -> Any:
    """The module tifffile; UserError if it is not installed."""
    try:
        import tifffile
    except ImportError:
        raise UserError("--format tiff needs tifffile: pip install 'splatcats[tiff]', or use --format dzi") from None
    return tifffile


def write_tiff(press: Press) -> Written:
    """One BigTIFF, whose pages are the picture and its halves, quarters and so on down to one tile, tiled each."""
    tifffile, plan = require_tiff(), press.plan
    encode = ENCODINGS[plan.encoding].encode
    index, field = _only(press)
    name = f"{press.shard.name}/{index:08d}.tif"

    def encoded(tile: Tile) -> bytes:
        pixels = tile.pixels
        missing = [(0, TILE - side) for side in pixels.shape[:2]]
        # TIFF's tiles are of one size; readers cut what is beyond the picture.
        return encode(Picture({}, [np.pad(pixels, [*missing, (0, 0)], mode="edge")]), plan.quality)

    with press.store.create(name) as output, tifffile.TiffWriter(output.file, bigtiff=True) as tiff:
        for number, frame in enumerate(_levels(frame_of(plan, field.shape[2] / field.shape[1]), smallest=TILE)):
            tiff.write(
                press.run(_tiles(field, frame, press), encoded, 3 * TILE * TILE),
                shape=(frame.height, frame.width, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                subfiletype=min(number, 1),  # 1: a reduced version of another page
                software=SOFTWARE,
                description=describe(facts_of(plan, index)) if number == 0 else None,
                metadata=None,
                photometric="rgb",
                compression="adobe_deflate",
                predictor=True,
            )
    return Written(press.shard.name, output.bytes, output.sha256)


def write_dzi(press: Press) -> Written:
    """A Deep Zoom picture: INDEX.dzi beside INDEX_files/LEVEL/COLUMN_ROW.EXTENSION, level 0 being a single pixel."""
    plan, store, folder = press.plan, press.store, press.shard.name
    encoding = ENCODINGS[plan.encoding]
    index, field = _only(press)
    levels = list(_levels(frame_of(plan, field.shape[2] / field.shape[1]), smallest=1))
    for number, frame in enumerate(reversed(levels)):

        def save(tile: Tile, number: int = number) -> None:
            data = encoding.encode(Picture({}, [tile.pixels]), plan.quality)
            store.write(_tile_name(plan, folder, index, number, tile.column, tile.row), data, durable=False)

        for _ in press.run(_tiles(field, frame, press), save, encoding.channels * TILE * TILE):
            pass
    store.write(f"{folder}/{index:08d}.dzi", _dzi(levels[0], plan.extension, facts_of(plan, index)).encode())
    names = plan.files(press.shard, store.sizes(folder))
    store.flush(names)
    # Levels were not made in the order of names, in which checksums join files; many at once, for far away stores.
    return Written(folder, *measured(map(io.BytesIO, ordered(store.read, names))))


def dzi_tiles(plan: RenderPlan, folder: str, index: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The files of the tiles that make up a Deep Zoom picture in `folder`, and their sizes, (width, height)."""
    for number, (width, height) in enumerate(reversed(level_sizes(plan, smallest=1))):
        for row, top in enumerate(range(0, height, TILE)):
            for column, left in enumerate(range(0, width, TILE)):
                name = _tile_name(plan, folder, index, number, column, row)
                yield name, (min(TILE, width - left), min(TILE, height - top))


def _tile_name(plan: RenderPlan, folder: str, index: int, level: int, column: int, row: int) -> str:
    return f"{folder}/{index:08d}_files/{level}/{column}_{row}.{plan.extension}"


def _dzi(frame: Frame, extension: str, facts: Facts) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008"'
        f' Format="{extension}" Overlap="0" TileSize="{TILE}">\n'
        f'  <Size Width="{frame.width}" Height="{frame.height}"/>\n'
        f"  <!-- {describe(facts)} -->\n"
        "</Image>\n"
    )


def _only(press: Press) -> tuple[int, Tensor]:
    """The number and splat field [1, H, W, K, P] of the shard's one picture."""
    ((numbers, field),) = fields_of(press.source, press.shard.indices, press.device, 1)
    return numbers[0], field


def level_sizes(plan: RenderPlan, smallest: int) -> list[tuple[int, int]]:
    """Width and height of the picture, and of its halves until neither side is more than `smallest`."""
    # What the frame shows, and where, changes nothing of its size.
    return [(level.width, level.height) for level in _levels(frame_of(plan, aspect=1.0), smallest)]


def _levels(frame: Frame, smallest: int) -> Iterator[Frame]:
    """The frame, and its halves until neither side is more than `smallest`."""
    for level in itertools.count():
        yield (reduced := frame.reduced(1 << level))
        if max(reduced.width, reduced.height) <= smallest:
            return


def _tiles(field: Tensor, frame: Frame, press: Press) -> Iterator[Tile]:
    """The tiles of one level, row by row, those at the right and bottom cut off."""
    for row, strip in enumerate(_strips(field, frame, press)):
        for column, left in enumerate(range(0, frame.width, TILE)):
            yield Tile(row, column, strip[:, left : left + TILE])


def _strips(field: Tensor, frame: Frame, press: Press) -> Iterator[np.ndarray]:
    """The picture as rows of tiles: uint8 [TILE or less, width, channels]."""
    held: list[np.ndarray] = []
    rows = 0
    for band in bands(field, frame, look_of(press.plan)):
        held.append(band[0])
        rows += len(band[0])
        while rows >= TILE:
            joined = np.concatenate(held)
            yield joined[:TILE]
            held, rows = [joined[TILE:]], rows - TILE
    if rows:
        yield np.concatenate(held)
