"""Draw stored splats as pictures, at any size, on Ray, without the model.

    python -m jobs.render --splats out/splats --out out/pictures --size 1024
    python -m jobs.render --splats out/splats --out out/blobs --size 512 --view blobs --indices 0-15

The same command continues an interrupted run.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from jobs.cli import run
from models.errors import UserError, check_name
from models.kernels import KERNELS
from models.rasterize import VIEWS
from pipeline.cluster import DEVICES
from pipeline.dataset import SplatDataset
from pipeline.indices import Indices
from pipeline.plan import GenerationPlan, RenderPlan, power_of_two_size
from pipeline.rendering import render
from pipeline.sinks import ENCODINGS, OUTPUTS
from pipeline.store import Store


@dataclass(frozen=True)
class Options:
    """What to draw, and where to."""

    splats: str
    """Folder or fsspec URL of a dataset made by jobs.generate."""

    out: str
    """Folder or fsspec URL for the pictures."""

    size: str = "512"
    """Pixels along both sides, or WIDTHxHEIGHT; pictures are square, so unequal sides stretch them."""

    kernel: str | None = None
    """wavelet, sharp or gaussian; the one the splats were made for if not given."""

    view: str = "colour"
    """colour, or a look inside: blobs, depth, patches."""

    neighbourhood: int | None = None
    """3, or 1 to see patches on their own; what the splats were made for if not given."""

    format: str = "files"
    """files (one a picture, a folder a shard) or parquet (a column of encoded pictures)."""

    encoding: str = "png"
    """png, jpeg or webp."""

    quality: int = 90
    """1 to 100, for jpeg and webp."""

    indices: str | None = None
    """Which pictures, like 0-15 (inclusive) or 3,7,20-29; all if not given."""

    shard_size: int | None = None
    """Pictures a shard; by the number and the size of pictures if not given."""

    workers: int | None = None
    """Number of tasks at once; as many as the cluster has CPUs if not given."""

    device: str = "auto"
    """auto (GPUs where the cluster has some), cpu or gpu."""

    stall_minutes: float = 60.0
    """Give up, and name the stuck shards, when none ends for so long."""

    def __post_init__(self) -> None:
        check_name("encoding", self.encoding, ENCODINGS)
        check_name("format", self.format, OUTPUTS)
        check_name("view", self.view, VIEWS)
        check_name("device", self.device, DEVICES)
        if self.kernel is not None:
            check_name("kernel", self.kernel, KERNELS)
        if self.neighbourhood not in (None, 1, 3):
            raise UserError(f"--neighbourhood {self.neighbourhood}: give 3 or 1")
        for name in ("shard_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: give a number from 1 to 100")
        if not self.stall_minutes > 0:
            raise UserError(f"--stall-minutes {self.stall_minutes}: give a number above 0")
        largest = ENCODINGS[self.encoding].largest_side
        if not all(1 <= side <= largest for side in parse_size(self.size)):
            raise UserError(f"--size {self.size}: {self.encoding} takes sides of 1 to {largest} pixels")
        if self.indices is not None:
            Indices.parse(self.indices)


def parse_size(text: str) -> tuple[int, int]:
    """Read `512` or `640x480` as (width, height); UserError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    if match is None:
        raise UserError(f"--size {text}: give pixels, like 1024, or WIDTHxHEIGHT, like 1920x1080")
    return int(match[1]), int(match[2] or match[1])


def make_plan(options: Options, source: GenerationPlan) -> RenderPlan:
    """The frozen plan of a command on splats of the plan `source`."""
    width, height = parse_size(options.size)
    indices = Indices.parse(options.indices) if options.indices is not None else source.pictures
    # A shard is at most about 256 megapixels, so that little is lost with it.
    largest = min(4096, max(1, (1 << 28) // (width * height)))
    return RenderPlan(
        source=source.fingerprint(),
        seed=source.seed,
        indices=str(indices),
        shard_size=options.shard_size or power_of_two_size(len(indices), min(8, largest), largest),
        width=width,
        height=height,
        kernel=options.kernel or source.kernel,
        neighbourhood=options.neighbourhood or source.neighbourhood,
        view=options.view,
        output=options.format,
        encoding=options.encoding,
        quality=0 if ENCODINGS[options.encoding].lossless else options.quality,
        threads=1,
    )


def main(options: Options) -> None:
    """Draw what the options say, or what an earlier run left undone."""
    source = SplatDataset(options.splats)
    plan = make_plan(options, source.plan)
    store = Store(options.out)
    summary = render(
        source,
        plan,
        store,
        workers=options.workers,
        device=options.device,
        stall_seconds=options.stall_minutes * 60,
    )
    print(
        f"{summary.pictures:,} pictures of {plan.width}x{plan.height} in {summary.shards:,} shards,"
        f" {summary.bytes / 1e6:,.1f} MB, in {store.url}"
    )


if __name__ == "__main__":
    sys.exit(run(Options, main))
