"""What only splats allow to measure: the same pictures drawn large, against photographs and against themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.measures import border_ratio, psnr
from models.rasterize import rasterize, to_uint8
from pipeline.datasets.indices import Indices
from pipeline.datasets.splat_dataset import SplatDataset
from pipeline.evaluation.fidelity import SIDE

LARGE, HUGE = 256, 512
# At most so many pixels of one size are floating point numbers at once.
PIXELS_AT_ONCE = 1 << 22

# Draws the same n pictures at any side: [n, 3, side, side], not clamped.
Draw = Callable[[int], Tensor]


@dataclass(frozen=True)
class Closeups:
    """n pictures drawn large: border ratios [n] by size, agreement of sizes in dB [n], uint8 [n, 256, 256, 3]."""

    borders: dict[int, np.ndarray]
    agreement: np.ndarray
    large: np.ndarray

    @classmethod
    def joined(cls, parts: list[Closeups]) -> Closeups:
        """The pictures of several parts as one."""
        borders = {side: np.concatenate([part.borders[side] for part in parts]) for side in parts[0].borders}
        agreement, large = (np.concatenate([getattr(p, name) for p in parts]) for name in ("agreement", "large"))
        return cls(borders, agreement, large)


def draw(fields: Tensor, side: int, *, kernel: str = "wavelet", neighbourhood: int = 3) -> Tensor:
    """Splat fields [n, H, W, K, P] drawn at `side` x `side` pixels, a bounded number at once: [n, 3, side, side]."""
    parts = fields.split(max(1, PIXELS_AT_ONCE // side**2))
    return torch.cat([rasterize(part, side, side, kernel=kernel, neighbourhood=neighbourhood) for part in parts])


def drawing(dataset: SplatDataset, indices: Indices, device: str) -> Draw:
    """How to draw the chosen pictures of a dataset, as its plan says."""
    fields = torch.cat([part for _, part in dataset.read(indices)]).to(device)
    return partial(draw, fields, kernel=dataset.plan.kernel, neighbourhood=dataset.plan.neighbourhood)


def drawn_uint8(draw: Draw, side: int) -> np.ndarray:
    """The pictures as uint8 [n, side, side, 3]."""
    return to_uint8(draw(side)).cpu().numpy()


def closeups(draw: Draw) -> Closeups:
    """Steps across the borders of pictures drawn at 256 and 512 px, and how the largest agrees with 64 px.

    Agreement: the 512 px picture, clamped for display and reduced by area, against the 64 px picture.
    """
    small, large, huge = (draw(side).clamp(-1, 1) for side in (SIDE, LARGE, HUGE))
    borders = {side: border_ratio(image).cpu().numpy() for side, image in ((LARGE, large), (HUGE, huge))}
    agreement = psnr(F.avg_pool2d(huge, HUGE // SIDE), small).cpu().numpy()
    return Closeups(borders, agreement, to_uint8(large).cpu().numpy())


def borders(pictures: np.ndarray) -> np.ndarray:
    """The border ratio of each of uint8 pictures [n, Y, X, 3]: float64 [n]."""
    at_once = max(1, PIXELS_AT_ONCE // pictures[0, :, :, 0].size)
    parts = (torch.from_numpy(pictures[i : i + at_once].copy()) for i in range(0, len(pictures), at_once))
    return torch.cat([border_ratio(part.permute(0, 3, 1, 2).double()) for part in parts]).numpy()


def spread(ratios: np.ndarray) -> dict[str, float | int] | None:
    """The mean over pictures, its standard error, and their number; pictures of flat patches have no ratio."""
    finite = ratios[np.isfinite(ratios)].astype(np.float64)
    if len(finite) < 2:
        return None
    error = finite.std(ddof=1) / len(finite) ** 0.5
    return {"mean": float(finite.mean()), "error": float(error), "pictures": len(finite)}


def consistency(agreement: np.ndarray) -> dict[str, float | int] | None:
    """The mean and the worst agreement in dB, and of how many pictures; those that agree wholly have no figure."""
    finite = agreement[np.isfinite(agreement)].astype(np.float64)
    if not len(finite):
        return None
    return {"mean": float(finite.mean()), "worst": float(finite.min()), "pictures": len(finite)}
