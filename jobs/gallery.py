"""Make a page to explore cats with: a contact sheet, and every splat drawn in the browser. No server, no network.

    python -m jobs.gallery --splats out/splats --out out/gallery
    python -m jobs.gallery --splats s3://bucket/splats --out out/chosen --indices 0-15,400-415

Open OUT/index.html, or put OUT on any web server. The same command again replaces the page.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from jobs.cli import check_numbers, run
from models.errors import UserError
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.gallery.writer import INDEX, write_gallery
from pipeline.storage.store import Store

DEFAULT_COUNT = 64
# A cat takes about 35 KB, and the contact sheet is one page.
LARGEST_COUNT = 10_000


@dataclass(frozen=True)
class Options:
    """Which cats, and where to put the page."""

    splats: str
    """Folder or fsspec URL of a dataset made by jobs.generate."""

    out: str
    """Folder or fsspec URL of the page; a new or empty one, or a gallery, which is replaced."""

    indices: str | None = None
    """Which cats, like 0-15 (inclusive) or 3,7,20-29; the first 64 if not given."""

    title: str | None = None
    """Title of the page; the name of the dataset's folder if not given."""

    thumbnail: int = 256
    """Width of the thumbnails in pixels."""

    def __post_init__(self) -> None:
        check_numbers(self, "thumbnail", least=16, most=1024)
        if self.indices is not None and len(Indices.parse(self.indices)) > LARGEST_COUNT:
            raise UserError(f"--indices {self.indices}: choose at most {LARGEST_COUNT:,} cats")


def main(options: Options) -> None:
    """Write the page."""
    source = SplatDataset.open(options.splats)
    if options.indices is not None:
        indices = Indices.parse(options.indices)
    else:
        indices = source.plan.pictures.between(0, DEFAULT_COUNT)
    store = Store(options.out)
    torch.set_num_threads(1)  # cats are drawn side by side, in threads
    write_gallery(source, store, indices, title=options.title, thumbnail=options.thumbnail)
    print(f"{len(indices):,} cats; open {store.path(INDEX)}")


if __name__ == "__main__":
    sys.exit(run(Options, main))
