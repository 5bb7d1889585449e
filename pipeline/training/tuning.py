"""Few calls learned from pictures that many calls made: the loop, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from models.denoiser import Denoiser
from models.few_calls import FewCalls
from models.noise import white_noise
from models.sampler import Sampling
from models.tuning import Judges, Tuner, wanted
from pipeline.execution.progress import Ticker, duration

# Pictures to learn from have indices from here on, which datasets do not reach: nothing is learned of theirs.
FIRST_INDEX = 1 << 62
REPORT_SECONDS = 10.0


def make_pairs(denoiser: Denoiser, sampling: Sampling, *, seed: int, count: int, batch: int) -> tuple[Tensor, Tensor]:
    """Noise [count, 3, Y, X] and the pictures that `sampling` makes of it, on the denoiser's device."""
    device = next(denoiser.parameters()).device
    ticker = Ticker("pictures to learn from", count)
    noises, pictures = [], []
    for first in range(0, count, batch):
        chosen = range(FIRST_INDEX + first, FIRST_INDEX + min(first + batch, count))
        noises.append(white_noise(seed, chosen, *denoiser.size, device))
        pictures.append(wanted(denoiser, sampling, noises[-1]))
        ticker.step(min(first + batch, count))
    return torch.cat(noises), torch.cat(pictures)


def tune(
    denoiser: Denoiser,
    few: FewCalls,
    pairs: tuple[Tensor, Tensor],
    *,
    minutes: float,
    batch: int,
    at_once: int,
    judges: Judges,
    rate: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> FewCalls:
    """Learn from `few` on, for so long, from `pairs` of noise and picture, on the denoiser's device.

    In a step the next `batch` of them are seen, `at_once` together; steps are `rate` times as long as usual. What was
    learned is returned if it is better, for the first `batch`, than `few`, or else these.
    """
    z, x = pairs
    tuner = Tuner(few, z.device, rate)
    begun = said = clock()
    sums: dict[str, Tensor] = {}
    steps = seen = 0
    while (progress := (clock() - begun) / (60.0 * minutes)) < 1.0:
        # In a fixed order: so a judge that remembers fewer than the others does not meet a picture that it remembers.
        rows = torch.arange(seen, seen + batch, device=z.device) % len(z)
        seen += batch
        terms = tuner.step(denoiser, z[rows], x[rows], judges, progress=progress, at_once=at_once)
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)) + term
        steps += 1
        if clock() - said >= REPORT_SECONDS:
            said = clock()
            means = "  ".join(f"{name} {float(total) / steps:.4f}" for name, total in sums.items())
            print(f"{means}  {duration(max(0.0, 60.0 * minutes - (said - begun)))} left", flush=True)
            sums, steps = {}, 0
    learned = tuner.tunable.learned()
    before, after = (judges.loss(denoiser, calls, z[:batch], x[:batch], at_once=at_once) for calls in (few, learned))
    if after < before:
        return learned
    print(f"what was learned is no better, {after:.4f} in all after {before:.4f}: keeping the calls it began with")
    return few
