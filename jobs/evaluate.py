"""Weigh generated cats against photographs: figures beside their floors in report.json, and a page to look at.

    python -m jobs.evaluate --splats out/splats --photos prepared --out out/report --lpips lpips_vgg16.safetensors
    python -m jobs.evaluate --splats out/calls-4 --splats out/calls-16 --photos prepared --out out/curve

Repeat --splats for a curve of quality against network calls.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

import tyro

from jobs.cli import check_numbers, run
from models.errors import UserError, check_name
from models.features import FeatureNetwork
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.evaluation import report
from pipeline.evaluation.closeups import HUGE, LARGE
from pipeline.evaluation.fidelity import BATCH, SEED, SIDE, check_enough, load_networks
from pipeline.evaluation.measurement import Extent, measure
from pipeline.evaluation.page import render_page
from pipeline.evaluation.patches import num_pictures
from pipeline.evaluation.pictures import Source, count_photographs, load_photographs, load_pictures
from pipeline.execution.cluster import DEVICES, connect
from pipeline.photographs.sources import survey
from pipeline.storage.store import Store

JSON_FILE, PAGE_FILE, REQUEST_FILE = "report.json", "report.html", "request.json"


@dataclass(frozen=True)
class Options:
    """What is weighed against what, and where the report goes."""

    photos: tuple[str, ...]
    """A prepared set of jobs.prepare, or photographs at any URLs: at least twice as many as generated pictures."""

    out: str
    """Folder or fsspec URL for report.json and report.html; a report that is there is replaced."""

    splats: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Folder or fsspec URL of a dataset made by jobs.generate; give it again for every further dataset."""

    pictures: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Generated pictures of any making instead or besides: a folder, .zip or Parquet; again for every further one."""

    count: int | None = None
    """Weigh the first so many pictures of every set; all if not given."""

    lpips: str | None = None
    """Safetensors with VGG16's convolutions, for a second opinion; without it VGG16 is left out."""

    inception: str | None = None
    """Safetensors of pt_inception-2015-12-05, for the canonical FID; without it that is left out."""

    closeups: int = 48
    """Splats of each set drawn at 256 and 512 px, for borders and consistency."""

    patches: int = 500
    """Splats of each set drawn at 256 px and compared in patches with photographs; 0 leaves that out."""

    batch: int = BATCH
    """Pictures that go through a network at once."""

    workers: int | None = None
    """Number of tasks at once; one a GPU, or one a CPU, of the cluster if not given."""

    device: str = "auto"
    """auto (GPUs where the cluster has some), cpu or gpu."""

    stall_minutes: float = 60.0
    """Give up when no task ends for so many minutes."""

    def __post_init__(self) -> None:
        check_name("device", self.device, DEVICES)
        if not self.photos:
            raise UserError("--photos needs at least one URL")
        if not (self.splats or self.pictures):
            raise UserError("nothing to weigh: give --splats URL, or --pictures URL")
        check_numbers(self, "count", "batch", "workers", least=1)
        check_numbers(self, "closeups", least=2)
        check_numbers(self, "patches", least=0)
        check_numbers(self, "stall_minutes")


def check_counts(options: Options, networks: Mapping[str, FeatureNetwork]) -> None:
    """UserError for a set that has fewer pictures than --count, or than the networks need; nothing is decoded yet."""
    generated = [(url, SplatDataset.open(url).plan.count) for url in options.splats]
    generated += [(url, survey(url).num_records) for url in options.pictures]
    photographs = count_photographs(options.photos)
    for url, number in generated:
        if options.count is not None and options.count > number:
            raise UserError(f"{url} has {number:,} pictures, not {options.count:,}")
        check_enough(f"pictures of {url}", options.count or number, networks)
    check_enough(f"photographs of {' '.join(options.photos)}", photographs, networks, sets=2)


def open_sources(options: Options) -> list[Source]:
    """The sets to weigh, labelled by solver, schedule and network calls, or by name; UserError for one that lacks."""
    sources = []
    for url in options.splats:
        dataset = SplatDataset.open(url)
        plan = dataset.plan
        count = options.count or plan.count
        dataset.require(plan.pictures.between(0, count))
        calls = "1 call" if plan.steps == 1 else f"{plan.steps} calls"
        sources.append(Source(f"{plan.solver}, {plan.schedule}, {calls}", dataset.store.url, count, dataset))
    for url in options.pictures:
        pictures = load_pictures(url, SIDE, options.count)
        sources.append(Source(_last_part(url), url, len(pictures), pictures))
    labels = [source.label for source in sources]
    return [
        s if labels.count(s.label) == 1 else Source(f"{s.label} ({_last_part(s.url)})", s.url, s.count, s.contents)
        for s in sources
    ]


def _last_part(url: str) -> str:
    return PurePosixPath(url.rstrip("/")).name or url


def notes_on(options: Options, sources: list[Source], num_large: int, networks: dict) -> list[str]:
    """What the report leaves out, and why."""
    notes = []
    if options.lpips is None:
        notes.append("No --lpips FILE: VGG16 relu5_3 is left out.")
    if options.inception is None:
        notes.append("No --inception FILE: the canonical FID is left out.")
    for source in sources:
        if source.dataset is None:
            notes.append(f"{source.label} are pictures, not splats: they are not drawn large.")
        elif options.patches and not num_pictures(options.patches, source, num_large, networks):
            notes.append(
                f"{source.label}: too few for a covariance of patches at {LARGE} px (--patches {options.patches}, "
                f"{source.count:,} pictures, {num_large:,} photographs of {LARGE} px); left out."
            )
    return notes


def main(options: Options) -> None:
    """Read, weigh, print the figures, write the report."""
    store = Store(options.out)
    # A place that cannot be written shows now, not after the work.
    store.write(REQUEST_FILE, (json.dumps(vars(options), indent=2) + "\n").encode())
    networks = load_networks(options.lpips, options.inception)
    check_counts(options, networks)
    sources = open_sources(options)
    extent = Extent(options.closeups, options.patches, options.batch)
    large = {LARGE: max(2 * options.patches, options.closeups), HUGE: options.closeups}
    photographs = load_photographs(options.photos, large=large, seed=SEED)
    notes = notes_on(options, sources, len(photographs.large[LARGE]), networks)
    with connect():
        weighed = measure(
            sources,
            photographs,
            networks,
            extent=extent,
            workers=options.workers,
            device=options.device,
            stall_seconds=options.stall_minutes * 60,
        )
    figures = report.to_json(weighed, photographs, options.photos, notes)
    page = render_page(figures, weighed, photographs, notes)
    print(report.as_table(figures))
    store.write(JSON_FILE, (json.dumps(figures, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())
    store.write(PAGE_FILE, page.encode())
    print(f"\nwrote {store.path(JSON_FILE)} and {store.path(PAGE_FILE)}")


if __name__ == "__main__":
    sys.exit(run(Options, main))
