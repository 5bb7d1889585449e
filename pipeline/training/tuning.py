"""Few calls learned from pictures that many calls made: the loop, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from models.denoiser import Denoiser
from models.few_calls import FewCalls
from models.perceptual import Lpips
from models.resemblance import Resemblance
from models.sampler import Sampling, noise
from models.tuning import Judges, Tuner, wanted
from pipeline.execution.progress import Ticker, duration
from pipeline.training.batches import as_image, spread
from pipeline.training.training_set import load

# Pictures to learn from have indices from here on, which datasets do not reach: nothing is learned of theirs.
FIRST_INDEX = 1 << 62
# At most so many photographs stand for all, seen so many times as large as they are as well: what takes a GPU seconds.
PHOTOGRAPHS = {"cpu": 2000, "cuda": 20_000}
ENLARGED = {"cpu": (1,), "cuda": (1, 2)}
REPORT_SECONDS = 10.0


def make_pairs(denoiser: Denoiser, sampling: Sampling, *, seed: int, count: int, batch: int) -> tuple[Tensor, Tensor]:
    """Noise [count, 3, Y, X] and the pictures that `sampling` makes of it, on the denoiser's device."""
    device = next(denoiser.parameters()).device
    ticker = Ticker("pictures to learn from", count)
    noises, pictures = [], []
    for first in range(0, count, batch):
        chosen = range(FIRST_INDEX + first, FIRST_INDEX + min(first + batch, count))
        noises.append(noise(seed, chosen, *denoiser.size).to(device))
        pictures.append(wanted(denoiser, sampling, noises[-1]))
        ticker.step(min(first + batch, count))
    return torch.cat(noises), torch.cat(pictures)


def resemblance(
    photos: str, lpips: Lpips, device: torch.device | str, *, memory_bytes: int | None = None
) -> Resemblance:
    """What judges by the photographs trained on of a prepared set, in the eyes of the VGG16 within `lpips`."""
    kind = torch.device(device).type
    seen = torch.from_numpy(load(photos, heldout=False, detail=None, memory_bytes=memory_bytes).small)
    chosen = spread(seen, PHOTOGRAPHS[kind])
    return Resemblance(lpips.trunk, (as_image(some.to(device)) for some in chosen.split(100)), ENLARGED[kind])


def tune(
    denoiser: Denoiser,
    few: FewCalls,
    pairs: tuple[Tensor, Tensor],
    *,
    minutes: float,
    batch: int,
    seed: int,
    at_once: int,
    judges: Judges,
    clock: Callable[[], float] = time.monotonic,
) -> FewCalls:
    """Learn from `few` on, for so long, from `pairs` of noise and picture, on the denoiser's device.

    In a step `batch` of them are seen, `at_once` together.
    """
    z, x = pairs
    generator = torch.Generator().manual_seed(seed)
    tuner = Tuner(few, z.device)
    begun = said = clock()
    sums: dict[str, Tensor] = {}
    steps = 0
    while (progress := (clock() - begun) / (60.0 * minutes)) < 1.0:
        rows = torch.randint(len(z), (batch,), generator=generator).to(z.device)
        terms = tuner.step(denoiser, z[rows], x[rows], judges, progress=progress, at_once=at_once)
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)) + term
        steps += 1
        if clock() - said >= REPORT_SECONDS:
            said = clock()
            means = "  ".join(f"{name} {float(total) / steps:.4f}" for name, total in sums.items())
            print(f"{means}  {duration(max(0.0, 60.0 * minutes - (said - begun)))} left", flush=True)
            sums, steps = {}, 0
    return tuner.tunable.learned()
