"""Drawing and encoding side by side: one thread draws, several encode, the caller writes, in bounded memory.

The encoders release Python's lock, so threads are enough, and drawn pixels never leave the process that drew them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from pipeline.datasets.plan import RenderPlan, Shard
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.execution.threads import ahead, ordered
from pipeline.rendering.drawing import MOTIONS
from pipeline.rendering.encoders import ENCODINGS, Picture
from pipeline.storage.store import Store

# Pixels that are drawn and not encoded yet, and encoded ones that wait for their turn, take about this much.
BYTES_IN_FLIGHT = 1 << 28
# Several processes share a GPU, each with its part of the CPUs beside it as encoders: what Python does between two
# calls, in one of them, leaves the GPU to the others, and one that starts a shard fills the pause of one that ends it.
GPUS_PER_WORKER = 0.125
# Threads that encode: some more than CPUs, since some of them always wait for Python's lock, or for pixels.
ENCODERS_PER_CPU = 1.5
# What is at work for so much of the time is what others wait for.
BOUND = 0.6

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Written:
    """A shard's data as its record will name them: file or folder, size, SHA-256 (of a folder's files joined)."""

    data: str
    bytes: int
    sha256: str


@dataclass
class Press:
    """One shard of pictures on its way from splats to files, and the time that its parts took."""

    source: SplatDataset
    plan: RenderPlan
    shard: Shard
    store: Store
    device: str
    encoders: int
    drawing: float = 0.0  # seconds
    encoding: float = 0.0  # seconds of all encoders together
    started: float = field(default_factory=time.monotonic)

    def pictures(self, finish: Callable[[Picture, bytes], Result]) -> Iterator[Result]:
        """Draw and encode the shard's pictures; `finish` takes each in an encoder's thread. Results are in order."""
        drawn = MOTIONS[self.plan.motion](self.source, self.plan, self.shard.indices, self.device)
        encoding = ENCODINGS[self.plan.encoding]
        each = encoding.channels * self.plan.width * self.plan.height * self.plan.frames
        return self.run(drawn, lambda picture: finish(picture, encoding.encode(picture, self.plan.quality)), each)

    def run(self, drawn: Iterable[Item], finish: Callable[[Item], Result], item_bytes: int) -> Iterator[Result]:
        """Iterate `drawn` in one thread and map `finish` over it in the encoders' threads; results are in order."""
        window = max(1, min(4 * self.encoders, BYTES_IN_FLIGHT // item_bytes))
        timed = ahead(self._drawing(drawn), min(2, window))
        for result, seconds in ordered(partial(self._finished, finish), timed, threads=self.encoders, window=window):
            self.encoding += seconds
            yield result

    def _finished(self, finish: Callable[[Item], Result], item: Item) -> tuple[Result, float]:
        begun = time.thread_time()  # threads that share a CPU wait for each other, which is not their work
        result = finish(item)
        return result, time.thread_time() - begun

    def _drawing(self, drawn: Iterable[Item]) -> Iterator[Item]:
        torch.set_num_threads(self.plan.threads)  # counts for the thread that asks
        begun = self._clock()
        for item in drawn:
            self.drawing += self._clock() - begun
            yield item
            begun = self._clock()

    def _clock(self) -> float:
        # One that waits for a GPU is at work.
        return time.perf_counter() if self.device == "cuda" else time.thread_time()

    def timings(self) -> dict[str, float]:
        """Seconds spent drawing and encoding, and how many there were for either."""
        elapsed = time.monotonic() - self.started
        return {
            "drawing": self.drawing,
            "drawing_of": elapsed,
            "encoding": self.encoding,
            "encoding_of": elapsed * self.encoders,
        }


def encoders_on(cpus: float) -> int:
    """How many threads of a process encode that has so many CPUs beside its part of a GPU."""
    return max(1, int(ENCODERS_PER_CPU * cpus))


def balance(timings: Mapping[str, float]) -> str:
    """One line on which of drawing and encoding bounds, from the sums of `Press.timings`.

    Shards of earlier versions have no timings and count for nothing.
    """
    spent = {name: timings.get(name, 0.0) for name in ("drawing", "encoding")}
    busy = {name: seconds / max(timings.get(f"{name}_of", 0.0), 1e-9) for name, seconds in spent.items()}
    parts = ", ".join(f"{name} {seconds:,.1f} s ({busy[name]:.0%} busy)" for name, seconds in spent.items())
    most = max(busy, key=lambda name: busy[name])
    # Of a short run, or one with few pictures a task, most of the time is neither's: tasks begin and end.
    return f"{parts}: {most if busy[most] >= BOUND else 'neither'} bounds"
