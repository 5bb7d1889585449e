"""What judges pictures by the photographs of a prepared set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.errors import UserError
from models.perceptual import Lpips
from models.resemblance import FEWEST, RECENT, Likeness, Resemblance, cut
from pipeline.execution.progress import Ticker
from pipeline.photographs.photo import SIDE_MIN
from pipeline.training.batches import as_image, evenly
from pipeline.training.training_set import TrainingSet

# At most so many photographs stand for all, seen so many times as large as they are: what takes a GPU seconds, and two
# CPU cores a minute or two, and again for windows.
PHOTOGRAPHS = {"cpu": 2000, "cuda": 20_000}
ENLARGED = {"cpu": (1,), "cuda": (1, 2)}
WINDOWS = 4  # of a large photograph, at most
AT_ONCE = 100


def likeness(
    photographs: TrainingSet, lpips: Lpips, device: torch.device | str, *, remembered: int = RECENT
) -> Likeness:
    """What judges by photographs in the eyes of the VGG16 within `lpips`: by all as a whole, by large ones in windows.

    Without windows where too few are large. It remembers so many generated pictures. Raises UserError where there are
    too few photographs.
    """
    judge = partial(resemblance, lpips=lpips, device=device, remembered=remembered)
    whole, large = judge(photographs.small), photographs.large
    return Likeness(whole, judge(large, windows=True), large.shape[1]) if len(large) >= FEWEST else Likeness(whole)


def resemblance(
    photographs: np.ndarray,
    lpips: Lpips,
    *,
    device: torch.device | str,
    windows: bool = False,
    remembered: int = RECENT,
) -> Resemblance:
    """What judges by photographs, uint8 [N, Y, X, 3], or by windows of them, of the size of the model's pictures."""
    kind = torch.device(device).type
    if len(photographs) < FEWEST:
        raise UserError(
            f"there are {len(photographs)} photographs to train on; their statistics need {FEWEST} or more: "
            "prepare more of them"
        )
    chosen = evenly(len(photographs), PHOTOGRAPHS[kind]).numpy()
    each = min(WINDOWS, PHOTOGRAPHS[kind] // len(chosen)) if windows else 1
    generator = torch.Generator().manual_seed(0)

    def batches() -> Iterator[Tensor]:
        ticker = Ticker("photographs looked at" + (" closely" if windows else ""), len(chosen))
        for first in range(0, len(chosen), AT_ONCE):
            # Of a set in files no more than these are in memory.
            some = as_image(torch.from_numpy(photographs[chosen[first : first + AT_ONCE]]).to(device))
            for _ in range(each):
                places = torch.rand(len(some), 2, generator=generator).to(device)
                yield cut(some, places, SIDE_MIN, SIDE_MIN) if windows else some
            ticker.step(min(first + AT_ONCE, len(chosen)))

    return Resemblance(lpips.trunk, batches(), enlarged=ENLARGED[kind], quarters=not windows, remembered=remembered)
