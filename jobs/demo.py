"""The whole line in small: 16 cats from noise to Parquet, drawn again from the Parquet at several sizes.

python -m jobs.demo --out out/demo
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jobs import generate, render
from jobs.cli import check_numbers, run
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.cluster import connect
from pipeline.rendering.sheets import anatomy_sheet, contact_sheet, side_by_side

COUNT = 16
SIZE = 512


@dataclass(frozen=True)
class Options:
    """Where to put the demonstration."""

    out: str = "out/demo"
    """Local folder for splats, pictures and the sheet."""

    seed: int = 7
    """Seed of the cats."""

    favourite: int = 5
    """The cat that the sheet takes apart, 0 to 15."""

    def __post_init__(self) -> None:
        check_numbers(self, "favourite", least=0, most=COUNT - 1)


def main(options: Options) -> None:
    """Generate, render, lay out; the same steps as the README's commands, on one local Ray."""
    started = time.monotonic()
    out = Path(options.out)
    splats, pictures, sheet = out / "splats", out / "pictures", out / "sheet.png"
    with connect():
        generate.main(generate.Options(str(splats), COUNT, options.seed, shard_size=8, batch_size=8))
        render.main(render.Options(str(splats), str(pictures), str(SIZE)))
    dataset = SplatDataset.open(str(splats))
    ((_, field),) = dataset.read(Indices.parse(str(options.favourite)))
    cats = [np.asarray(Image.open(path)) for path in sorted(pictures.glob("*/*.png"))]
    side_by_side(contact_sheet(cats, 4), anatomy_sheet(field, dataset.plan.kernel)).save(sheet)
    print(
        f"{COUNT} cats in {time.monotonic() - started:.0f} s. Look at {sheet}; "
        f"the splats are in {splats}/data, every cat at {SIZE} px in {pictures}"
    )


if __name__ == "__main__":
    sys.exit(run(Options, main, continues="here"))
