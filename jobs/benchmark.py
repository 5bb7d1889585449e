"""How fast this machine draws, trains, samples and stores, beside an eager baseline and the hardware's limit.

    python -m jobs.benchmark --device cpu
    python -m jobs.benchmark --device cuda --out benchmark.json --only draw draw-backward

Real cats of the bundled weights are drawn. A limit is known for an H100 or H200 only.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.cli import run
from models.errors import UserError, check_name
from pipeline import benchmark_cases as cases
from pipeline import benchmark_storage as storage
from pipeline.benchmark import HEADER, Bench, about, line

GROUPS: dict[str, Callable[[Bench], None]] = {
    "draw": cases.draw,
    "draw-bytes": cases.draw_bytes,
    "draw-backward": cases.draw_backward,
    "network": cases.network,
    "rollout": cases.rollout,
    "generate": storage.generate,
    "read": storage.read,
    "train": cases.training,
    "train-lpips": cases.training_lpips,
}
TUNING = ("tune-forward", "tune-backward", "tune-network")


@dataclass(frozen=True)
class Options:
    """What to measure, and where."""

    device: str = "auto"
    """auto (a GPU where there is one), cuda or cpu."""

    only: tuple[str, ...] = ()
    """Some of draw, draw-bytes, draw-backward, network, rollout, generate, read, train, train-lpips; all if not given.
    On a GPU also tune-forward, tune-backward and tune-network, which try what else the kernels could be."""

    baseline: bool = True
    """Also measure the same work done eagerly."""

    out: str | None = None
    """Also write the figures to this file, as JSON."""

    def __post_init__(self) -> None:
        check_name("device", self.device, ("auto", "cuda", "cpu"))
        for name in self.only:
            check_name("measurement", name, (*GROUPS, *TUNING))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
        if self.device == "cpu" or not torch.cuda.is_available():
            for name in self.only:
                if name in TUNING:
                    raise UserError(f"--only {name}: that needs a GPU")
        if self.out is not None and not Path(self.out).absolute().parent.is_dir():
            raise UserError(f"--out {self.out}: there is no folder {Path(self.out).absolute().parent}")


def main(options: Options) -> None:
    """Measure, print the table, write the JSON."""
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(device, options.baseline, report=lambda text: print(text, flush=True))
    machine = about(device)
    if bench.cuda:
        torch.set_float32_matmul_precision("high")
    for name in options.only or GROUPS:
        measurement(name)(bench)
        if options.out is not None:  # after each, so that a run that is cut short leaves what it has
            report = {"machine": machine, "rows": [dataclasses.asdict(row) for row in bench.rows]}
            Path(options.out).write_text(json.dumps(report, indent=2) + "\n")
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()) + "\n")
    print("\n".join([HEADER, *map(line, bench.rows)]))


def measurement(name: str) -> Callable[[Bench], None]:
    """The function of a measurement. Those that tune kernels import Triton, which only some machines have."""
    if name in GROUPS:
        return GROUPS[name]
    from pipeline import benchmark_tuning as tuning

    return {
        "tune-forward": tuning.tune_forward,
        "tune-backward": tuning.tune_backward,
        "tune-network": tuning.tune_network,
    }[name]


if __name__ == "__main__":
    sys.exit(run(Options, main))
