"""Draw stored splats as pictures, at any size, on Ray, without the model.

    python -m jobs.render --splats out/splats --out out/pictures --size 1024
    python -m jobs.render --splats out/splats --out out/dataset --format parquet --encoding webp
    python -m jobs.render --splats out/splats --out out/eye --indices 5 --region 0.2,0.3,0.5,0.6
    python -m jobs.render --splats out/splats --out out/huge --indices 5 --size 65536
    python -m jobs.render --splats out/splats --out out/film --indices 5 --zoom 0.36,0.42,16

The same command continues an interrupted run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs.cli import check_numbers, counted, run
from models.errors import UserError, check_name
from models.kernels import KERNELS
from models.rasterize import VIEWS
from pipeline.datasets import rollout_file
from pipeline.datasets.indices import Indices
from pipeline.datasets.plan import RenderPlan, power_of_two_size
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.cluster import DEVICES, check_gpu_share
from pipeline.rendering.drawing import MOTIONS, frame_of
from pipeline.rendering.encoders import ENCODINGS
from pipeline.rendering.framing import (
    FITS,
    check_finest,
    parse_region,
    parse_size,
    parse_zoom,
    region_text,
    zoom_text,
)
from pipeline.rendering.press import GPUS_PER_WORKER, balance
from pipeline.rendering.renderer import render
from pipeline.rendering.sinks import FORMATS, choose
from pipeline.storage.store import Store

ZOOM_FRAMES = 96
FRAMES_PER_SECOND = {"none": 0.0, "zoom": 24.0, "rollout": 6.0, "pictures": 24.0}


@dataclass(frozen=True)
class Options:
    """What to draw, and where to."""

    splats: str
    """Folder or fsspec URL of a dataset made by jobs.generate."""

    out: str
    """Folder or fsspec URL for the pictures."""

    size: str = "512"
    """Pixels along the longer side, or WIDTHxHEIGHT."""

    region: str = "0,0,1,1"
    """Draw only this part: x0,y0,x1,y1 in fractions of the picture, from its top-left corner."""

    fit: str = "crop"
    """Where --size has another shape than the picture or region: crop (its middle), letterbox (all of it, black
    bars) or stretch."""

    kernel: str | None = None
    """wavelet, sharp or gaussian; the one the splats were made for if not given."""

    view: str = "colour"
    """colour, or a look inside: blobs, depth, patches."""

    neighbourhood: int | None = None
    """3, or 1 to see patches on their own; what the splats were made for if not given."""

    format: str | None = None
    """files (one a picture, a folder a shard), webdataset (tar shards), parquet (a column of encoded pictures), or,
    tiled and at several sizes, tiff or dzi (Deep Zoom); files if not given, above 268 megapixels tiff, or dzi where
    --encoding is one of its own."""

    encoding: str | None = None
    """png, jpeg, webp, avif or raw (PPM: a short header, then bytes); animations: webp or gif; tiff: deflate. The first
    that the format takes if not given."""

    quality: int | None = None
    """1 to 100, for jpeg, webp and avif; 90 if not given."""

    indices: str | None = None
    """Which pictures, like 0-15 (inclusive) or 3,7,20-29, always in ascending order; all if not given."""

    zoom: str | None = None
    """Animate: zoom smoothly to x,y,factor (a place in fractions and how many times to magnify it), or through
    several of these separated by ';'."""

    animate: str | None = None
    """rollout: noise becoming each of the pictures that jobs.generate --keep-rollout kept; pictures: all chosen
    pictures as the frames of one animation, such as a morph."""

    frames: int | None = None
    """Frames of a zoom; 96 if not given."""

    fps: float | None = None
    """Frames a second of an animation, up to 90 as webp and 50 as gif; 24, or 6 for a rollout, if not given. The last
    frame stands for a second."""

    shard_size: int | None = None
    """Pictures a shard; by the number and the size of pictures if not given."""

    workers: int | None = None
    """Number of tasks at once; as many as the GPUs of the cluster have room for, or one a CPU, if not given."""

    device: str = "auto"
    """auto (GPUs where the cluster has some), cpu or gpu."""

    gpus_per_worker: float = GPUS_PER_WORKER
    """Part of a GPU that a task takes, up to 1; it encodes on as large a part of the CPUs beside that GPU."""

    stall_minutes: float = 60.0
    """Give up, and name the stuck shards, when none ends for so many minutes."""

    def __post_init__(self) -> None:
        check_name("view", self.view, VIEWS)
        check_name("device", self.device, DEVICES)
        check_gpu_share(self.gpus_per_worker)
        check_name("fit", self.fit, FITS)
        if self.format is not None:
            check_name("format", self.format, FORMATS)
        if self.encoding is not None:
            check_name("encoding", self.encoding, ENCODINGS)
        if self.kernel is not None:
            check_name("kernel", self.kernel, KERNELS)
        if self.animate is not None:
            check_name("animation", self.animate, MOTIONS.keys() - {"none", "zoom"})
        if self.neighbourhood not in (None, 1, 3):
            raise UserError(f"--neighbourhood {self.neighbourhood}: give 3 or 1")
        check_numbers(self, "shard_size", "workers", least=1)
        check_numbers(self, "quality", least=1, most=100)
        check_numbers(self, "frames", least=2, most=10_000)
        check_numbers(self, "fps", least=0.1, most=max(encoding.fastest for encoding in ENCODINGS.values()))
        check_numbers(self, "stall_minutes")
        if self.zoom is not None and self.animate is not None:
            raise UserError(f"--zoom and --animate {self.animate} are two animations: give one of them")
        if self.frames is not None and self.zoom is None:
            raise UserError(f"--frames {self.frames} goes with --zoom")
        if self.kernel is not None and self.view in ("blobs", "depth"):
            raise UserError(f"--kernel {self.kernel}: the view {self.view} looks the same with any; leave it out")
        if self.fps is not None and self.zoom is None and self.animate is None:
            raise UserError(f"--fps {self.fps:g} goes with an animation: --zoom or --animate")
        parse_size(self.size)
        parse_region(self.region)
        if self.zoom is not None:
            parse_zoom(self.zoom)
        if self.indices is not None:
            Indices.parse(self.indices)


def make_plan(options: Options, source: SplatDataset) -> RenderPlan:
    """The frozen plan of a command on the splats of `source`; UserError where its options do not go together."""
    splats, region = source.plan, parse_region(options.region)
    width, height = parse_size(options.size, region, splats.columns / splats.rows)
    motion = "zoom" if options.zoom is not None else options.animate or "none"
    indices = _indices(options, source, motion)
    frames = {"none": 1, "zoom": options.frames or ZOOM_FRAMES, "rollout": splats.steps + 1, "pictures": len(indices)}[
        motion
    ]
    fps = options.fps or FRAMES_PER_SECOND[motion]
    output, encoding = choose(options.format, options.encoding, width, height, frames, fps)
    format = FORMATS[output]
    if options.quality is not None and not ENCODINGS[encoding].qualities:
        raise UserError(f"--quality {options.quality}: {encoding} has none to choose; give another --encoding")
    if options.shard_size is not None and options.shard_size > format.pictures_per_shard:
        raise UserError(f"--shard-size {options.shard_size}: {output} takes at most {format.pictures_per_shard:,}")
    if motion == "pictures":
        if options.shard_size is not None:
            raise UserError(f"--shard-size {options.shard_size}: --animate pictures makes one film; leave it out")
        shard_size = len(indices)
    else:
        # A shard is at most about 256 megapixels, so that little is lost with it, and worth its task with 4.
        each = width * height * frames
        largest = max(1, min(format.pictures_per_shard, (1 << 28) // each))
        smallest = max(1, min(8, largest, (1 << 22) // each))
        shard_size = options.shard_size or power_of_two_size(len(indices), smallest, largest)
    plan = RenderPlan(
        source=splats.fingerprint(),
        seed=splats.seed,
        indices=str(indices),
        shard_size=shard_size,
        width=width,
        height=height,
        region=region_text(region),
        fit=options.fit,
        kernel=options.kernel or splats.kernel,
        neighbourhood=options.neighbourhood or splats.neighbourhood,
        view=options.view,
        output=output,
        encoding=encoding,
        quality=(options.quality or 90) if ENCODINGS[encoding].qualities else 0,
        threads=1,
        motion=motion,
        path=zoom_text(parse_zoom(options.zoom)) if options.zoom is not None else "",
        frames=frames,
        frame_milliseconds=round(1000 / fps) if fps else 0,
    )
    frame = frame_of(plan, splats.columns / splats.rows)
    for seen in [frame.region, *(point.region(frame.region) for point in (parse_zoom(plan.path) if plan.path else ()))]:
        check_finest(seen, frame, splats.rows, splats.columns)
    return plan


def _indices(options: Options, source: SplatDataset, motion: str) -> Indices:
    if options.indices is not None:
        return Indices.parse(options.indices)
    return rollout_file.kept(source) if motion == "rollout" else source.plan.pictures


def main(options: Options) -> None:
    """Draw what the options say, or what an earlier run left undone."""
    source = SplatDataset.open(options.splats)
    plan = make_plan(options, source)
    store = Store(options.out)
    summary = render(
        source,
        plan,
        store,
        workers=options.workers,
        device=options.device,
        gpus_per_worker=options.gpus_per_worker,
        stall_seconds=options.stall_minutes * 60,
    )
    first = plan.shard(0)
    print(
        f"{_made(plan, summary.pictures)} of {plan.width}x{plan.height} in {counted(summary.shards, 'shard')},"
        f" {summary.bytes / 1e6:,.1f} MB, from {store.path(plan.files(first, store.sizes(plan.data(first)))[0])} on"
    )
    print(balance(summary.timings))


def _made(plan: RenderPlan, pictures: int) -> str:
    if plan.motion == "none":
        return counted(pictures, "picture")
    return f"{counted(1 if plan.motion == 'pictures' else pictures, 'film')} of {counted(plan.frames, 'frame')}"


if __name__ == "__main__":
    sys.exit(run(Options, main, continues="here"))
