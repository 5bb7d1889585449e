"""Make the prepared set that training reads from photographs in folders, zips or Parquet files.

    python -m jobs.prepare --photos cats/ more.zip s3://bucket/cats.parquet --out prepared

The same command again leaves a finished set alone and makes an unfinished one anew.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs.cli import check_numbers, run
from models.errors import UserError
from pipeline.photographs.photo import SIDE_MIN, parse_box
from pipeline.photographs.preparation import prepare


@dataclass(frozen=True)
class Options:
    """Which photographs, and where to put the prepared set."""

    photos: tuple[str, ...]
    """Folders, .zip files or Parquet files with an `image` column; paths or fsspec URLs."""

    out: str
    """Folder or fsspec URL of the prepared set."""

    box: str | None = None
    """Square to cut out, x0,y0,x1,y1 in pixels of the upright photograph; the largest centred square if not given."""

    cap: int = 256
    """Keep at most this many pixels a side; larger photographs are reduced."""

    def __post_init__(self) -> None:
        if not self.photos:
            raise UserError("--photos needs at least one folder, .zip or Parquet file")
        check_numbers(self, "cap", least=SIDE_MIN)
        if self.box is not None:
            parse_box(self.box)


def main(options: Options) -> None:
    """Prepare the photographs; UserError where that is impossible."""
    box = parse_box(options.box) if options.box is not None else None
    prepare(list(options.photos), options.out, box=box, cap=options.cap)


if __name__ == "__main__":
    sys.exit(run(Options, main))
