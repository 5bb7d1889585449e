"""Make the prepared set that training reads from photographs in folders, zips or Parquet files.

python -m jobs.prepare --photos cats/ more.zip s3://bucket/cats.parquet --out prepared
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs.cli import run
from models.errors import UserError
from pipeline.photos import SIDE_MIN, parse_box
from pipeline.preparation import prepare


@dataclass(frozen=True)
class Options:
    """Options of jobs.prepare."""

    # Folders, .zip files or Parquet files with an `image` column; paths or fsspec URLs.
    photos: tuple[str, ...]
    # Folder or URL of the prepared set.
    out: str
    # Square to cut out, x0,y0,x1,y1 in pixels of the upright photograph; default: the largest centred square.
    box: str | None = None
    # Keep at most this many pixels a side; larger photographs are reduced.
    cap: int = 256

    def __post_init__(self) -> None:
        """Check the ranges; raises UserError."""
        if not self.photos:
            raise UserError("--photos needs at least one folder, .zip or Parquet file")
        if self.cap < SIDE_MIN:
            raise UserError(f"--cap {self.cap} is below {SIDE_MIN}")
        if self.box is not None:
            parse_box(self.box)


def main(options: Options) -> None:
    """Prepare the photographs; UserError where that is impossible."""
    box = parse_box(options.box) if options.box is not None else None
    prepare(list(options.photos), options.out, box=box, cap=options.cap)


if __name__ == "__main__":
    sys.exit(run(Options, main))
