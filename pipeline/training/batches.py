"""Batches for training: photographs on the device where they fit, streamed from the host where they do not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import draw_times
from models.rasterize import Region
from pipeline.training.augmentation import draw_transforms, warp
from pipeline.training.recipe import Recipe
from pipeline.training.training_set import TrainingSet

# Part of a GPU's free memory that photographs may take; the rest is the training step's.
DEVICE_SHARE = 0.4
# Windows of a detailed photograph start at multiples of this many pixels.
WINDOW_STEP = 8


class Pictures:
    """A rank's photographs, uint8: `small` [N, Y, X, 3] and, for some rows, `large` [M, S, S, 3]."""

    def __init__(self, photographs: TrainingSet, device: torch.device) -> None:
        self.device = device
        self.small = torch.from_numpy(photographs.small)
        self.large = torch.from_numpy(photographs.large)
        plain = np.setdiff1d(np.arange(len(self.small)), photographs.large_rows)
        # Rows of `small`: those of `large`, in their order, then the others.
        self.rows = torch.from_numpy(np.concatenate([photographs.large_rows, plain])).to(device)
        size = self.small.nbytes + self.large.nbytes
        self.resident = device.type == "cpu" or size < DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
        if self.resident:
            self.small, self.large = self.small.to(device), self.large.to(device)

    def detailed_in(self, count: int) -> int:
        """How many of `count` pictures of a batch are detailed: their share of the photographs, rounded down.

        Or one, where that is nearer than none: then these are drawn somewhat more often, rather than never in detail.
        """
        share = count * len(self.large) / len(self.small)
        return int(share) or round(share)

    def draw(self, count: int, detailed: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pictures in [-1, 1], `detailed` ones first: all at model size [count, 3, Y, X], those large as well.

        Every photograph is as likely as any other: what rounding down leaves of the share of the large ones is drawn
        among the rest, at model size. A coin decides for each whether it is mirrored.
        """
        device, many, rest = self.device, len(self.large), count - detailed
        share = (count * many / len(self.small) - detailed) / max(rest, 1)
        is_large = torch.rand(rest, generator=generator, device=device) < share
        low, high = torch.where(is_large, 0, many), torch.where(is_large, many, len(self.small))
        uniform = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        of_large = (uniform[:detailed] * many).long()
        others = (low + uniform[detailed:] * (high - low)).long()
        mirrored = torch.rand(count, generator=generator, device=device) < 0.5
        small = self._take(self.small, self.rows[torch.cat([of_large, others])], mirrored)
        return small, self._take(self.large, of_large, mirrored[:detailed])

    def _take(self, pictures: Tensor, rows: Tensor, mirrored: Tensor) -> Tensor:
        if self.resident:
            chosen = pictures[rows]
        else:
            chosen = pictures[rows.to(pictures.device)]
            if self.device.type == "cuda":
                chosen = chosen.pin_memory()  # so that the copy runs beside the host's work
            chosen = chosen.to(self.device, non_blocking=True)
        image = as_image(chosen)
        return torch.where(mirrored[:, None, None, None], image.flip(3), image)


def spread(pictures: Tensor, count: int) -> Tensor:
    """At most `count` of the pictures, evenly over all: they come in the order of their sources."""
    return pictures[evenly(len(pictures), count)]


def evenly(count: int, most: int) -> Tensor:
    """At most so many of the numbers from 0 to below `count`, evenly over all."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).long()


def as_image(pictures: Tensor) -> Tensor:
    """Pictures uint8 [B, Y, X, 3] as [B, 3, Y, X] in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def make_batch(recipe: Recipe, pictures: Pictures, step: int, piece: int, rank: int, ranks: int) -> dict[str, Any]:
    """What `training_loss` needs for one piece of a step; a function of its arguments alone."""
    device = pictures.device
    generator = torch.Generator(device).manual_seed(mixed_seed(recipe.seed, step, rank, piece))
    count = recipe.batch // (ranks * recipe.pieces)
    many = pictures.detailed_in(count)
    clean, large = pictures.draw(count, many, generator)
    matrices, labels = draw_transforms(count, recipe.augment, generator, device)
    if recipe.augment:
        clean, large = augment(clean, large, matrices)
    t = torch.cat([draw_times(recipe.objective, n, generator, device) for n in (many, count - many)])
    batch: dict[str, Any] = {
        "clean": clean,
        "t": t,
        "noise": torch.randn(clean.shape, generator=generator, device=device),
        "hints": (labels,),
    }
    if many:
        chance = random.Random(mixed_seed(recipe.seed, step, 0, piece))
        batch["detailed"], batch["region"] = crop(large, recipe.detail_pixels, chance)
    return batch


def make_noise_batch(
    recipe: Recipe, device: torch.device, step: int, piece: int, rank: int, ranks: int
) -> dict[str, Any]:
    """What `distillation_loss` needs for one piece of a step; a function of its arguments alone."""
    generator = torch.Generator(device).manual_seed(mixed_seed(recipe.seed, step, rank, piece))
    count, model = recipe.batch // (ranks * recipe.pieces), recipe.model
    noise = torch.randn(count, 3, model.height_pixels, model.width_pixels, generator=generator, device=device)
    chance = random.Random(mixed_seed(recipe.seed, step, 0, piece))
    *_, region = window(2 * recipe.detail_pixels, recipe.detail_pixels, chance)
    places = torch.rand(count, 2, generator=generator, device=device)
    return {"noise": noise, "region": region, "places": places}


def augment(clean: Tensor, large: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Move pictures [B, 3, Y, X] and, alike, those at the front that are `large` too [M, 3, S, S]."""
    many = len(large)
    large = warp(large, matrices[:many], "bilinear")
    # Reduced from the moved large ones, so that the two sizes show the same.
    front = F.interpolate(large, size=clean.shape[2:], mode="area") if many else clean[:0]
    return torch.cat([front, warp(clean[many:], matrices[many:], "bicubic").clamp(-1.0, 1.0)]), large


def crop(pictures: Tensor, pixels: int, chance: random.Random) -> tuple[Tensor, Region]:
    """Pictures as the same window of `pixels` by `pixels` at one scale, see `window`, and its region."""
    full = pictures.shape[-1]
    side, top, left, region = window(full, pixels, chance)
    if full % side == 0:
        pictures = F.interpolate(pictures, size=(side, side), mode="area")
    else:
        pictures = F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return pictures[:, :, top : top + pixels, left : left + pixels], region


def window(full: int, pixels: int, chance: random.Random) -> tuple[int, int, int, Region]:
    """Draw a window of `pixels` in a picture of up to `full`: the picture's side, top and left edge, and the region.

    A third of the time it is the whole picture, reduced; a third, a window at full resolution; else in between.
    """
    side = chance.choice([pixels, full, chance.randrange(pixels, full + 1, WINDOW_STEP)])
    top, left = (chance.randrange(0, side - pixels + 1, WINDOW_STEP) for _ in range(2))
    return side, top, left, (left / side, top / side, (left + pixels) / side, (top + pixels) / side)


def mixed_seed(*parts: int) -> int:
    """A 32-bit seed from several numbers; torch's CPU generator ignores higher bits, so sums would collide."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
