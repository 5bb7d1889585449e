"""What judges pictures by the photographs of a prepared set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import UserError
from models.perceptual import Lpips
from models.resemblance import FEWEST, RECENT, Likeness, Resemblance, cut
from pipeline.execution.progress import Ticker
from pipeline.photographs.photo import SIDE_MIN
from pipeline.training.batches import as_image, spread
from pipeline.training.training_set import TrainingSet

# At most so many photographs stand for all, seen so many times as large as they are: what takes a GPU seconds, and two
# CPU cores a minute or two.
PHOTOGRAPHS = {"cpu": 2000, "cuda": 20_000}
ENLARGED = {"cpu": (1,), "cuda": (1, 2)}
WINDOWS = 4  # of a large photograph, at most
AT_ONCE = 100


def likeness(
    photographs: TrainingSet, lpips: Lpips, device: torch.device | str, *, remembered: int = RECENT
) -> Likeness:
    """What judges by photographs in the eyes of the VGG16 within `lpips`: by all as a whole, by large ones in windows.

    It remembers so many generated pictures. Raises UserError where there are too few photographs; of large ones there
    may be none.
    """
    small, large = photographs.small, photographs.large
    options: dict[str, Any] = {"device": device, "remembered": remembered}
    whole = resemblance(small, lpips, **options)
    if not len(large):
        return Likeness(whole)
    most = PHOTOGRAPHS[torch.device(device).type]
    each = max(1, min(WINDOWS, most // len(large)))
    windows = resemblance(large, lpips, windows=each, **options)
    return Likeness(whole, windows, large.shape[1])


def resemblance(
    photographs: np.ndarray,
    lpips: Lpips,
    *,
    device: torch.device | str,
    windows: int | None = None,
    remembered: int = RECENT,
) -> Resemblance:
    """What judges by photographs, uint8 [N, Y, X, 3], or by so many windows of each, as large as the smallest are."""
    kind = torch.device(device).type
    side = photographs.shape[1]
    if len(photographs) < FEWEST:
        remedy = "; --objective.detail-photographs 0 leaves them out" if windows else ""
        raise UserError(
            f"{len(photographs)} photographs of {side} px to train on: their statistics need {FEWEST} or more{remedy}"
        )
    chosen = spread(torch.from_numpy(photographs), PHOTOGRAPHS[kind])
    generator = torch.Generator().manual_seed(0)
    name = "photographs looked at" + (" closely" if windows else "")

    def batches() -> Iterator[Tensor]:
        ticker = Ticker(name, len(chosen))
        for first in range(0, len(chosen), AT_ONCE):
            some = as_image(chosen[first : first + AT_ONCE].to(device))
            for _ in range(windows or 1):
                places = torch.rand(len(some), 2, generator=generator).to(device)
                yield cut(some, places, SIDE_MIN, SIDE_MIN) if windows else some
            ticker.step(min(first + AT_ONCE, len(chosen)))

    return Resemblance(lpips.trunk, batches(), enlarged=ENLARGED[kind], quarters=windows is None, remembered=remembered)
