"""How fast this machine draws, trains, samples and stores, beside an eager baseline and the hardware's limit.

    python -m jobs.benchmark --device cpu
    python -m jobs.benchmark --device cuda --out benchmark.json --only draw draw-backward
    python -m jobs.benchmark --scaling --out scaling.json

Real cats of the bundled weights are drawn. A limit is known for an H100 or H200 only.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jobs.cli import run, torch_device
from models.errors import UserError, check_name
from pipeline.benchmark import cases, press, storage, training
from pipeline.benchmark.bench import HEADER, Bench, about, line
from pipeline.execution.threads import cores

GROUPS: dict[str, Callable[[Bench], None]] = {
    "draw": cases.draw,
    "draw-bytes": cases.draw_bytes,
    "draw-backward": cases.draw_backward,
    "network": cases.network,
    "rollout": cases.rollout,
    "generate": storage.generate,
    "read": storage.read,
    "press": press.press,
    "train": training.without_lpips,
    "train-lpips": training.with_lpips,
    "train-fused": training.fused,
}
# With --scaling; pipeline.benchmark.scaling, which has them, imports Ray.
SCALING = ("train", "generate", "render")
TUNING = ("tune-forward", "tune-backward", "tune-network")


@dataclass(frozen=True)
class Options:
    """What to measure, and where."""

    device: str = "auto"
    """auto (a GPU where there is one), cuda, or gpu, which is the same, or cpu."""

    only: tuple[str, ...] = ()
    """Some of draw, draw-bytes, draw-backward, network, rollout, generate, read, press, train, train-lpips and
    train-fused; all if not given. On a GPU also tune-forward, tune-backward and tune-network, which try what else the
    kernels could be. With --scaling some of train, generate, render."""

    scaling: bool = False
    """Measure instead how training, generation and rendering grow from one GPU to all that are visible (by
    CUDA_VISIBLE_DEVICES), or from one CPU process to two, at the same work and at as much work each. Starts Rays of its
    own; takes minutes a run."""

    workers: int | None = None
    """Largest number of GPUs, or CPU processes, of --scaling."""

    baseline: bool = True
    """Also measure the same work done eagerly."""

    out: str | None = None
    """Also write the figures to this file, as JSON."""

    def __post_init__(self) -> None:
        device = torch_device(self.device)
        for name in self.only:
            check_name("measurement", name, SCALING if self.scaling else (*GROUPS, *TUNING))
        if self.workers is not None and not self.scaling:
            raise UserError("--workers goes with --scaling")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: give a number of at least 1")
        if device == "cpu":
            for name in self.only:
                if name in TUNING:
                    raise UserError(f"--only {name}: that needs a GPU")
        if self.out is not None and not Path(self.out).absolute().parent.is_dir():
            raise UserError(f"--out {self.out}: there is no folder {Path(self.out).absolute().parent}")
        if self.out is not None and Path(self.out).is_dir():
            raise UserError(f"--out {self.out} is a folder: give a file")


def main(options: Options) -> None:
    """Measure, print the table, write the JSON."""
    device = torch_device(options.device)
    if options.scaling:
        scale(options, device)
        return
    bench = Bench(device, options.baseline, report=lambda text: print(text, flush=True))
    machine = about(device)
    if bench.cuda:
        torch.set_float32_matmul_precision("high")
    for name in options.only or GROUPS:
        measurement(name)(bench)
        if options.out is not None:  # after each, so that a run that is cut short leaves what it has
            write(options.out, machine, bench.rows)
    show(machine, [HEADER, *map(line, bench.rows)])


def scale(options: Options, device: str) -> None:
    """Measure what --scaling says; print the table, write the JSON."""
    from pipeline.benchmark import scaling, scaling_cases

    cuda = device == "cuda"
    units = torch.cuda.device_count() if cuda else cores()
    largest = options.workers or (units if cuda else min(2, units))
    if cuda and largest > units:
        raise UserError(f"--workers {largest} need a GPU each; this machine has {units}")
    machine = about(device) | {"ray": version("ray"), "gpus" if cuda else "cpus": units}
    rows: list[scaling.Row] = []
    extent = scaling_cases.GPU if cuda else scaling_cases.CPU
    for row in scaling.measure(options.only or SCALING, largest, extent, cuda=cuda):
        rows.append(row)
        print(scaling.line(row), flush=True)
        if options.out is not None:
            write(options.out, machine, rows)
    rows.sort(key=lambda row: SCALING.index(row.work))
    show(machine, [scaling.HEADER, *map(scaling.line, rows)])


def write(path: str, machine: Mapping[str, str | int], rows: Sequence[Any]) -> None:
    """The figures so far, as JSON."""
    report = {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
    Path(path).write_text(json.dumps(report, indent=2) + "\n")


def show(machine: Mapping[str, str | int], table: Sequence[str]) -> None:
    """Print the machine and the table."""
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()) + "\n")
    print("\n".join(table))


def measurement(name: str) -> Callable[[Bench], None]:
    """The function of a measurement. Those that tune kernels import Triton, which only some machines have."""
    if name in GROUPS:
        return GROUPS[name]
    from pipeline.benchmark import tuning

    return {
        "tune-forward": tuning.tune_forward,
        "tune-backward": tuning.tune_backward,
        "tune-network": tuning.tune_network,
    }[name]


if __name__ == "__main__":
    sys.exit(run(Options, main))
