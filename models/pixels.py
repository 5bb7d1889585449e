"""Where the pixels of a picture lie on its grid of patches, along one axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """Pixels first..last of the `pixels` that span the fractions start..stop of an axis of `patches` patches."""

    pixels: int
    start: float
    stop: float
    patches: int
    first: int
    last: int

    @staticmethod
    def of(pixels: int, start: float, stop: float, patches: int) -> Axis:
        """All `pixels` pixels of an axis."""
        return Axis(pixels, start, stop, patches, 0, pixels)

    def slice(self, first: int, last: int) -> Axis:
        """The same axis for its pixels first..last only."""
        return Axis(self.pixels, self.start, self.stop, self.patches, self.first + first, self.first + last)

    def __len__(self) -> int:
        return self.last - self.first

    def centres(self) -> tuple[Tensor, Tensor]:
        """Each pixel's centre, on the CPU: its patch int64 [pixels], ascending, and its place there, float64 [pixels].

        The place is in patches from the patch's low edge, in [0, 1].
        """
        # float64: at 65,536 pixels a float32 position would be off by a visible part of a pixel.
        centre = (torch.arange(self.first, self.last, dtype=torch.float64) + 0.5) / self.pixels
        position = (self.start + centre * (self.stop - self.start)) * self.patches
        home = position.floor().clamp(0, self.patches - 1)
        return home.long(), position - home
