"""Measure how near generated pictures are to photographs, beside how near photographs are to each other.

python -m jobs.evaluate --generated out/pictures --photos photos/cats.parquet --out out/report.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import fsspec
import torch

from jobs.cli import run
from models.errors import UserError
from pipeline.evaluation import SIDE, as_table, evaluate, load_networks
from pipeline.pictures import load_pictures


@dataclass(frozen=True)
class Options:
    """What is compared with what, and where the figures go."""

    generated: str
    """Generated pictures: a folder, a .zip or Parquet with an `image` column, at any fsspec URL."""
    photos: tuple[str, ...]
    """Photographs, one or more such URLs; at least twice as many as generated pictures, for the floor."""
    out: str
    """The JSON file to write, at any fsspec URL; one that is there is replaced."""
    lpips: str | None = None
    """Safetensors with VGG16's convolutions, for a second opinion; without it EfficientNet-lite0 alone."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    batch: int = 250
    """Pictures a step."""

    def __post_init__(self) -> None:
        if not self.photos:
            raise UserError("--photos needs at least one URL")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch} is not positive")


def usable_device(name: str) -> torch.device:
    """The device of that name, or the first GPU if there is one for "auto"; UserError for none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    # Torch asserts where it was built without CUDA.
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error


def main(options: Options) -> None:
    """Read both sets, compare them, print the table, write the JSON."""
    device = usable_device(options.device)
    networks = load_networks(options.lpips)
    report = evaluate(
        load_pictures([options.generated], SIDE),
        load_pictures(options.photos, SIDE),
        networks=networks,
        device=device,
        batch=options.batch,
    )
    print(as_table(report))
    if options.lpips is None:
        print("no --lpips FILE: VGG16 relu5_3 was left out")
    with fsspec.open(options.out, "w", encoding="utf-8", auto_mkdir=True) as file:
        json.dump(report, file, indent=2)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(run(Options, main))
