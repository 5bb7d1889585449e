"""How training, generation and rendering grow with the GPUs of this machine, or with CPU processes where it has none.

Strong scaling gives the work of one unit (one GPU with its part of the CPUs, or one CPU) to n units, weak scaling n
times as much. Everything runs as the jobs run it, on a private Ray that has n units and no more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from pipeline.benchmark.scaling_cases import WORKS, Bench, Extent
from pipeline.execution.cluster import connect


@dataclass(frozen=True)
class Row:
    """One run; see `scaling_cases.Run`."""

    work: str
    scaling: str  # weak or strong
    units: int
    pictures: int
    rate: float  # pictures a second
    efficiency: float  # of n times the rate of one unit
    seconds: float
    note: str


def counts(largest: int) -> list[int]:
    """1, 2, 4 ... and the largest itself."""
    return [*(2**i for i in range(largest.bit_length()) if 2**i < largest), largest]


def measure(works: Sequence[str], largest: int, extent: Extent, *, cuda: bool) -> Iterator[Row]:
    """Run every one of `works`, names of WORKS, on 1, 2, 4 ... `largest` units; yield each run as it ends.

    Uses the Ray this process is connected to, if it is. Raises UserError where a Ray of its own cannot be had.
    """
    if os.environ.get("RAY_ADDRESS"):
        raise UserError("--scaling measures this machine with a Ray of its own: unset RAY_ADDRESS")
    alone: dict[str, float] = {}
    cores = 0
    if cuda:
        with connect() as cluster:  # Ray knows the limits of containers
            cores = int(cluster.cpus)
    with tempfile.TemporaryDirectory(prefix="splatcats-scaling-") as folder:
        bench = Bench(extent, Path(folder), largest, cuda)
        for units in counts(largest):
            cpus = max(1, cores * units // largest) if cuda else units
            with connect(cpus=cpus, gpus=units if cuda else 0) as cluster:
                for work in works:
                    for scaling in ("strong", "weak") if units > 1 else ("weak",):
                        run = WORKS[work](bench, cluster, units, units if scaling == "weak" else 1)
                        efficiency = run.rate / (units * alone.setdefault(work, run.rate))
                        yield Row(work, scaling, units, run.pictures, run.rate, efficiency, run.seconds, run.note)


HEADER = (
    "| work | scaling | units | pictures | pictures/s | efficiency | whole run | |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def line(row: Row) -> str:
    """A row of the table, Markdown."""
    rate = f"{row.rate:,.0f}" if row.rate >= 100 else f"{row.rate:.3g}"
    cells = (row.work, row.scaling, f"{row.units}", f"{row.pictures:,}", rate, f"{row.efficiency:.0%}")
    return "| " + " | ".join([*cells, f"{row.seconds:,.0f} s", row.note]) + " |"
