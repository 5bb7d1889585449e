"""What judges pictures by the photographs of a prepared set."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.errors import UserError
from models.perceptual import Lpips
from models.resemblance import FEWEST, RECENT, Resemblance
from pipeline.execution.progress import Ticker
from pipeline.training.batches import as_image, spread
from pipeline.training.training_set import load

# At most so many photographs stand for all, seen so many times as large as they are: what takes a GPU seconds, and two
# CPU cores a minute or two.
PHOTOGRAPHS = {"cpu": 2000, "cuda": 20_000}
ENLARGED = {"cpu": (1,), "cuda": (1, 2)}
AT_ONCE = 100


def resemblance(
    photos: str,
    lpips: Lpips,
    device: torch.device | str,
    *,
    remembered: int = RECENT,
    memory_bytes: int | None = None,
) -> Resemblance:
    """What judges by the photographs trained on of a prepared set, in the eyes of the VGG16 within `lpips`.

    It remembers so many generated pictures. Raises UserError where there are too few photographs, and as `load` does.
    """
    kind = torch.device(device).type
    seen = torch.from_numpy(load(photos, heldout=False, detail=None, memory_bytes=memory_bytes).small)
    if len(seen) < FEWEST:
        raise UserError(f"{photos} has {len(seen)} photographs to train on; their statistics need {FEWEST} or more")
    chosen = spread(seen, PHOTOGRAPHS[kind])

    def batches() -> Iterator[Tensor]:
        ticker = Ticker("photographs looked at", len(chosen))
        for first in range(0, len(chosen), AT_ONCE):
            yield as_image(chosen[first : first + AT_ONCE].to(device))
            ticker.step(min(first + AT_ONCE, len(chosen)))

    return Resemblance(lpips.trunk, batches(), enlarged=ENLARGED[kind], remembered=remembered)
