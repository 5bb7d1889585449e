"""Measuring: warm-up, median of repeats, peak memory, the baseline's rate, the share of the hardware's limit."""

from __future__ import annotations

import contextlib
import functools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import checkpoint, sampler
from models.denoiser import Denoiser
from models.noise import white_noise
from models.sampler import LEARNED, Sampling
from pipeline.benchmark.baseline import EagerDenoiser

# A measurement repeats its work until both are reached, but once only where a call takes longer than LONG_CALL.
MIN_REPEATS, MIN_SECONDS, LONG_CALL = {"cuda": 10, "cpu": 3}, 1.0, 3.0

# Limits of an H100 or H200 (SXM): special functions a second (132 units, 16 a clock, 1.755 GHz); dense bfloat16 matrix
# products as measured. A pair of splat and pixel takes 3 special functions forward and 4 backward.
SPECIAL_FUNCTIONS = 132 * 16 * 1.755e9
MATRIX_FLOPS = 798e12
FORWARD_CALLS, BACKWARD_CALLS = 3, 4

# Pictures at once and network calls of whole rollouts, whether they are stored or not; those also recorded.
RECORDED = (1, 64, 256, 512)
ROLLOUT = {"cuda": (2048, 16), "cpu": (4, 4)}


@dataclass(frozen=True)
class Row:
    """One measurement; rates are in `unit` a second."""

    name: str
    unit: str
    rate: float
    seconds: float  # median of one call
    spread: float  # (slowest - fastest) / median
    repeats: int
    peak_mib: float | None  # beyond what was there before
    baseline: float | None  # rate
    limit: float | None  # rate
    note: str = ""


@dataclass
class Bench:
    """Where to measure, what was measured, and what several measurements share."""

    device: str
    baselines: bool = True
    rows: list[Row] = field(default_factory=list)
    report: Callable[[str], None] = print

    @property
    def cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.device == "cuda"

    def limit(self, rate: float) -> float | None:
        """`rate` where the limits are known: on an H100 or H200."""
        known = self.cuda and any(name in torch.cuda.get_device_name() for name in ("H100", "H200"))
        return rate if known else None

    @functools.cached_property
    def denoiser(self) -> Denoiser:
        """The bundled weights."""
        return checkpoint.load(checkpoint.PRETRAINED).to(self.device)

    @functools.cached_property
    def eager(self) -> EagerDenoiser:
        """The same, as the baseline has it."""
        denoiser = EagerDenoiser(self.denoiser.config)
        denoiser.load_state_dict(self.denoiser.state_dict())
        return denoiser.to(self.device).eval().requires_grad_(False)

    @functools.cached_property
    def cats(self) -> Tensor:
        """Fields of a few cats: how far real splats reach decides how many matter."""
        count, steps = (16, 16) if self.cuda else (4, 4)
        noise = white_noise(0, range(count), *self.denoiser.size, self.device)
        return sampler.sample(self.denoiser, noise, steps=steps, solver="deis").clone()

    @property
    def learned(self) -> list[Sampling]:
        """How the bundled weights are sampled by the few calls that they learned."""
        return [Sampling(LEARNED, LEARNED, calls) for calls in sorted(self.denoiser.few_calls)]

    def fields(self, count: int) -> Tensor:
        """Fields of so many cats, the same few again and again."""
        return self.cats.repeat(-(-count // len(self.cats)), 1, 1, 1, 1)[:count].contiguous()

    def measure(
        self,
        name: str,
        unit: str,
        items: float,
        run: Callable[[], Any],
        *,
        baseline: tuple[float, Callable[[], Any]] | None = None,
        limit: float | None = None,
        note: str = "",
    ) -> Row:
        """Time `run`, which does `items`; and the baseline's work, given as (its items, its function)."""
        seconds, peak = self.time(run)
        middle = statistics.median(seconds)
        other = None
        if baseline is not None and self.baselines:
            other = baseline[0] / statistics.median(self.time(baseline[1])[0])
        spread = (max(seconds) - min(seconds)) / middle
        return self.add(Row(name, unit, items / middle, middle, spread, len(seconds), peak, other, limit, note))

    def add(self, row: Row) -> Row:
        """Take a row and show it."""
        self.rows.append(row)
        self.report(line(row))
        return row

    def time(self, run: Callable[[], Any]) -> tuple[list[float], float | None]:
        """Seconds of every repeat after a warm-up, and the peak of memory in MiB."""
        with self.peak() as peak:
            first = self._once(run)
        long = first > LONG_CALL
        seconds = [self._once(run)] if long else []
        while not long and (len(seconds) < MIN_REPEATS[self.device] or sum(seconds) < MIN_SECONDS):
            seconds.append(self._once(run))
        return seconds, peak[0]

    def _once(self, run: Callable[[], Any]) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def peak(self) -> Any:
        """Within the block, measure the peak of memory beyond what is in use, MiB: the one entry of the list given."""
        found: list[float | None] = [None]
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            yield found
            found[0] = (torch.cuda.max_memory_allocated() - before) / 2**20
            return
        status = Path("/proc/self/status")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start = _resident(status, "VmRSS")
        yield found
        end = _resident(status, "VmHWM")
        found[0] = None if start is None or end is None else max(0.0, end - start)


def _resident(status: Path, key: str) -> float | None:
    if not status.exists():
        return None
    return next(float(text.split()[1]) / 1024 for text in status.read_text().splitlines() if text.startswith(key))


def line(row: Row) -> str:
    """A row of the table, Markdown."""
    spread = f" ±{row.spread / 2:.0%}" if row.repeats > 1 else ""
    cells = [row.name, f"{_short(row.rate)} {row.unit}/s", f"{row.seconds * 1e3:,.2f} ms{spread}"]
    cells.append("" if row.peak_mib is None else f"{row.peak_mib:,.0f} MiB")
    cells.append("" if row.baseline is None else f"{_short(row.baseline)} ({row.rate / row.baseline:,.1f}x)")
    cells.append("" if row.limit is None else f"{row.rate / row.limit:.0%} of {_short(row.limit)}")
    return "| " + " | ".join([*cells, row.note]) + " |"


HEADER = "| what | rate | a call | peak memory | baseline | limit | note |\n| --- | --- | --- | --- | --- | --- | --- |"


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def about(device: str) -> dict[str, str | int]:
    """The machine and the versions that figures belong to."""
    found: dict[str, str | int] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    for name in ("torch", "triton", "pyarrow", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
